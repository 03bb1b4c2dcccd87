"""The options of `generate`, as a user writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializeAsAny,
    create_model,
    field_validator,
    model_validator,
)

from model.modalities.known import MEDIA
from pipelines.registry import resolve
from pipelines.stage import Config


class DiversityConfig(Config):
    """Several outputs for each of some rows, to see how quality falls as diversity grows."""

    rows: Annotated[int, Field(ge=1, description="rows of each task without labels")] = 100
    samples: Annotated[int, Field(ge=2, description="outputs kept for each row")] = 5
    draws: Annotated[
        int,
        Field(
            ge=2,
            le=1000,
            description="outputs decoded for each row, where the best of them are kept: by beam "
            "search, by probability alone, by selection",
        ),
    ] = 20
    latent: Annotated[
        list[float], Field(description="temperatures of the latent variable, with greedy tokens")
    ] = [0.5, 1.0, 2.0]
    sampling: Annotated[
        list[Annotated[float, Field(gt=0)]],
        Field(description="temperatures of the tokens, with the latent at its mean"),
    ] = [0.3, 0.5, 0.7, 1.0]
    variety: Annotated[
        list[Annotated[float, Field(ge=0, le=1)]],
        Field(description="weights of variety, for selection (see select)"),
    ] = [0.0, 0.3, 0.5]
    temperature: Annotated[
        float, Field(gt=0, description="of the draws that are selected from")
    ] = 0.5

    @model_validator(mode="after")
    def _fits(self) -> DiversityConfig:
        if self.samples > self.draws:
            raise ValueError(f"samples: {self.samples} is more than draws: {self.draws}")
        return self


class SearchConfig(Config):
    """How outputs are searched for; by default greedily."""

    beam: Annotated[
        int, Field(ge=1, description="beam size: hypotheses of a source searched in parallel")
    ] = 1
    length_penalty: Annotated[
        float,
        Field(ge=0, description="scores are divided by (number of tokens with EOS) to this power"),
    ] = 1.0
    coverage: Annotated[
        float,
        Field(
            ge=0,
            description="weight of the penalty for hypotheses that leave parts of their source "
            "unread (GNMT's coverage penalty); needs graphs exported with attention: true",
        ),
    ] = 0.0
    best: Annotated[
        int, Field(ge=1, description="n-best: hypotheses kept for each source, at most beam")
    ] = 1
    stop: Annotated[
        Literal["likely", "bound"],
        Field(
            description="when to stop; likely: no unfinished hypothesis would beat the worst that "
            "is kept if it ended now; bound: none can, however it continues"
        ),
    ] = "likely"
    minimum: Annotated[int, Field(ge=0, description="fewest tokens of an output")] = 0
    maximum: Annotated[
        int | None,
        Field(ge=1, description="most tokens of an output; 2 × its source's + 10 if not given"),
    ] = None
    no_repeat: Annotated[
        int, Field(ge=0, description="no n-gram of this many tokens occurs twice; 0 for no limit")
    ] = 0
    prefix: Annotated[
        str | None, Field(description="column with the beginning of each output; can be empty")
    ] = None
    words: Annotated[
        str | None,
        Field(description="file with one word or phrase per line: outputs use only their subwords"),
    ] = None
    temperature: Annotated[
        float,
        Field(
            ge=0, description="sample tokens at this temperature instead, with a seed for each row"
        ),
    ] = 0.0
    top_k: Annotated[
        int, Field(ge=0, description="sample from this many most probable tokens; 0 for all")
    ] = 0
    top_p: Annotated[
        float,
        Field(gt=0, le=1, description="sample from the fewest tokens that reach this probability"),
    ] = 1.0

    @model_validator(mode="after")
    def _fits(self) -> SearchConfig:
        if self.best > self.beam:
            raise ValueError(f"best: {self.best} is more than beam: {self.beam}")
        if self.coverage and self.beam == 1:
            raise ValueError("coverage: chooses among hypotheses; set beam: too")
        if self.temperature and self.beam > 1:
            raise ValueError("temperature: samples one hypothesis of a source; leave beam: out")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k: and top_p: are options of sampling; set temperature: too")
        return self


class SelectConfig(Config):
    """Several outputs of each source are drawn, and the best are kept: those that are most like all
    that were drawn (minimum Bayes risk over samples), and unlike each other."""

    draws: Annotated[int, Field(ge=2, le=1000, description="outputs drawn for each source")] = 20
    keep: Annotated[
        int,
        Field(
            ge=1,
            description="different outputs kept, the best first, in the column best if there are "
            "several",
        ),
    ] = 1
    variety: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="weight of being unlike the outputs that are kept already (maximal "
            "marginal relevance); 0 keeps the best, however alike",
        ),
    ] = 0.0
    temperature: Annotated[float, Field(gt=0, description="of the tokens that are drawn")] = 0.5
    utility: Annotated[
        str,
        Field(
            description="how alike outputs are: ngram_f1 (words and pairs of words), or a function "
            "of your own, package.module:function"
        ),
    ] = "ngram_f1"
    tasks: Annotated[
        list[str], Field(description="only for these tasks; if not given, for all without labels")
    ] = []

    @field_validator("utility")
    @classmethod
    def _known(cls, value: str) -> str:
        resolve("utilities", value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> SelectConfig:
        if self.keep > self.draws:
            raise ValueError(f"keep: {self.keep} is more than draws: {self.draws}")
        if self.variety and self.keep == 1:
            raise ValueError("variety: is among several outputs; set keep: too")
        return self


class WishColumn(Config):
    """A wish of its own for every row."""

    column: Annotated[str, Field(description="column with the value; empty for no wish")]


class WishConfig(Config):
    """What outputs should be: the name of each wish that the model learnt (see wishes in train)
    with its value, or with `{column: NAME}` for every row its own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | int | WishColumn]
    strength: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="how much the wishes weigh against what the model finds likely; 0 is no "
            "wish at all",
        ),
    ] = 1.0

    @model_validator(mode="after")
    def _asks(self) -> WishConfig:
        if not self.wanted:
            raise ValueError("wish: names no wish; for instance {style: formal, strength: 1}")
        return self

    @property
    def wanted(self) -> dict[str, str | WishColumn]:
        """Wish to value, or to where it stands."""
        return {
            wish: value if isinstance(value, WishColumn) else str(value)
            for wish, value in self.__pydantic_extra__.items()
        }


class TradeoffConfig(Config):
    """Every wish that the model knows, met in several strengths, to see what it costs: for the
    report, if score has judges for it."""

    rows: Annotated[int, Field(ge=1, description="rows of each task without labels")] = 200
    strengths: Annotated[
        list[Annotated[float, Field(gt=0, le=100)]],
        Field(min_length=1, description="strengths to compare"),
    ] = [0.5, 1.0, 2.0, 4.0]
    draws: Annotated[
        int,
        Field(
            ge=2,
            le=1000,
            description="outputs drawn for each row: without a wish, of which the judge may pick "
            "one, and with it, of which one is selected",
        ),
    ] = 5
    temperature: Annotated[float, Field(gt=0, description="of the draws")] = 0.5


class OwnSource(Config):
    """A source of your own; file paths are relative to the pipeline file's folder."""

    task: Annotated[str | None, Field(description="which task, if the model has several")] = None
    text: Annotated[str | None, Field(description="text")] = None

    @property
    def files(self) -> dict[str, str]:
        """The path of each modality that is given, except text."""
        paths = {name: getattr(self, name) for name in MEDIA}
        return {name: path for name, path in paths.items() if path is not None}


PATHS: dict[str, Any] = {
    name: (str | None, Field(None, description=f"path of a {modality.title}"))
    for name, modality in MEDIA.items()
}
PromptConfig: type[OwnSource] = create_model(
    "PromptConfig", __base__=OwnSource, __doc__=OwnSource.__doc__, __module__=__name__, **PATHS
)
"""With a path for every modality."""


class GenerateConfig(Config):
    """What is decoded, and with which execution providers."""

    split: Annotated[
        Literal["train", "valid", "test"], Field(description="the rows to generate for")
    ] = "test"
    providers: Annotated[
        list[Literal["tensorrt", "cuda", "cpu"]],
        Field(
            min_length=1, description="execution providers, preferred first; an error if none loads"
        ),
    ] = ["cuda", "cpu"]
    batch_tokens: Annotated[
        int,
        Field(ge=1, description="most padded source tokens in a batch; with a beam, × 2 / beam"),
    ] = 2048
    search: Annotated[SearchConfig, Field(description="how outputs are searched for")] = (
        SearchConfig()
    )
    select: Annotated[
        SelectConfig | None,
        Field(description="draw several outputs and keep the best, instead of searching"),
    ] = None
    wish: Annotated[
        WishConfig | None,
        Field(description="what outputs should be, for a model that learnt wishes"),
    ] = None
    score_references: Annotated[
        bool, Field(description="also score the references: perplexity and token accuracy")
    ] = True
    top: Annotated[
        int, Field(ge=1, description="labels kept with their probabilities, for tasks with labels")
    ] = 5
    diversity: Annotated[
        DiversityConfig | None, Field(description="also generate several outputs for some rows")
    ] = None
    tradeoff: Annotated[
        TradeoffConfig | None,
        Field(
            description="also meet each wish that the model learnt for some rows, in several "
            "strengths, to see what that costs in quality"
        ),
    ] = None
    prompts: Annotated[
        list[str | SerializeAsAny[PromptConfig]],
        Field(description="sources of your own to generate for and show in the report"),
    ] = []

    @model_validator(mode="after")
    def _one_search(self) -> GenerateConfig:
        if self.select and (self.search.beam > 1 or self.search.temperature):
            raise ValueError(
                "select: draws its outputs itself; leave search.beam and search.temperature out"
            )
        return self
