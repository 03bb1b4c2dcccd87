"""Wishes met in several ways and strengths, to see what each costs in quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from exports.decoding.hypotheses import Hypothesis
from exports.decoding.sampling import Sampling
from exports.decoding.several import Selection
from exports.decoding.translator import Translator
from model.modalities.sources import SourceRows
from stages.generate.options import TradeoffConfig


@dataclass(frozen=True)
class Met:
    """Outputs that were made in one way; of every source as many."""

    kind: str
    """See `pipelines.contracts.scores.Tradeoff`."""
    kept: list[list[Hypothesis]]
    drawn: int
    """Outputs decoded for each source."""
    strength: float = 0.0
    wish: str | None = None
    value: str | None = None


class Tradeoffs:
    """The outputs of some sources, without wishes and with each, in every strength."""

    def __init__(
        self,
        asked: TradeoffConfig,
        translator: Translator,
        source: SourceRows,
        keys: Sequence[str],
        seed: int,
    ) -> None:
        """
        Args:
            keys: of each source's random numbers.
        """
        self.asked, self.translator, self.source, self.keys = asked, translator, source, keys
        self.sampling = Sampling(asked.temperature, seed=seed)
        known = translator.stepper.wishes.values
        self.wishes = [(wish, value) for wish, values in known.items() for value in values]

    @property
    def total(self) -> int:
        """Outputs that are decoded."""
        draws = self.asked.draws
        each = 1 + draws + (1 + draws) * len(self.wishes) * len(set(self.asked.strengths))
        return each * len(self.source)

    def all(self, on_rows: Callable[[int], None]) -> Iterator[Met]:
        draws = self.asked.draws

        def drawn_rows(rows: int) -> None:
            on_rows(draws * rows)

        yield Met("plain", [[one] for one in self.translator.decode(self.source, on_rows)], 1)
        ordered = self.draw(self.source, self.ordered, drawn_rows)
        yield Met("selected", [each[:1] for each in ordered], draws)
        yield Met("draws", ordered, draws)
        for wish, value in self.wishes:
            for strength in sorted(set(self.asked.strengths)):
                asked = [{wish: value}] * len(self.source)
                source = self.translator.wishing(self.source, asked, strength)
                best = self.translator.decode(source, on_rows)
                yield Met("wish", [[one] for one in best], 1, strength, wish, value)
                ranked = self.draw(source, self.ordered, drawn_rows)
                best_of = [each[:1] for each in ranked]
                yield Met("ranked", best_of, draws, strength, wish, value)

    def draw(
        self,
        source: SourceRows,
        choose: Callable[[list[Hypothesis]], list[Hypothesis]],
        on_rows: Callable[[int], None],
    ) -> list[list[Hypothesis]]:
        return self.translator.draw(
            source, self.asked.draws, self.sampling, choose, on_rows, self.keys
        )

    def ordered(self, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The different draws, those first that selection would keep."""
        return self.translator.chosen(hypotheses, Selection(keep=self.asked.draws))
