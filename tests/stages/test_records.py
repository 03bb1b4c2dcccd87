"""Records with pictures and sounds: from tables and folders, spoken, and paired."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import soundfile
from pydantic import ValidationError

from model.modalities.image.files import decode
from model.modalities.image.settings import ImageSettings
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.running.executor import check_accounts
from pipelines.stage import Context, Stage
from pipelines.store.artifacts import Artifact, loose_artifact
from pipelines.store.remembered import Memory
from stages.ingest.options import IngestConfig
from stages.ingest.stage import Ingest
from stages.pair import Pair, PairConfig
from stages.rows.tasks import joined_tasks
from stages.speak.espeak import Engine
from stages.speak.stage import Speak, SpeakConfig
from stages.svc import Svc, SvcConfig


class Made:
    def __init__(self, stage: Stage, folder: Path, inputs: dict[str, Any]) -> None:
        number = len(list(folder.glob("out-*")))
        self.output, scratch = folder / f"out-{number}", folder / f"scratch-{number}"
        self.output.mkdir()
        scratch.mkdir()
        events = Events(None)
        context = Context("made", 3, folder, self.output, scratch, 1, events, BeamJobs({}, events))
        self.result = stage.run(context, inputs)
        check_accounts("made", self.result, self.output)
        tables = [pl.read_parquet(path) for path in sorted(self.output.glob("rows/*"))]
        self.rows = pl.concat(tables).sort("id")
        rejected = [pl.read_parquet(path) for path in sorted(self.output.glob("rejected/*"))]
        self.rejected = dict(pl.concat(rejected).select("position", "reason").iter_rows())

    @property
    def artifact(self) -> Artifact:
        return loose_artifact(
            self.output,
            rows=len(self.rows),
            digest=self.output.name.ljust(64, "0"),
            properties=self.result.properties,
        )


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., Made]:
    def run(**options: Any) -> Made:
        config = IngestConfig.model_validate({"max_rejected": 1.0, "shards": 2} | options)
        return Made(Ingest(config), tmp_path, {})

    return run


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    data: bytes = cv2.imencode(".png", pixels)[1].tobytes()
    return data


def sound(seed: int) -> bytes:
    stream = io.BytesIO()
    samples = 0.1 * np.random.default_rng(seed).standard_normal(4000)
    soundfile.write(stream, samples, 16_000, format="WAV")
    return stream.getvalue()


def test_a_table_names_its_files(tmp_path: Path, ingest: Callable[..., Made]) -> None:
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    for n in range(4):
        (folder / "pictures" / f"{n}.png").write_bytes(picture(n))
    (folder / "same.png").write_bytes(picture(0))
    (folder / "a.wav").write_bytes(sound(0))
    (folder / "large.png").write_bytes(picture(9) + b"\0" * 20_000)
    lines = [
        "words\tpicture\tsound\tsaid",
        "one\tpictures/0.png\t\tfirst",
        "\tpictures/1.png\ta.wav\tsecond",
        "\t\ta.wav\tthird",
        "four\t\t\tfourth",
        "\tlost.png\t\tfifth",
        "\t\t\tsixth",
        "\tlarge.png\t\tseventh",
        "one\tsame.png\t\tfirst",
        "\tpictures/2.png\t\t",
    ]
    (folder / "table.tsv").write_text("\n".join(lines) + "\n")
    columns = {"text": "words", "image": "picture", "audio": "sound", "target": "said"}
    ingested = ingest(source="data/table.tsv", columns=columns, max_file_bytes=10_000)
    kinds = dict(ingested.rows.select("target", "modalities").iter_rows())
    assert kinds == {
        "first": "text+image", "second": "image+audio", "third": "audio", "fourth": "text",
    }  # fmt: skip
    row = ingested.rows.filter(target="second").row(0, named=True)
    assert row["image"] == picture(1) and row["audio"] == sound(0) and row["text"] is None
    assert ingested.rejected == {
        "data/table.tsv:6": "image file not found",
        "data/table.tsv:7": "empty text",
        "data/table.tsv:8": "image file too large",
        "data/table.tsv:9": "duplicate",
        "data/table.tsv:10": "empty target",
    }
    facts = ingested.result.properties["tasks"]["translate"]
    assert facts["modalities"] == ["audio", "image+audio", "text", "text+image"]


def test_what_a_result_depends_on_are_the_files_too(
    tmp_path: Path, ingest: Callable[..., Made]
) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "t.csv").write_text("image,target\na.png,x\nlost.png,y\n")
    config = {"source": "t.csv", "columns": {"image": "image", "target": "target"}}
    stage = Ingest(IngestConfig.model_validate(config))
    memory = Memory(tmp_path / "store")
    before = dict(memory.digests(stage.outside(tmp_path), ""))
    assert list(before) == ["t.csv", "media a.png", "media lost.png"]
    assert before["media lost.png"] == "missing"
    (tmp_path / "a.png").write_bytes(picture(1))
    after = dict(memory.digests(stage.outside(tmp_path), ""))
    assert {name for name in before if before[name] != after[name]} == {"media a.png"}


def test_a_folder_of_files_needs_no_table(tmp_path: Path, ingest: Callable[..., Made]) -> None:
    for n, name in enumerate(["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.jpg", "owl/e.png"]):
        path = tmp_path / "zoo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))
    columns = {"image": "path", "target": "folder", "file": "name"}
    ingested = ingest(source="zoo/*/*", format="files", columns=columns, labels=["cat", "dog"])
    assert sorted(ingested.rows.select("target", "file").rows()) == [
        ("cat", "a"), ("cat", "b"), ("dog", "c"), ("dog", "d"),
    ]  # fmt: skip
    assert ingested.rejected == {"zoo/owl/e.png": "target is no label"}
    assert ingested.result.properties["tasks"]["translate"]["labels"] == ["cat", "dog"]
    labelled = ingest(source="zoo/*/*.png", columns=columns, labels=True)
    assert labelled.result.properties["tasks"]["translate"]["labels"] == ["cat", "dog", "owl"]


def test_bytes_in_parquet_as_hugging_face_has_them(
    tmp_path: Path, ingest: Callable[..., Made]
) -> None:
    rows = [
        {"image": {"bytes": picture(n), "path": f"{n}.png"}, "caption": f"picture {n}"}
        for n in range(3)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "p.parquet")
    ingested = ingest(source="p.parquet", columns={"image": "image", "target": "caption"})
    assert set(ingested.rows["image"]) == {picture(n) for n in range(3)}


def test_pixels_in_cells_become_pictures(tmp_path: Path, ingest: Callable[..., Made]) -> None:
    lines = ["0,8,16,0,1", "16,16,16,16,2", "1,2,x,3,1", "1,2,99,3,1", "0,0,0,0,7"]
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    ingested = ingest(
        source="p.csv",
        header=False,
        columns={"target": 5},
        pixels={"columns": "1-4", "width": 2, "maximum": 16},
        replace={"target": {"1": "one", "2": "two"}},
    )
    pictures = {row["target"]: row["image"] for row in ingested.rows.iter_rows(named=True)}
    decoded = decode(pictures["one"], ImageSettings(resize=100))
    assert decoded[..., 0].tolist() == [[0, 128], [255, 0]]
    assert ingested.rejected == {
        "p.csv:3": "not pixels", "p.csv:4": "not pixels", "p.csv:5": "target has no replacement",
    }  # fmt: skip


def test_the_same_picture_is_in_the_same_split_whatever_is_asked(
    tmp_path: Path, ingest: Callable[..., Made]
) -> None:
    for n in range(60):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    for language in ("en", "zh"):
        lines = ["file\tname", *(f"{n}.png\t{language} {n}" for n in range(60))]
        (tmp_path / f"{language}.tsv").write_text("\n".join(lines) + "\n")
    columns = {"image": "file", "target": "name"}
    english, chinese = (
        ingest(source=f"{name}.tsv", task=name, columns=columns, split={"test": 0.3}).rows
        for name in ("en", "zh")
    )
    splits = [dict(rows.select("image", "split").iter_rows()) for rows in (english, chinese)]
    assert splits[0] == splits[1] and set(splits[0].values()) == {"train", "test"}
    assert not set(english["id"]) & set(chinese["id"])


def test_a_source_must_be_named() -> None:
    with pytest.raises(ValidationError, match="must say where text, image, audio"):
        IngestConfig.model_validate({"source": "a.tsv", "columns": {"target": "x"}})


WORDS = {"七": "seven", "八": "eight"}


def spoken(tmp_path: Path, **options: Any) -> Made:
    variants = {"train": ["f1", "m1", "m2"], "valid": ["f3"], "test": ["m3"]}
    tasks = {"transcribe": "spoken", "interpret": "meaning"}
    config = {"words": WORDS, "variants": variants, "tasks": tasks, "shards": 2} | options
    return Made(Speak(SpeakConfig.model_validate(config)), tmp_path, {})


def test_words_are_spoken_by_voices_of_one_split_each(tmp_path: Path) -> None:
    speech = spoken(tmp_path, takes=2)
    assert len(speech.rows) == 5 * 2 * 2 * 2
    voices = speech.rows.group_by("voice").agg(pl.col("split").unique())
    assert voices["split"].list.len().max() == 1
    targets = speech.rows.group_by("task").agg(pl.col("target").unique().sort())
    assert dict(targets.iter_rows()) == {
        "transcribe": sorted(WORDS), "interpret": sorted(WORDS.values()),
    }  # fmt: skip
    for data in speech.rows["audio"].head(6):
        samples, rate = soundfile.read(io.BytesIO(data))
        assert rate == 16_000 and 0.1 < len(samples) / rate < 3 and samples.std() > 0.005
    repeated = spoken(tmp_path, takes=2)
    assert repeated.rows.equals(speech.rows)


def frequency(samples: np.ndarray) -> float:
    """The pitch of a voice in Hz, by autocorrelation."""
    loud = samples[np.abs(samples).argmax() - 2000 :][:4000]
    correlation = np.correlate(loud, loud, "full")[len(loud) - 1 :]
    return 22_050 / (50 + int(correlation[50:400].argmax()))


def test_voices_rates_and_pitches_are_heard() -> None:
    with Engine() as engine:
        plain, rate = engine.synthesize("你好", "cmn", 160, 50)
        slow, _ = engine.synthesize("你好", "cmn", 100, 50)
        assert rate == 22_050 and len(slow) > 1.2 * len(plain)
        high, _ = engine.synthesize("你好", "cmn", 160, 90)
        variant, _ = engine.synthesize("你好", "cmn+f3", 160, 50)
        assert frequency(high) > 1.2 * frequency(plain) and frequency(variant) > frequency(plain)
        with pytest.raises(ValueError, match=r"no voice variant 'nobody'; it has .*Alex"):
            engine.synthesize("你好", "cmn+nobody", 160, 50)
        with pytest.raises(ValueError, match="no voice 'xx-yy'"):
            engine.synthesize("你好", "xx-yy", 160, 50)
    with Engine() as engine:
        assert np.array_equal(engine.synthesize("你好", "cmn", 160, 50)[0], plain)
    breath = []
    for _ in range(2):
        with Engine() as engine:
            breath.append(engine.synthesize("你好", "cmn+whisper", 160, 50)[0])
        time.sleep(1.1)  # eSpeak NG seeds itself with the time in seconds
    assert np.array_equal(breath[0], breath[1])
    with pytest.raises(ValidationError, match="f1 is in train and in test"):
        SpeakConfig.model_validate(
            {"words": WORDS, "variants": {"train": ["f1"], "test": ["f1"]},
             "tasks": {"t": "spoken"}}
        )  # fmt: skip


def test_pairs_share_their_target_and_come_in_all_views(
    tmp_path: Path, ingest: Callable[..., Made]
) -> None:
    lines = ["file\tname"]
    for n in range(60):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        lines.append(f"{n}.png\t{('seven', 'eight', 'nine')[n % 3]}")
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    pictures = ingest(
        source="t.tsv", task="read", columns={"image": "file", "target": "name"},
        split={"test": 0.3, "valid": 0.2},
    )  # fmt: skip
    speech = spoken(tmp_path)
    config = {
        "task": "both", "pairs": {"train": 20, "test": 6}, "shards": 2,
        "conditions": {"clean": {}, "noisy": {"image": 0.5, "audio": 0}},
    }  # fmt: skip
    inputs = {"records": (pictures.artifact, speech.artifact)}
    paired = Made(Pair(PairConfig.model_validate(config)), tmp_path, inputs)
    assert set(paired.rows["target"]) == {"seven", "eight"}
    assert set(paired.rows["modalities"]) == {"image", "audio", "image+audio"}
    test = paired.rows.filter(split="test")
    views = test.group_by("condition", "modalities").len()
    assert len(views) == 2 * 3 and set(views["len"]) == {6}
    # No picture is used again before all have been used.
    assert test.filter(condition="clean", modalities="image")["image"].n_unique() == 6
    train = paired.rows.filter(split="train", modalities="image+audio")
    assert len(train) == 20
    own = {split: set(pictures.rows.filter(split=split)["image"]) for split in ("train", "test")}
    clean = paired.rows.filter(pl.col("condition") == "clean").drop_nulls("image")
    for split, data in clean.select("split", "image").iter_rows():
        assert data in own[split]
    assert paired.result.properties["tasks"]["both"]["labels"] == ["eight", "seven"]


def test_damaged_pictures_and_sounds_are_rejects_of_pair_and_svc(
    tmp_path: Path, ingest: Callable[..., Made]
) -> None:
    lines = ["file\tname"]
    for n in range(40):
        (tmp_path / f"{n}.png").write_bytes(b"none %d" % n if n % 4 == 0 else picture(n))
        lines.append(f"{n}.png\t{('seven', 'eight')[n % 2]}")
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    pictures = ingest(
        source="t.tsv", task="read", columns={"image": "file", "target": "name"},
        split={"test": 0.3, "valid": 0.2}, labels=True,
    )  # fmt: skip
    config = {
        "task": "both", "pairs": {"train": 20, "test": 10},
        "conditions": {"noisy": {"image": 0.5, "audio": 0}},
    }  # fmt: skip
    inputs = {"records": (pictures.artifact, spoken(tmp_path).artifact)}
    paired = Made(Pair(PairConfig.model_validate(config)), tmp_path, inputs)
    rejected = paired.result.rejected["not a picture"]
    assert rejected and len(paired.rows) == 3 * (30 - rejected)

    output = tmp_path / "svc"
    (output / "scratch").mkdir(parents=True)
    events = Events(None)
    context = Context(
        "svc", 3, tmp_path, output, output / "scratch", 1, events, BeamJobs({}, events)
    )
    result = Svc(SvcConfig()).run(context, {"records": (pictures.artifact,)})
    check_accounts("svc", result, output)
    bad = sum(n % 4 == 0 for n in range(40))
    test = pictures.rows.filter(split="test")
    assert result.rows_in == len(test) and 0 < result.rejected["not a picture"] < bad


def test_stamps_keep_descriptions_and_sessions_apart(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage of examples/stamps.yaml, on generated stamps."""
    monkeypatch.syspath_prepend(root / "examples")
    from stamps import Stamps

    random = np.random.default_rng(2)
    for n in range(60):
        name = tmp_path / "stamps" / ("animals" if n % 3 else "food") / f"{n}.txt"
        name.parent.mkdir(parents=True, exist_ok=True)
        chinese = f"zh_CN.utf8=东西{n}" if n % 2 else "de.utf8=Ding"
        name.write_text(f"The thing {n}.\n{chinese}\n", encoding="utf-8")
        name.with_suffix(".png").write_bytes(picture(n))
        for code in ("fr", "es"):
            # The Spanish recordings are from two sessions, the smaller one in stereo.
            channels = 2 if code == "es" and n < 10 else 1
            samples = 0.1 * random.standard_normal((4000, channels))
            path = name.with_name(f"{n}_desc_{code}.ogg")
            soundfile.write(path, samples, 16_000, format="OGG", subtype="VORBIS")

    def made(task: str) -> pl.DataFrame:
        options = {"task": task, "folder": str(tmp_path / "stamps"), "shards": 2, "valid": 0.2}
        return Made(Stamps(Stamps.Config.model_validate(options)), tmp_path, {}).rows

    spoken = made("language")
    assert dict(spoken["target"].value_counts().iter_rows()) == {"French": 60, "Spanish": 60}
    unheard = spoken.filter(session="unheard")
    assert set(unheard["target"]) == {"Spanish"} and set(unheard["split"]) == {"test"}
    assert len(unheard) == 10
    categories = made("category")
    assert dict(categories["target"].value_counts().iter_rows()) == {"animals": 40, "food": 20}
    described = made("describe")
    assert dict(described["task"].value_counts().iter_rows()) == {
        "describe-en": 180, "describe-zh": 90,
    }  # fmt: skip
    assert set(described["modalities"]) == {"image", "audio", "image+audio"}
    everything = pl.concat(
        table.select("position", "split")
        for table in (spoken.filter(session="heard"), categories, described)
    )
    assert everything.group_by("position").n_unique()["split"].max() == 1
    assert set(everything["split"]) == {"train", "valid", "test"}


def test_tasks_of_several_records_join_or_contradict(tmp_path: Path) -> None:
    def records(**changes: Any) -> Artifact:
        task = {"languages": {"target": "en"}, "labels": [], "modalities": ["text"]} | changes
        return loose_artifact(tmp_path, properties={"tasks": {"t": task}})

    joined = joined_tasks([records(), records(modalities=["audio", "text+image"])])
    assert joined["t"].modalities == ("audio", "text", "text+image")
    assert joined["t"].separate_modalities == {"audio", "image", "text"}
    with pytest.raises(ValueError, match=r"task 't' has languages \{'target': 'en'\} in one"):
        joined_tasks([records(), records(languages={"target": "de"})])
    with pytest.raises(ValueError, match=r"has labels \[\] in one .* \['a'\] in another"):
        joined_tasks([records(), records(labels=["a"])])
