"""Several outputs for each source, made in every way that there is, to be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from exports.decoding.beam_search import BeamSearch
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.sampling import Sampling
from exports.decoding.several import Selection
from exports.decoding.translator import Translator
from model.modalities.sources import SourceRows
from stages.generate.options import DiversityConfig

Several = list[list[Hypothesis]]
"""For each source, its outputs."""


@dataclass(frozen=True)
class Made:
    """Outputs that were made in one way; of every source as many."""

    kind: str
    """See `pipelines.contracts.scores.Variety`."""
    kept: Several
    drawn: int
    """Outputs decoded for each source."""
    temperature: float = 0.0
    weight: float | None = None


class Draws:
    """The outputs of some sources, in every way."""

    def __init__(
        self,
        asked: DiversityConfig,
        translator: Translator,
        source: SourceRows,
        keys: Sequence[str],
        seed: int,
    ) -> None:
        """
        Args:
            keys: of each source's random numbers.
        """
        self.asked, self.translator, self.source = asked, translator, source
        self.keys, self.seed = keys, seed
        self.latent = asked.latent if translator.stepper.latent else []
        self.temperatures = sorted(
            {*asked.sampling, *([asked.temperature] if asked.variety else [])}
        )

    @property
    def total(self) -> int:
        """Outputs that are decoded."""
        asked = self.asked
        each = 1 + asked.samples * len(self.latent) + asked.draws * (1 + len(self.temperatures))
        return each * len(self.source)

    def all(self, on_rows: Callable[[int], None]) -> Iterator[Made]:
        asked, translator = self.asked, self.translator
        kept, drawn = asked.samples, asked.draws

        def times(count: int) -> Callable[[int], None]:
            return lambda rows: on_rows(count * rows)

        yield Made("mean", [[each] for each in translator.decode(self.source, on_rows)], 1)
        best = translator.find(self.source, BeamSearch(drawn, best=kept), times(drawn))
        yield Made("beam", [filled(each, kept) for each in best], drawn)
        for temperature in self.latent:
            yield Made("latent", self._latent(temperature, on_rows), kept, temperature)
        for temperature in self.temperatures:
            sampling = Sampling(temperature, seed=self.seed)
            draws = translator.draw(
                self.source, drawn, sampling, on_rows=times(drawn), keys=self.keys
            )
            if temperature in asked.sampling:
                yield Made("sampling", [each[:kept] for each in draws], kept, temperature)
            if temperature != asked.temperature:
                continue
            likely = [filled(self._likeliest(each), kept) for each in draws]
            yield Made("likeliest", likely, drawn, temperature)
            for weight in asked.variety:
                selection = Selection(kept, weight)
                chosen = [filled(translator.chosen(each, selection), kept) for each in draws]
                yield Made("selection", chosen, drawn, temperature, weight)

    def _latent(self, temperature: float, on_rows: Callable[[int], None]) -> Several:
        """Greedy outputs, each with a latent variable of its own."""
        sampling = Sampling(latent_temperature=temperature, seed=self.seed)
        by_number = [
            self.translator.decode(
                self.source, on_rows, sampling, [f"{key}/{number}" for key in self.keys]
            )
            for number in range(self.asked.samples)
        ]
        return [list(each) for each in zip(*by_number, strict=True)]

    def _likeliest(self, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The different outputs, the most probable by the mean of their tokens first."""
        ranked = sorted(hypotheses, key=lambda each: -each.mean)
        different: dict[tuple[int, ...], Hypothesis] = {}
        for hypothesis in ranked:
            different.setdefault(tuple(hypothesis.tokens), hypothesis)
        return list(different.values())


def filled(hypotheses: Sequence[Hypothesis], count: int) -> list[Hypothesis]:
    """So many hypotheses: the first ones, or all, and then the best again."""
    return [*hypotheses[:count], *[hypotheses[0]] * (count - len(hypotheses))]
