"""The options of `score`, as a user writes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.stage import Config
from stages.score.metrics import MetricName


class ScoreConfig(Config):
    """Which scores are computed."""

    metrics: Annotated[
        list[MetricName],
        Field(
            description="the scores; by default accuracy, top_accuracy, macro_f1 and "
            "calibration_error for tasks with labels, the others for tasks without, wer and cer "
            "where there is audio, bleu where a reference has four words (it is 0 otherwise)"
        ),
    ] = []
    tokenize: Annotated[
        Literal["13a", "zh", "intl", "char", "none"] | None,
        Field(description="BLEU's tokenizer; by default zh for Chinese targets, 13a otherwise"),
    ] = None
    references: Annotated[
        list[str],
        Field(
            description="columns with further references, for bleu, chrf and ter; a row may lack "
            "some"
        ),
    ] = []
    slices: Annotated[
        list[str],
        Field(
            description="columns by whose values everything is scored apart as well; a+b is every "
            "combination of two; length: words of the reference; rarity: times that its rarest "
            "word stands in the training references (it needs records:)"
        ),
    ] = ["modalities"]
    systems: Annotated[
        dict[str, str],
        Field(
            description="other systems' outputs by name, scored and tested beside ours: a file "
            "with a line for each of text/*.src.txt; {task} and {split} in its name stand for each"
        ),
    ] = {}
    intervals: Annotated[
        bool, Field(description="95% bootstrap intervals, as sacrebleu --confidence has them")
    ] = True
