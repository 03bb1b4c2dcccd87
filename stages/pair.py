"""Pair: a picture and a sound that mean the same, together and each alone, clean and with noise.

With them, a model that fuses both can be trained, and compared with each modality alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from model.modalities.media import Row
from pipelines.contracts.tasks import TaskName
from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

if TYPE_CHECKING:
    import polars as pl

    from stages.rows.rejects import Reject

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
VIEWS = (("image",), ("audio",), ("image", "audio"))


class ConditionConfig(Config):
    """How much noise is added to each half."""

    image: Annotated[
        float | None,
        Field(gt=0, description="Gaussian noise: its standard deviation as a share of the range"),
    ] = None
    audio: Annotated[
        float | None, Field(description="white noise, as a signal-to-noise ratio in dB")
    ] = None


class PairConfig(Config):
    """Which rows are paired, and with how much noise."""

    column: Annotated[str, Field(description="rows with the same value here can be paired")] = (
        "target"
    )
    task: Annotated[TaskName, Field(description="name of the task, in the records and the scores")]
    pairs: Annotated[
        dict[Split, int], Field(description="number of pairs of each split, from rows of it")
    ]
    conditions: Annotated[
        dict[str, ConditionConfig],
        Field(
            min_length=1,
            description="name to noise; each training pair gets one of them, other pairs all",
        ),
    ] = {"clean": ConditionConfig()}
    labels: Annotated[
        bool, Field(description="whether the targets are the labels of a classification")
    ] = True
    languages: Annotated[
        dict[Literal["target"], str], Field(description="language code of the target")
    ] = {}
    shards: Annotated[int, Field(ge=1, le=99999, description="files the rows are spread over")] = 4

    @field_validator("pairs")
    @classmethod
    def _positive(cls, value: dict[str, int]) -> dict[str, int]:
        if not value or min(value.values()) < 0:
            raise ValueError("must say how many pairs each split has")
        return value


class Pair(Stage[PairConfig]):
    """Pairs pictures with sounds of the same target; writes each pair whole and as each half."""

    inputs = {"records": Input("records", "rows with pictures and rows with sounds", many=True)}
    output = "records"
    libraries = ("opencv-python", "soundfile", "polars")
    seeded = True

    def tasks(self) -> Collection[str]:
        return (self.config.task,)

    def run(self, context: Context, inputs: Inputs) -> Result:
        import polars as pl

        from stages.rows.records import TaskOptions, publish_records
        from stages.rows.rejects import Reject
        from stages.rows.shards import read_rows

        config = self.config
        everything = pl.concat([read_rows(source) for source in inputs["records"]], how="diagonal")
        for name in ("image", "audio", config.column):
            if name not in everything.columns:
                raise ValueError(f"no row of the records has {name}")
        rows: list[Row] = []
        rejects: list[Reject] = []
        for split in SPLITS:
            for row in self.split(everything.filter(split=split), split, context.seed):
                (rejects if isinstance(row, Reject) else rows).append(row)  # type: ignore[arg-type]
        if not rows:
            why = f": {rejects[0].reason}, {rejects[0].detail}" if rejects else ""
            raise ValueError(f"no pair could be made{why}")
        schema = {"image": pl.Binary, "audio": pl.Binary}
        table = pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)
        tasks = {config.task: TaskOptions(dict(config.languages.items()), config.labels)}
        return publish_records(context, table, tasks, config.shards, rejects)

    def split(self, rows: pl.DataFrame, split: Split, seed: int) -> Iterator[Row | Reject]:
        """The rows of one split: its pairs under their conditions, each in all views; a reject for
        a condition in which a picture or sound of the pair cannot be used."""
        import polars as pl

        from model.modalities.media import MediaError, seeded
        from stages.rows.rejects import Reject

        config = self.config
        wanted = config.pairs.get(split, 0)
        ordered = rows.filter(pl.col(config.column).is_not_null()).sort("id")
        pictures, sounds = (
            # A sound can belong to several tasks, with a different target in each.
            ordered.filter(pl.col(name).is_not_null()).unique(
                [name, config.column], keep="first", maintain_order=True
            )
            for name in ("image", "audio")
        )
        values = sorted(set(pictures[config.column]) & set(sounds[config.column]))
        if wanted and not values:
            raise ValueError(
                f"no {split} row with a picture has the same {config.column} as one with a sound"
            )
        groups = {
            value: [part.filter(pl.col(config.column) == value) for part in (pictures, sounds)]
            for value in values
        }
        orders = {
            value: [
                seeded(seed, "order", split, value, side).permutation(len(part))
                for side, part in enumerate(parts)
            ]
            for value, parts in groups.items()
        }
        for number in range(wanted):
            random = seeded(seed, "pair", split, number)
            turn, index = divmod(number, len(values))
            value = values[index]
            # A row is used again only after all rows of its kind were used.
            image, audio = (
                part.row(int(order[turn % len(order)]), named=True)
                for part, order in zip(groups[value], orders[value], strict=True)
            )
            names = list(config.conditions)
            if split == "train":
                names = [names[int(random.integers(len(names)))]]
            for name in names:
                try:
                    yield from list(self.views(image, audio, split, number, name, random))
                except MediaError as error:
                    yield Reject(
                        position=f"{image['position']} with {audio['position']}",
                        stage="pair",
                        reason=error.reason,
                        detail=error.detail,
                    )

    def views(
        self,
        image: Row,
        audio: Row,
        split: Split,
        number: int,
        condition: str,
        random: Any,
    ) -> Iterator[Row]:
        from model.modalities.audio import files as sounds
        from model.modalities.image import files as pictures
        from stages.rows.records import row_id

        config = self.config
        noise = config.conditions[condition]
        files: dict[str, bytes] = {"image": image["image"], "audio": audio["audio"]}
        if noise.image is not None:
            files["image"] = pictures.with_noise(files["image"], noise.image, random)
        if noise.audio is not None:
            files["audio"] = sounds.with_noise(files["audio"], noise.audio, random)
        for view in VIEWS:
            held = {name: files[name] if name in view else None for name in files}
            yield {
                # A half without noise is the same in several conditions; each is scored.
                "id": row_id(
                    config.task, image["target"], f"{split} {number}", condition, *held.values()
                ),
                "split": split,
                "task": config.task,
                **held,
                "target": image["target"],
                "position": f"{image['position']} with {audio['position']}",
                "condition": condition,
                "voice": audio.get("voice"),
            }
