"""The pictures, texts and recordings of Tux Paint's stamps, as records.

This stage belongs to the example, and shows how to write your own. Debian's package
tuxpaint-stamps-default has about 950 stamps in folders by category: a picture, a description in
about a hundred languages, and recordings of the spoken description, about 900 each in six
languages. GPL-2.

The recordings do not name their speakers. Most languages have one speaker throughout; where the
files of a language come from several recording sessions (another encoder, another number of
channels), all sessions but the largest are kept for the test split, marked "unheard".
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from pipelines.stage import Config, Context, Inputs, Result, Stage
from stages.rows.records import TaskOptions, publish_records, row_id

INSTALL = "sudo apt-get install tuxpaint-stamps-default"
LANGUAGES = {
    "fr": "French",
    "ru": "Russian",
    "ro": "Romanian",
    "ca": "Catalan",
    "bg": "Bulgarian",
    "es": "Spanish",
    "be": "Belarusian",
    "el": "Greek",
}
ENCODER = re.compile(rb"Xiph\.Org libVorbis I \d+")
VIEWS = (("image",), ("audio",), ("image", "audio"))


class StampsConfig(Config):
    """Selects one of three tasks."""

    task: Annotated[
        Literal["language", "category", "describe"],
        Field(
            description="language: which language is spoken; category: the folder of the picture; "
            "describe: picture and French speech to an English and a Chinese description, together "
            "and each alone"
        ),
    ]
    folder: Annotated[str, Field(description="where the stamps are installed")] = (
        "/usr/share/tuxpaint/stamps"
    )
    valid: Annotated[float, Field(gt=0, lt=1, description="share of descriptions")] = 0.05
    test: Annotated[float, Field(gt=0, lt=1, description="share of descriptions")] = 0.15
    smallest: Annotated[
        int, Field(ge=2, description="pictures that a category must have to be asked for")
    ] = 20
    shards: Annotated[int, Field(ge=1, description="files the rows are spread over")] = 8


class Stamp:
    """One stamp: its description in English and Chinese, its picture, its recordings."""

    def __init__(self, text: Path, root: Path) -> None:
        self.name = str(text.relative_to(root).with_suffix(""))
        self.category = Path(self.name).parts[0]
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        self.english = " ".join(lines[0].split()) if lines else ""
        translations = dict(line.split("=", 1) for line in lines[1:] if "=" in line)
        self.chinese = translations.get("zh_CN.utf8", "").strip()
        picture = text.with_suffix(".png")
        self.picture = picture if picture.is_file() else None
        paths = {code: text.with_name(f"{text.stem}_desc_{code}.ogg") for code in LANGUAGES}
        self.recordings = {code: path for code, path in paths.items() if path.is_file()}

    @property
    def place(self) -> float:
        """Position of the description between 0 and 1; equal texts have equal positions."""
        return int(hashlib.blake2b(self.english.encode(), digest_size=8).hexdigest(), 16) / 2**64


class Stamps(Stage[StampsConfig]):
    """Makes records of Tux Paint's stamps; no description is in two splits."""

    output = "records"
    libraries = ("polars", "soundfile")

    def stamps(self) -> list[Stamp]:
        root = Path(self.config.folder)
        if not root.is_dir():
            raise ValueError(
                f"there are no stamps in {root}; install them: {INSTALL}; or set folder: to where "
                "they are"
            )
        stamps = [Stamp(path, root) for path in sorted(root.rglob("*.txt"))]
        return [stamp for stamp in stamps if stamp.english]

    def outside(self, base: Path) -> Iterator[tuple[str, str]]:
        root = Path(self.config.folder)
        for stamp in self.stamps():
            for path in filter(None, [stamp.picture, *stamp.recordings.values()]):
                yield str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()
            yield f"{stamp.name}.txt", content_of(stamp)

    def split(self, stamp: Stamp) -> str:
        if stamp.place < self.config.test:
            return "test"
        return "valid" if stamp.place < self.config.test + self.config.valid else "train"

    def run(self, context: Context, inputs: Inputs) -> Result:
        stamps = self.stamps()
        classes = TaskOptions({"target": "en"}, labels=True)
        if self.config.task == "language":
            rows, tasks = self.language(stamps), {"language": classes}
        elif self.config.task == "category":
            rows, tasks = self.category(stamps), {"category": classes}
        else:
            rows = self.describe(stamps)
            tasks = {
                "describe-en": TaskOptions({"target": "en"}),
                "describe-zh": TaskOptions({"target": "zh"}),
            }
        schema = {"image": pl.Binary, "audio": pl.Binary}
        table = pl.DataFrame(list(rows), schema_overrides=schema)
        # Some stamps share a picture or a recording with another.
        table = table.unique("id", keep="first", maintain_order=True)
        return publish_records(context, table, tasks, self.config.shards)

    def row(
        self,
        stamp: Stamp,
        task: str,
        target: str,
        image: Path | None = None,
        audio: Path | None = None,
        **free: str,
    ) -> dict[str, Any]:
        media = {
            "image": image.read_bytes() if image else None,
            "audio": audio.read_bytes() if audio else None,
        }
        return {
            "id": row_id(task, target, media["image"], media["audio"]),
            "split": self.split(stamp),
            "task": task,
            **media,
            "target": target,
            "position": stamp.name,
            "category": stamp.category,
            **free,
        }

    def language(self, stamps: list[Stamp]) -> Iterator[dict[str, Any]]:
        for code, name in LANGUAGES.items():
            spoken = [stamp for stamp in stamps if code in stamp.recordings]
            sessions = [session(stamp.recordings[code]) for stamp in spoken]
            largest = Counter(sessions).most_common(1)[0][0] if sessions else None
            for stamp, own_session in zip(spoken, sessions, strict=True):
                speaker = "heard" if own_session == largest else "unheard"
                path = stamp.recordings[code]
                row = self.row(stamp, "language", name, audio=path, session=speaker)
                if speaker == "unheard":
                    row["split"] = "test"
                yield row

    def category(self, stamps: list[Stamp]) -> Iterator[dict[str, Any]]:
        pictured = [stamp for stamp in stamps if stamp.picture]
        sizes = Counter(stamp.category for stamp in pictured)
        for stamp in pictured:
            if sizes[stamp.category] >= self.config.smallest:
                yield self.row(stamp, "category", stamp.category, image=stamp.picture)

    def describe(self, stamps: list[Stamp]) -> Iterator[dict[str, Any]]:
        for stamp in stamps:
            if not stamp.picture or "fr" not in stamp.recordings:
                continue
            picture, recording = stamp.picture, stamp.recordings["fr"]
            for task, target in (("describe-en", stamp.english), ("describe-zh", stamp.chinese)):
                for view in VIEWS if target else ():
                    yield self.row(
                        stamp,
                        task,
                        target,
                        image=picture if "image" in view else None,
                        audio=recording if "audio" in view else None,
                    )


def content_of(stamp: Stamp) -> str:
    return hashlib.sha256(f"{stamp.english}\0{stamp.chinese}".encode()).hexdigest()


def session(path: Path) -> str:
    """Identifies a recording session by its encoder, rate and channels."""
    import soundfile

    with path.open("rb") as file:
        encoder = ENCODER.search(file.read(4096))
    facts = soundfile.info(path)
    return f"{encoder[0].decode() if encoder else ''} {facts.samplerate} {facts.channels}"
