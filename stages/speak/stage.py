"""Speak: words in, synthetic speech out, by eSpeak NG; many voices, rates and pitches, with noise.

Synthetic speech does not measure how well people are understood: it is for trying things out, and
for tests. Voices are split, so that no test voice occurs in training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from model.modalities.media import Row
from pipelines.contracts.tasks import TaskName
from pipelines.stage import Config, Context, Inputs, Result, Stage

if TYPE_CHECKING:
    from stages.speak.espeak import Engine

Split = Literal["train", "valid", "test"]


class SpeakConfig(Config):
    """What is spoken, by which voices, and how."""

    words: Annotated[
        dict[str, str], Field(min_length=1, description="word to speak, to its meaning")
    ]
    voice: Annotated[str, Field(description="voice of eSpeak NG: a language")] = "cmn"
    variants: Annotated[
        dict[Split, list[str]],
        Field(description="voice variants of eSpeak NG for each split"),
    ]
    takes: Annotated[int, Field(ge=1, description="times that each voice speaks each word")] = 1
    rate: Annotated[tuple[int, int], Field(description="words per minute, drawn between these")] = (
        130,
        220,
    )
    pitch: Annotated[
        tuple[int, int], Field(description="pitch from 0 to 99, drawn between these")
    ] = (30, 70)
    noise: Annotated[
        tuple[float, float],
        Field(description="white noise: signal-to-noise ratio in dB, drawn between these"),
    ] = (15.0, 40.0)
    sample_rate: Annotated[int, Field(ge=8000, description="Hz of the recordings")] = 16_000
    tasks: Annotated[
        dict[TaskName, Literal["spoken", "meaning"]],
        Field(min_length=1, description="task to its target: the spoken word, or its meaning"),
    ]
    languages: Annotated[
        dict[Literal["spoken", "meaning"], str], Field(description="language codes of both")
    ] = {}
    shards: Annotated[int, Field(ge=1, le=99999, description="files the rows are spread over")] = 4

    @model_validator(mode="after")
    def _apart(self) -> SpeakConfig:
        seen: dict[str, str] = {}
        for split, variants in self.variants.items():
            for variant in variants:
                if variant in seen:
                    raise ValueError(f"variants: {variant} is in {seen[variant]} and in {split}")
                seen[variant] = split
        return self


class Speak(Stage[SpeakConfig]):
    """Makes records of synthetic speech with eSpeak NG; no voice is in two splits."""

    output = "records"
    libraries = ("espeakng-loader", "soundfile", "soxr", "polars")
    seeded = True

    def tasks(self) -> Collection[str]:
        return tuple(self.config.tasks)

    def run(self, context: Context, inputs: Inputs) -> Result:
        import polars as pl

        from stages.rows.records import TaskOptions, publish_records
        from stages.speak.espeak import Engine

        config = self.config
        speakers = [(split, voice) for split, names in config.variants.items() for voice in names]
        total = len(speakers) * len(config.words) * config.takes
        with context.progress.meter("speaks", total, "words") as meter:
            rows: list[Row] = []
            for split, variant in speakers:
                with Engine() as engine:
                    rows += self.rows(engine, context.seed, split, variant)
                meter.advance(len(config.words) * config.takes)
        table = pl.DataFrame(rows, schema_overrides={"audio": pl.Binary})
        # Two takes can be identical; one of them is enough.
        table = table.unique("id", keep="first", maintain_order=True)
        tasks = {
            task: TaskOptions(
                {"target": config.languages[side]} if side in config.languages else {}
            )
            for task, side in config.tasks.items()
        }
        return publish_records(context, table, tasks, config.shards)

    def rows(self, engine: Engine, seed: int, split: str, variant: str) -> Iterator[Row]:
        """Every word by one voice, once for each task and take."""
        from model.modalities.media import seeded
        from stages.rows.records import row_id

        config = self.config
        for word, meaning in config.words.items():
            for take in range(config.takes):
                random = seeded(seed, "speak", variant, word, take)
                rate = int(random.integers(config.rate[0], config.rate[1] + 1))
                pitch = int(random.integers(config.pitch[0], config.pitch[1] + 1))
                ratio = float(random.uniform(*config.noise))
                sound = self.recording(engine, word, variant, rate, pitch, ratio, random)
                for task, side in config.tasks.items():
                    target = word if side == "spoken" else meaning
                    yield {
                        "id": row_id(task, target, sound),
                        "split": split,
                        "task": task,
                        "audio": sound,
                        "target": target,
                        "position": f"espeak:{config.voice}+{variant}:{word}#{take}",
                        "voice": variant,
                        "word": word,
                    }

    def recording(
        self,
        engine: Engine,
        word: str,
        variant: str,
        rate: int,
        pitch: int,
        noise: float,
        random: Any,
    ) -> bytes:
        """A FLAC file of one word."""
        import soxr

        from model.modalities.audio.files import add_noise, encode

        config = self.config
        samples, spoken_rate = engine.synthesize(word, f"{config.voice}+{variant}", rate, pitch)
        samples = soxr.resample(samples, spoken_rate, config.sample_rate, quality="HQ")
        return encode(add_noise(samples, noise, random), config.sample_rate)
