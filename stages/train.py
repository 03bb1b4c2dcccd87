"""Train: features in, a complete model out; weights, configuration, vocabulary and curve."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from model.configuration import ModelConfig, TrainingConfig
from model.modalities.known import MEDIA
from model.parallel.layout import Layout
from pipelines.contracts.scores import LATENT, WISHES
from pipelines.reading.options import choose
from pipelines.registry import load, names
from pipelines.stage import Config, Context, Input, Inputs, Meter, Result, Stage

if TYPE_CHECKING:
    from model.contract import EncoderDecoder
    from model.modalities.target import TargetCodec
    from model.parallel.team import Team
    from model.training.loop import TrainingState
    from pipelines.contracts.tasks import Task
    from stages.features.feature_set import Rows
    from stages.wishes import Lessons

STRENGTH = "strength"
"""What `wish` in generate calls its strength; so no wish can have this name."""


class WishConfig(Config):
    """Something that outputs can be wished to be."""

    column: Annotated[
        str,
        Field(
            description="column of the records with what each target is; empty where nobody knows"
        ),
    ]
    within: Annotated[
        int,
        Field(
            ge=0,
            description="values are whole numbers, and so far from the wanted one is enough; only "
            "for a head, with tell_wishes: 0",
        ),
    ] = 0


class TrainConfig(TrainingConfig):
    """The model, and how it is trained."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"not": {"required": ["start"]}},
            "then": {"properties": {"steps": {"minimum": 1}}},
        }
    )

    model: Annotated[
        SerializeAsAny[ModelConfig] | None,
        BeforeValidator(lambda value: value if value is None else choose("models", value)),
        Field(
            description="`use:` a registered model or package.module:Config, and its options; "
            "not with start:"
        ),
    ] = None
    parallel: Annotated[
        Layout,
        Field(
            description="processes that train together, a power of 2, up to parts; they change "
            "no byte of the weights, if each has as many threads",
            exclude=True,  # so they are in no fingerprint
        ),
    ] = Layout()
    oversample: Annotated[
        dict[str, dict[str, Annotated[int, Field(ge=1, le=1000)]]],
        Field(
            description="column of the records to value to how often such rows are drawn in an "
            "epoch: {corpus: {textbook: 4}}; other rows are drawn once"
        ),
    ] = {}
    wishes: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")], WishConfig],
        Field(
            description="what outputs can be wished to be, from columns of the records; see wish "
            "in generate"
        ),
    ] = {}
    tell_wishes: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="how often, below 1, training tells the model what a target is, so that it "
            "learns the wishes with everything else; 0: a head learns them afterwards, and the "
            "model stays as it is",
        ),
    ] = 0.5

    @field_validator("wishes")
    @classmethod
    def _free(cls, wishes: dict[str, WishConfig]) -> dict[str, WishConfig]:
        for name in sorted({STRENGTH} & set(wishes)):
            raise ValueError(f"{name!r} is an option of wish in generate; choose another name")
        return wishes

    @property
    def tells(self) -> bool:
        """Whether the model is told wishes; otherwise a head learns them, if there are any."""
        return bool(self.wishes) and self.tell_wishes > 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.steps and (self.model is not None or self.tells or not self.wishes):
            raise ValueError("steps: 0 needs start:, wishes: and tell_wishes: 0, for a head")
        self.parallel.check(self.parts)
        for wish, asked in self.wishes.items():
            if asked.within and self.tells:
                raise ValueError(
                    f"wishes.{wish}: within is for a head: say tell_wishes: 0 too, or leave it out"
                )
        return self


class Train(Stage[TrainConfig]):
    """Trains an encoder–decoder; a killed run resumes to the same weights."""

    inputs = {
        "features": Input("features", "of text (with targets), images and audio", many=True),
        "start": Input("model", "to continue to train, instead of a new one", optional=True),
    }
    output = "model"
    libraries = (
        "torch",
        "numpy",
        "sacrebleu",
        "sentencepiece",
        "safetensors",
    )
    seeded = True

    def check(self, given: Collection[str]) -> None:
        if (self.config.model is None) == ("start" not in given):
            raise ValueError("set model: for a new model, or start: to train one further")

    def plugins(self) -> Sequence[str]:
        if self.config.model is None:
            # The model says which network it is; before the model exists, it can be any.
            known = [load(target) for target in names("models").values()]
        else:
            known = [type(self.config.model)]
        return [
            *(kind.network for kind in known),
            *(f"{kind.__module__}:{kind.__name__}" for kind in known),
            *(modality.embedding for modality in MEDIA.values()),
        ]

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.parallel.team import Team

        if self.config.parallel.processes > 1:
            from stages.together import together

            return together(self, self.config.parallel, context, inputs)
        return self.work(context, inputs, Team())

    def work(self, context: Context, inputs: Inputs, team: Team) -> Result:
        """The share of one process of a team."""
        with _torch_settings(context.threads, context.seed):
            return self.train(context, inputs, team)

    def train(self, context: Context, inputs: Inputs, team: Team) -> Result:
        from model.contract import parameter_count
        from model.modalities.sources import are_same
        from model.saved.folder import build, load_model, save_model
        from model.training.loop import Trainer, best_device
        from pipelines.contracts.tasks import in_json
        from pipelines.store.files import write_json
        from pipelines.store.shared import OWN
        from stages.corpus import Corpus, Wanted
        from stages.features.feature_set import FeatureSet

        config = self.config
        features = FeatureSet.of(inputs["features"])
        processor = features.processor
        if config.model is None:
            model, settings, made_for = load_model(inputs["start"][0].folder)
            if not are_same(made_for.sizes, processor.sizes):
                raise ValueError(
                    "start: was made for different features; give the text stage the same model: "
                    "too"
                )
        else:
            model, settings = build(config.model, processor.sizes), config.model
        corpus = Corpus.of(
            features,
            context.scratch / OWN / "rows",
            Wanted(
                longest=settings.max_length,
                mix=config.mix,
                oversample=config.oversample,
                columns=sorted({asked.column for asked in config.wishes.values()}),
            ),
            team,
        )
        train, valid = corpus.train, corpus.validation
        for split, missing in corpus.missing.items():
            if missing:
                context.progress.say(
                    f"{missing:,} {split} rows are left out, because a picture or sound was "
                    "rejected"
                )
        if model.wishes and not config.wishes:
            context.progress.say("what the model to start with knows of wishes is left out")
        model.future = None  # that of a model to start with was made for other states
        if not config.tells:
            model.wish_embedding = None
        lessons: Lessons | None = None
        if config.wishes:
            from model.training.telling import decoder_width, prepare
            from stages.wishes import Lessons

            lessons = Lessons.of(config, {"train": train, "valid": valid}, corpus.tables)
            if config.tells:
                prepare(model, lessons.wishes)
                train = replace(train, told=lessons.told(config.tell_wishes))
            else:
                decoder_width(model)  # says whether a head can be trained
        device = best_device()
        trainer = Trainer(
            model,
            config,
            train,
            valid,
            seed=context.seed,
            device=device,
            scratch=context.scratch,
            score=_score(corpus.valid, features.tasks, processor.target)
            if config.select == "score"
            else None,
            saved=context.keep,
            team=team,
        )
        context.progress.say(
            f"{parameter_count(model):,} parameters, {len(train):,} training rows with "
            f"{int(train.target.offsets[-1]):,} target tokens, {trainer.precision} on {device}"
        )
        curve: list[dict[str, float]] = []
        if config.steps:
            with context.progress.meter("trains", config.steps, "steps") as meter:
                curve = trainer.run(lambda progress: _show(progress, meter))
        model = trainer.whole_model
        if not team.leads:
            return Result(rows_in=0, rows=0)
        if lessons is not None and not config.tells:
            known = lessons.teach(
                model, config, processor.sizes["target"], context.seed, context.progress
            )
            write_json(context.output / WISHES, [each.to_json() for each in known])
        save_model(context.output, settings, model, processor)
        write_json(context.output / "curve.json", curve)
        if model.latent:
            from stages.latent import exchanges

            found = exchanges(model, corpus.valid, features.tasks, processor.target)
            write_json(context.output / LATENT, [each.to_json() for each in found])
        used = len(train) + len(valid)
        return Result(
            rows_in=used,
            rows=used,
            properties={
                "tasks": in_json(features.tasks),
                "sizes": processor.sizes,
                "wishes": dict(model.wishes.values),
                "parameters": parameter_count(model),
                "steps": trainer.progress.step,
            },
        )


@contextmanager
def _torch_settings(threads: int, seed: int) -> Iterator[None]:
    """PyTorch's threads and random numbers, which belong to the whole process; put back after."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def _show(progress: TrainingState, meter: Meter) -> None:
    note = ""
    if progress.curve:
        last = progress.curve[-1]
        note = f"loss {last['train_loss']:.3f}, validation {last['valid_loss']:.3f}"
        if "valid_score" in last:
            note += f", score {last['valid_score']:.1f}"
    meter.reach(progress.step, note)


def _score(
    rows: Rows, tasks: Mapping[str, Task], target: TargetCodec
) -> Callable[[EncoderDecoder], dict[str, float]]:
    """A function that scores each task on validation rows, with the mean over tasks."""
    from exports.decoding.torch_stepper import TorchStepper
    from stages.validation import Validation

    validation = Validation(rows, tasks, target)

    def score(model: EncoderDecoder) -> dict[str, float]:
        scores = validation.scores(TorchStepper(model), model.max_length)
        named = {f"valid_{name}": value for name, value in scores.items()}
        return {**named, "valid_score": sum(scores.values()) / len(scores)}

    return score
