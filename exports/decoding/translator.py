"""Graphs with their preprocessing: text, pictures and sounds in, text out. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from exports.decoding.batches import in_batches
from exports.decoding.beam_search import BeamSearch, beam_search
from exports.decoding.constraints import Constraints
from exports.decoding.device import open_stepper
from exports.decoding.forced import Forced, force, rank_labels
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.sampling import Sampling
from exports.decoding.session import Provider
from exports.decoding.several import Drawing, Selection, draw_many
from model.batching import Ragged
from model.modalities.media import Row
from model.modalities.preparation import sources_of
from model.modalities.processing import Processor
from model.modalities.sources import SourceRows

NO_WISHES: Mapping[str, str] = {}


class Translator:
    """Decodes in bulk with the graphs of one exported folder."""

    def __init__(
        self,
        folder: Path,
        providers: Sequence[Provider] = ("cpu",),
        threads: int = 1,
        batch_tokens: int = 2048,
        beam: BeamSearch | None = None,
        constraints: Constraints | None = None,
        sampling: Sampling | None = None,
        maximum: int | None = None,
        drawing: Drawing | None = None,
    ) -> None:
        """
        Args:
            threads: batches decoded in parallel, each on one native thread; ignored if another
                device computes.
            batch_tokens: batch size: maximum padded source tokens in a batch; with a beam, 2/size
                of it, because hypotheses share the encoded source.
            beam: how to search for outputs without sampling; greedy if not given.
            constraints: rules for all outputs; without `prefixes`, which belong to one batch.
            sampling: how to draw outputs instead of searching for them.
            maximum: maximum tokens of an output, EOS not counted; if not given, twice the length
                of its source plus ten.
            drawing: how to draw several outputs, and choose among them, instead.

        Raises:
            exports.decoding.session.ProviderError: none of `providers` could be loaded.
        """
        self.stepper = open_stepper(folder, providers, threads=1)
        self.threads = threads if self.stepper.provider == "cpu" else 1
        self.processor = Processor.load(folder)
        self.target = self.processor.target
        self.batch_tokens = batch_tokens
        self.beam, self.constraints = beam or BeamSearch(size=1), constraints or Constraints()
        self.sampling, self.maximum, self.drawing = sampling, maximum, drawing

    def translate(
        self,
        texts: Sequence[str],
        task: str | None = None,
        wishes: Mapping[str, str] = NO_WISHES,
        strength: float = 1.0,
    ) -> list[str | None]:
        """Outputs for raw texts, in order: an empty one for an empty text, None for a text that is
        longer than the model takes. The task is optional if the model has only one. All outputs
        should meet the wishes, with this strength."""
        source = self.sources([{"text": text} for text in texts], task)
        source = self.wishing(source, [wishes] * len(texts), strength)
        fits = source.positions <= self.stepper.max_length
        nonempty = np.array([bool(text.strip()) for text in texts], dtype=bool)
        rows = np.flatnonzero(fits & nonempty)
        outputs: list[str | None] = ["" if fit else None for fit in fits]
        for row, output in zip(rows, self.outputs(source.take(rows)), strict=True):
            outputs[row] = output
        return outputs

    def answer(
        self,
        records: Sequence[Row],
        task: str | None = None,
        wishes: Mapping[str, str] = NO_WISHES,
        strength: float = 1.0,
    ) -> list[str]:
        """Outputs for raw records, which may have `text` and bytes of other modalities;
        see `model.modalities.preparation.sources_of`."""
        source = self.sources(records, task)
        return self.outputs(self.wishing(source, [wishes] * len(records), strength))

    def wishing(
        self, source: SourceRows, wishes: Sequence[Mapping[str, str]], strength: float
    ) -> SourceRows:
        """The source with each row's wishes. Raises `ValueError` for one that the model does not
        know."""
        return replace(source, wish=self.stepper.wishes.strengths(wishes, strength))

    def sources(self, records: Sequence[Row], task: str | None) -> SourceRows:
        known = self.processor.text.settings.tasks
        if task is None and len(known) > 1:
            raise ValueError(f"say which task: {', '.join(known)}")
        named = [{"task": task or known[0], **record} for record in records]
        return sources_of(self.processor, named)

    def outputs(self, source: SourceRows) -> list[str]:
        """The target of the best hypothesis of every source, in order."""
        results = self.search(source)
        return self.target.decode([hypotheses[0].tokens for hypotheses in results])

    def decode(
        self,
        source: SourceRows,
        on_rows: Callable[[int], None] = lambda _: None,
        sampling: Sampling | None = None,
        keys: Sequence[str] = (),
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[Hypothesis]:
        """The best hypothesis of every source, in order; with `sampling`, one drawn by its key.

        Args:
            keys: for each row, the key of its random numbers; its row number if not given. Ignored
                without `sampling`.
            prefixes: for each row, the tokens that its output begins with.

        Raises `ValueError` for a source longer than the model takes.
        """
        limits = self.limits(source)

        def decode(rows: np.ndarray) -> list[Hypothesis]:
            chosen = [keys[row] if keys else str(row) for row in rows] if sampling else ()
            batch = source.collate(rows)
            rules = self.rules(prefixes, rows)
            return greedy(self.stepper, batch, limits[rows], sampling, chosen, rules)

        return in_batches(source.lengths, self.batch_tokens, decode, on_rows, self.threads)

    def search(
        self,
        source: SourceRows,
        on_rows: Callable[[int], None] = lambda _: None,
        keys: Sequence[str] = (),
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Searches as this translator is configured: the hypotheses that are kept of every source,
        in order, the best first; or one, drawn by its key. Arguments as for `decode`.

        Raises `ValueError` for a source longer than the model takes.
        """
        several = self.draws_several(source)
        if several.any() and not several.all():
            results: list[list[Hypothesis]] = [[]] * len(source)
            for part in (several, ~several):
                rows = np.flatnonzero(part).tolist()
                names = [keys[row] if keys else str(row) for row in rows]
                begins = None if prefixes is None else [prefixes[row] for row in rows]
                found = self.search(source.take(np.flatnonzero(part)), on_rows, names, begins)
                for row, hypotheses in zip(rows, found, strict=True):
                    results[row] = hypotheses
            return results
        if self.drawing is not None and several.all():
            drawing = self.drawing
            choose = partial(self.chosen, selection=drawing.selection)
            return self.draw(
                source, drawing.count, drawing.sampling, choose, on_rows, keys, prefixes
            )
        if self.beam.size == 1:
            best = self.decode(source, on_rows, self.sampling, keys, prefixes)
            return [[hypothesis] for hypothesis in best]
        return self.find(source, self.beam, on_rows, prefixes)

    def keeps(self, source: SourceRows) -> int:
        """The most hypotheses that `search` keeps of any source."""
        several = self.draws_several(source)
        kept = self.drawing.selection.keep if self.drawing is not None and several.any() else 1
        return max(kept, 1 if several.all() else self.beam.best)

    def draws_several(self, source: SourceRows) -> np.ndarray:
        """(rows,) whether several outputs of a row are drawn, by its task."""
        wanted = frozenset[str]() if self.drawing is None else self.drawing.tasks
        if self.drawing is None or not wanted:
            return np.full(len(source), self.drawing is not None)
        tasks = self.processor.text.settings.tasks
        numbers = np.zeros(len(source), dtype=np.int64) if source.task is None else source.task
        return np.isin(numbers, [number for number, name in enumerate(tasks) if name in wanted])

    def draw(
        self,
        source: SourceRows,
        count: int,
        sampling: Sampling,
        choose: Callable[[list[Hypothesis]], list[Hypothesis]] = list,
        on_rows: Callable[[int], None] = lambda _: None,
        keys: Sequence[str] = (),
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """`count` outputs of every source, drawn with the keys `KEY/NUMBER`; of them, what `choose`
        keeps. Other arguments and errors as for `decode`."""
        limits = self.limits(source)

        def draw(rows: np.ndarray) -> list[list[Hypothesis]]:
            names = [keys[row] if keys else str(row) for row in rows]
            batch, rules = source.collate(rows), self.rules(prefixes, rows)
            drawn = draw_many(self.stepper, batch, limits[rows], sampling, names, count, rules)
            return [choose(hypotheses) for hypotheses in drawn]

        budget = max(1, 2 * self.batch_tokens // count)
        return in_batches(source.lengths, budget, draw, on_rows, self.threads)

    def find(
        self,
        source: SourceRows,
        beam: BeamSearch,
        on_rows: Callable[[int], None] = lambda _: None,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """The `beam.best` hypotheses of every source, the best first. Other arguments and errors
        as for `decode`."""
        limits = self.limits(source)

        def find(rows: np.ndarray) -> list[list[Hypothesis]]:
            batch, rules = source.collate(rows), self.rules(prefixes, rows)
            return beam_search(self.stepper, batch, limits[rows], beam, rules)

        budget = max(1, 2 * self.batch_tokens // beam.size)
        return in_batches(source.lengths, budget, find, on_rows, self.threads)

    def chosen(self, hypotheses: Sequence[Hypothesis], selection: Selection) -> list[Hypothesis]:
        """What a selection keeps of several hypotheses of one source."""
        texts = self.target.decode([hypothesis.tokens for hypothesis in hypotheses])
        return [hypotheses[number] for number in selection.choose(texts, hypotheses)]

    def limits(self, source: SourceRows) -> np.ndarray:
        """Maximum number of tokens to decode for each row."""
        self.check(source)
        longest = self.stepper.max_length
        if self.maximum is not None:
            return np.full(len(source), min(self.maximum, longest - 1))
        return self.target.limits(source.lengths.sum(axis=1), longest)

    def rules(self, prefixes: Sequence[Sequence[int]] | None, rows: np.ndarray) -> Constraints:
        """The constraints on the outputs of a batch."""
        if prefixes is None:
            return self.constraints
        return replace(self.constraints, prefixes=[prefixes[row] for row in rows])

    def prefixes(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of output prefixes; no tokens for an empty text."""
        encoded = self.target.encode(texts)
        return [encoded.row(row)[:-1] for row in range(len(texts))]

    def allow(self, texts: Sequence[str]) -> None:
        """Restricts outputs to the subwords of these texts."""
        allowed = np.zeros(self.stepper.vocabulary, dtype=bool)
        allowed[self.target.encode(texts).values] = True
        self.constraints = replace(self.constraints, allowed=allowed)

    def force(self, source: SourceRows, target: Ragged) -> list[Forced]:
        """Scores of given targets, in order, in batches of similar target length."""
        self.check(source)

        def score(rows: np.ndarray) -> list[Forced]:
            targets = [target.row(row) for row in rows]
            return force(self.stepper, source.collate(rows), targets)

        return in_batches(target.lengths, self.batch_tokens, score, threads=self.threads)

    def rank(
        self,
        source: SourceRows,
        labels: Sequence[str],
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> np.ndarray:
        """Probabilities (rows, labels) of the labels, for every row."""
        self.check(source)
        encoded = self.target.encode(labels)
        tokens = [encoded.row(number) for number in range(len(labels))]

        def rank(rows: np.ndarray) -> list[np.ndarray]:
            return list(rank_labels(self.stepper, source.collate(rows), tokens, len(rows)))

        budget = max(1, self.batch_tokens // max(1, len(labels) // 4))
        ranked = in_batches(source.lengths, budget, rank, on_rows, self.threads)
        return np.stack(ranked) if ranked else np.zeros((0, len(labels)))

    def check(self, source: SourceRows) -> None:
        if source.longest > self.stepper.max_length:
            raise ValueError(
                f"a source has {source.longest} positions, the model takes "
                f"{self.stepper.max_length}"
            )
