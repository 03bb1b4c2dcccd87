"""The options of `score`, as a user writes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.stage import Config
from stages.judges import WishJudge
from stages.measures.metrics import MetricName


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
    judges: Annotated[
        dict[str, WishJudge],
        Field(
            description="wish (of generate) to how outputs are judged, for the metric wish: the "
            "share of rows whose output has all that was wished for, of those that wish for "
            "something; slices: [wish.NAME] shows each value"
        ),
    ] = {}
    tokenize: Annotated[
        Literal["13a", "zh", "intl", "char", "none"] | None,
        Field(description="BLEU's tokenizer; by default zh for Chinese targets, 13a otherwise"),
    ] = None
    references: Annotated[
        list[str],
        Field(
            description="columns with more references, for bleu, chrf and ter; they can be empty "
            "in some rows"
        ),
    ] = []
    slices: Annotated[
        list[str],
        Field(
            description="columns for whose values everything is also scored separately; a+b: "
            "every combination of two; length: words of the reference; rarity: how often its "
            "rarest word occurs in the training references (needs records:)"
        ),
    ] = ["modalities"]
    systems: Annotated[
        dict[str, str],
        Field(
            description="outputs of other systems by name, scored and tested against ours: files "
            "with one line for each line of text/*.src.txt; {task} and {split} in the file name "
            "are filled in"
        ),
    ] = {}
    intervals: Annotated[
        bool,
        Field(
            description="95% bootstrap intervals, as in sacrebleu --confidence; of more than "
            "50,000 segments, several are drawn together"
        ),
    ] = True
