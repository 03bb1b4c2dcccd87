"""The options of `generate`, as a user writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, create_model, model_validator

from model.modalities.known import MEDIA
from pipelines.stage import Config


class DiversityConfig(Config):
    """Several outputs for each of some rows, to see how quality falls as variety grows."""

    rows: Annotated[int, Field(ge=1, description="rows of each task without labels")] = 100
    samples: Annotated[int, Field(ge=2, description="outputs for each row")] = 5
    latent: Annotated[
        list[float], Field(description="temperatures of the latent variable, tokens being greedy")
    ] = [0.5, 1.0, 2.0]
    sampling: Annotated[
        list[float], Field(description="temperatures of the tokens, the latent at its mean")
    ] = [0.3, 0.6, 1.0]


class SearchConfig(Config):
    """How outputs are searched for; greedily as it stands."""

    beam: Annotated[
        int, Field(ge=1, description="hypotheses of a source that run side by side")
    ] = 1
    length_penalty: Annotated[
        float,
        Field(ge=0, description="scores are divided by (tokens, EOS counted) to this power"),
    ] = 1.0
    coverage: Annotated[
        float,
        Field(
            ge=0,
            description="weight of what is taken off hypotheses that leave parts of their source "
            "unread (GNMT's coverage penalty); it takes graphs exported with attention: true",
        ),
    ] = 0.0
    best: Annotated[
        int, Field(ge=1, description="hypotheses kept of each source, at most as many as run")
    ] = 1
    stop: Annotated[
        Literal["first", "bound"],
        Field(
            description="first: once as many as run have finished, as fairseq does; bound: once "
            "none that runs can get past the worst that is kept"
        ),
    ] = "first"
    minimum: Annotated[int, Field(ge=0, description="fewest tokens of an output")] = 0
    maximum: Annotated[
        int | None,
        Field(
            ge=1, description="most tokens of an output; twice its source's and ten if not given"
        ),
    ] = None
    no_repeat: Annotated[
        int, Field(ge=0, description="no run of so many tokens comes twice in an output; 0 for any")
    ] = 0
    prefix: Annotated[
        str | None, Field(description="column with what each output begins with; may be empty")
    ] = None
    words: Annotated[
        str | None,
        Field(description="file of words or phrases, one a line: no other subwords may be said"),
    ] = None
    temperature: Annotated[
        float,
        Field(
            ge=0, description="draw tokens at this temperature instead, each row by its own seed"
        ),
    ] = 0.0
    top_k: Annotated[
        int, Field(ge=0, description="draw from so many most probable tokens; 0 for all")
    ] = 0
    top_p: Annotated[
        float,
        Field(gt=0, le=1, description="draw from the fewest tokens that reach this probability"),
    ] = 1.0

    @model_validator(mode="after")
    def _fits(self) -> SearchConfig:
        if self.best > self.beam:
            raise ValueError(f"best: {self.best} is more than beam: {self.beam}")
        if self.coverage and self.beam == 1:
            raise ValueError("coverage: chooses among hypotheses; say beam: too")
        if self.temperature and self.beam > 1:
            raise ValueError("temperature: draws one hypothesis of a source; leave beam: out")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k: and top_p: say what is drawn from; say temperature: too")
        return self


class OwnSource(Config):
    """A source of your own; paths of files start in the pipeline file's folder."""

    task: Annotated[str | None, Field(description="which task, where the model has several")] = None
    text: Annotated[str | None, Field(description="text")] = None

    @property
    def files(self) -> dict[str, str]:
        """The path of each modality that is given, but for text."""
        given = {name: getattr(self, name) for name in MEDIA}
        return {name: path for name, path in given.items() if path is not None}


PATHS: dict[str, Any] = {
    name: (str | None, Field(None, description=f"path of a {modality.title}"))
    for name, modality in MEDIA.items()
}
PromptConfig: type[OwnSource] = create_model(
    "PromptConfig", __base__=OwnSource, __doc__=OwnSource.__doc__, __module__=__name__, **PATHS
)
"""With a path for every modality."""


class GenerateConfig(Config):
    """What is decoded, and on what."""

    split: Annotated[
        Literal["train", "valid", "test"], Field(description="the rows to generate for")
    ] = "test"
    providers: Annotated[
        list[Literal["tensorrt", "cuda", "cpu"]],
        Field(
            min_length=1, description="execution providers, the preferred first; none is an error"
        ),
    ] = ["cuda", "cpu"]
    batch_tokens: Annotated[
        int,
        Field(ge=1, description="most padded source tokens in a batch; with a beam 2/size of it"),
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
        DiversityConfig | None, Field(description="also draw several outputs for some rows")
    ] = None
    prompts: Annotated[
        list[str | SerializeAsAny[PromptConfig]],
        Field(description="sources of your own to generate for and show in the report"),
    ] = []
