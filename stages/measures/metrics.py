"""The names of the metrics, the tasks for which each is computed by default, and BLEU's tokenizer.

Separate from `stages.measures.statistics`, which computes them, so that planning does not import
sacreBLEU.
"""

from __future__ import annotations

from typing import Literal

from pipelines.contracts.tasks import is_chinese

MetricName = Literal[
    "bleu",
    "chrf",
    "ter",
    "wer",
    "cer",
    "exact_match",
    "token_accuracy",
    "perplexity",
    "wish",
    "accuracy",
    "top_accuracy",
    "macro_f1",
    "calibration_error",
]
LABEL_METRICS: tuple[MetricName, ...] = (
    "accuracy",
    "top_accuracy",
    "macro_f1",
    "calibration_error",
)
"""Metrics for tasks with labels; the others are for tasks without."""
FORCED: tuple[MetricName, ...] = ("token_accuracy", "perplexity")
"""Metrics that need the references scored by the model (teacher forcing)."""
NEED_PROBABILITIES: tuple[MetricName, ...] = ("top_accuracy", "calibration_error")
"""Metrics that need the labels' probabilities."""
SPOKEN: tuple[MetricName, ...] = ("wer", "cer")
"""Metrics that are computed by default only for tasks with sound."""
LOWER_IS_BETTER: tuple[MetricName, ...] = ("ter", "wer", "cer", "perplexity", "calibration_error")
LENGTH, RARITY = "length", "rarity"
"""Slices that are computed: see `stages.score.slicing`."""


def bleu_tokenizer(language: str | None) -> str:
    """sacreBLEU's tokenizer for a target language: `zh` for Chinese, `13a` otherwise.

    The same choice as the `sacrebleu` command makes from `-l`, for the languages that need no
    other package.
    """
    return "zh" if is_chinese(language) else "13a"
