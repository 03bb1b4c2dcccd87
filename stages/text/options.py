"""The options of `text`, as a user writes them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from model.modalities.text_settings import Characters, Normalization, Segmenter, Side
from pipelines.stage import Config


class VocabularyConfig(Config):
    """The subword vocabulary, trained by SentencePiece on the training split."""

    size: Annotated[
        int | dict[Side, int], Field(description="vocabulary size: one, or one for each side")
    ] = 4000
    shared: Annotated[bool, Field(description="one vocabulary for both sides")] = False
    algorithm: Annotated[Literal["bpe", "unigram"], Field(description="how pieces are found")] = (
        "bpe"
    )
    coverage: Annotated[
        float, Field(gt=0, le=1, description="share of characters that get a piece of their own")
    ] = 1.0

    sample: Annotated[
        int,
        Field(
            ge=1, description="most training rows it is trained on; of more, every second, third, …"
        ),
    ] = 200_000

    def of(self, side: Side) -> int:
        return self.size if isinstance(self.size, int) else self.size[side]

    @field_validator("size")
    @classmethod
    def _both(cls, value: int | dict[str, int]) -> int | dict[str, int]:
        if isinstance(value, dict) and set(value) != {"source", "target"}:
            raise ValueError("must be a number, or have both source: and target:")
        return value


class FilterConfig(Config):
    """Which pairs are rejected. Characters are counted after normalisation."""

    max_characters: Annotated[int, Field(ge=1, description="longest text of either side")] = 2000
    max_tokens: Annotated[int, Field(ge=1, description="most subwords of either side")] = 250
    max_ratio: Annotated[
        float | None, Field(gt=1, description="largest ratio of subwords, longer to shorter side")
    ] = 9.0
    script: Annotated[
        dict[Side, str],
        Field(description="Unicode's name of the script that half of the letters must have"),
    ] = {}

    @field_validator("script")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        import polars as pl

        for script in value.values():
            if not re.fullmatch(r"[A-Za-z_]+", script):
                raise ValueError(f"{script!r} is not a Unicode script; use Han, Latin, ...")
            try:
                pl.Series(["a"]).str.count_matches(rf"\p{{{script}}}")
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"{script!r} is not a Unicode script; use Latin, ...") from error
        return value


class TextConfig(Config):
    """What is done to the text of both sides."""

    normalize: Annotated[
        dict[Side, Normalization], Field(description="Unicode form of each side; nfc if not given")
    ] = {}
    chinese: Annotated[
        dict[Side, Characters],
        Field(description="characters that Chinese becomes written with, by OpenCC"),
    ] = {}
    lowercase: Annotated[dict[Side, bool], Field(description="whether to lowercase")] = {}
    segment: Annotated[
        dict[Side, Segmenter], Field(description="word segmentation: jieba, for Chinese")
    ] = {}
    stopwords: Annotated[
        dict[Side, list[str] | str],
        Field(description="words to leave out: a list, or a file with one per line"),
    ] = {}
    filter: Annotated[FilterConfig, Field(description="which pairs are rejected")] = FilterConfig()
    vocabulary: Annotated[VocabularyConfig, Field(description="the subword vocabulary")] = (
        VocabularyConfig()
    )
    max_rejected: Annotated[
        float, Field(ge=0, le=1, description="share of rejected rows that fails the stage")
    ] = 0.5
