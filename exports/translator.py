"""Graphs with their text processing: text in, text out. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from exports.decoding import Forced, Hypothesis, decode_all, force, length_limits
from exports.session import Provider, SessionStepper
from model.batching import Ragged, sorted_batches
from model.text import TextProcessor


class Translator:
    """Decodes in bulk with the graphs of one exported folder."""

    def __init__(
        self,
        folder: Path,
        providers: Sequence[Provider] = ("cpu",),
        threads: int = 1,
        batch_tokens: int = 1024,
    ) -> None:
        """
        Args:
            threads: batches decoded at the same time, each on one native thread.
            batch_tokens: most padded source tokens in a batch.

        Raises:
            exports.session.ProviderError: none of `providers` could be loaded.
        """
        self.stepper = SessionStepper(folder, providers, threads=1)
        self.threads = threads
        self.text = TextProcessor.load(folder / "text")
        self.batch_tokens = batch_tokens

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translations of raw texts, in order; an empty text stays empty."""
        hypotheses = self.decode(self.text.encode(texts))
        decoded = self.text.decode([hypothesis.tokens for hypothesis in hypotheses])
        return [out if text.strip() else "" for text, out in zip(texts, decoded, strict=True)]

    def decode(
        self, source: Ragged, on_rows: Callable[[int], None] = lambda _: None
    ) -> list[Hypothesis]:
        """Greedy hypotheses of subword ids, in order. Raises `ValueError` for one too long."""
        self.check(source)
        limits = length_limits(source.lengths, self.stepper.max_length)
        return decode_all(
            self.stepper,
            source.lengths,
            lambda rows: {"text": source.padded(rows)},
            limits,
            self.batch_tokens,
            on_rows,
            self.threads,
        )

    def force(self, source: Ragged, target: Ragged) -> list[Forced]:
        """Scores of given targets, in order, in batches of like target length."""
        self.check(source)
        results: list[Forced | None] = [None] * len(source)
        batches = sorted_batches(target.lengths, self.batch_tokens)

        def score(rows: np.ndarray) -> list[Forced]:
            targets = [target.row(row) for row in rows]
            return force(self.stepper, {"text": source.padded(rows)}, targets)

        with ThreadPoolExecutor(self.threads) as pool:
            for rows, scored in zip(batches, pool.map(score, batches), strict=True):
                for row, forced in zip(rows, scored, strict=True):
                    results[row] = forced
        return [result for result in results if result is not None]

    def check(self, source: Ragged) -> None:
        longest = int(source.lengths.max(initial=0))
        if longest > self.stepper.max_length:
            raise ValueError(
                f"a source has {longest} tokens, the model takes {self.stepper.max_length}"
            )
