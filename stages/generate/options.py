"""The options of `generate`, as a user writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, create_model, model_validator

from model.modalities.known import MEDIA
from pipelines.stage import Config


class DiversityConfig(Config):
    """Several outputs for each of some rows, to see how quality falls as diversity grows."""

    rows: Annotated[int, Field(ge=1, description="rows of each task without labels")] = 100
    samples: Annotated[int, Field(ge=2, description="outputs for each row")] = 5
    latent: Annotated[
        list[float], Field(description="temperatures of the latent variable, with greedy tokens")
    ] = [0.5, 1.0, 2.0]
    sampling: Annotated[
        list[float], Field(description="temperatures of the tokens, with the latent at its mean")
    ] = [0.3, 0.6, 1.0]


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
        Literal["first", "bound"],
        Field(
            description="when to stop; first: as many hypotheses as the beam size have finished, "
            "as in fairseq; bound: no unfinished hypothesis can beat the worst that is kept"
        ),
    ] = "first"
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
    score_references: Annotated[
        bool, Field(description="also score the references: perplexity and token accuracy")
    ] = True
    top: Annotated[
        int, Field(ge=1, description="labels kept with their probabilities, for tasks with labels")
    ] = 5
    diversity: Annotated[
        DiversityConfig | None, Field(description="also generate several outputs for some rows")
    ] = None
    prompts: Annotated[
        list[str | SerializeAsAny[PromptConfig]],
        Field(description="sources of your own to generate for and show in the report"),
    ] = []
