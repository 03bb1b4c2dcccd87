"""The image and audio stages: every file accounted for, memory bounded, the same bytes always."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import soundfile

from model.modalities.audio.settings import AudioSettings
from model.modalities.image.settings import ImageSettings
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.running.executor import check_accounts
from pipelines.stage import Context, Result, Stage
from pipelines.store.artifacts import Artifact, loose_artifact
from pipelines.store.shared import SharedPath
from stages.audio.options import AudioConfig
from stages.audio.stage import Audio
from stages.features.feature_set import FeaturePaths
from stages.features.moments import FINE, merged, moments, sums_of
from stages.image.options import ImageConfig
from stages.image.stage import Image
from stages.rows.shards import write_records

RATE = 16_000
SMALL_IMAGE: dict[str, Any] = {"resize": 16, "patch": 8}
SMALL_AUDIO: dict[str, Any] = {"mels": 20}


def png(side: int = 24, seed: int = 0, wider: int = 7) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + wider, 3), np.uint8)
    data: bytes = cv2.imencode(".png", pixels)[1].tobytes()
    return data


def wav(seconds: float = 0.5, rate: int = RATE, seed: int = 0, **options: Any) -> bytes:
    random = np.random.default_rng(seed)
    stream = io.BytesIO()
    samples = 0.1 * random.standard_normal(round(seconds * rate))
    soundfile.write(stream, samples, rate, **{"format": "WAV", **options})
    return stream.getvalue()


def quiet(seconds: int) -> bytes:
    """A long sound in a small file."""
    stream = io.BytesIO()
    samples = np.zeros(8_000 * 60)
    with soundfile.SoundFile(
        stream, "w", samplerate=8_000, channels=1, format="FLAC", subtype="PCM_16"
    ) as file:
        for _ in range(seconds // 60):
            file.write(samples)
    return stream.getvalue()


def records(folder: Path, files: list[dict[str, Any]], shards: int = 2) -> Artifact:
    rows = [
        {
            "id": f"{n:06d}", "split": ("train", "train", "valid", "test")[n % 4],
            "task": "caption", "target": f"row {n}", "position": f"files:{n}", "text": None,
            "image": None, "audio": None, **file,
        }
        for n, file in enumerate(files)
    ]  # fmt: skip
    schema = {"text": pl.String, "image": pl.Binary, "audio": pl.Binary}
    write_records(pl.DataFrame(rows, schema_overrides=schema), folder, shards)
    modalities = sorted({name for file in files for name in file})
    facts = {"languages": {}, "labels": [], "modalities": modalities}
    return loose_artifact(
        folder, rows=len(rows), digest="0" * 64, properties={"tasks": {"caption": facts}}
    )


class Made:
    def __init__(self, folder: Path, result: Result) -> None:
        self.folder, self.result = folder, result
        check_accounts("media", result, folder)
        self.rows = pl.concat(
            [pl.read_parquet(path) for path in sorted(folder.glob("rows/*"))]
        ).sort("id")
        self.rejected = pl.concat(
            [pl.read_parquet(path) for path in sorted(folder.glob("rejected/*"))]
        )
        assert len(self.rejected) == sum(result.rejected.values())

    def bytes(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    def run(
        kind: str,
        source: Artifact,
        beam: dict[str, Any] | None = None,
        scratch: Path | None = None,
        **options: Any,
    ) -> Made:
        number = len(list(tmp_path.glob("out-*")))
        output, scratch = tmp_path / f"out-{number}", scratch or tmp_path / f"scratch-{number}"
        output.mkdir()
        scratch.mkdir(exist_ok=True)
        events = Events(None)
        context = Context(
            kind, 1, tmp_path, output, scratch, 1, events, BeamJobs(beam or {}, events)
        )
        stage: Stage
        if kind == "image":
            stage = Image(ImageConfig.model_validate({**SMALL_IMAGE, **options}))
        else:
            stage = Audio(AudioConfig.model_validate({**SMALL_AUDIO, **options}))
        return Made(output, stage.run(context, {"records": (source,)}))

    return run


def damaged() -> list[tuple[str, dict[str, Any], str | None]]:
    """1,000 files: name, source, and a word of the reject reason, or None for good files."""
    random = np.random.default_rng(7)
    long_opus = quiet(3600)

    def place(first: int, last: int) -> int:
        return int(random.integers(first, last))

    def flac(seed: int) -> bytes:
        return wav(0.3, seed=seed, format="FLAC")

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9000))
        + chunk(b"IEND", b"")
    )
    kinds: list[tuple[str, Callable[[int], dict[str, Any]], str | None]] = [
        ("zero-length picture", lambda n: {"image": b""}, "empty file"),
        ("zero-length sound", lambda n: {"audio": b""}, "empty file"),
        ("truncated picture", lambda n: {"image": png(seed=n)[: place(1, 60)]}, "picture"),
        ("cut picture", lambda n: {"image": png(64, seed=n)[: place(60, 4000)]}, "?"),
        ("truncated sound", lambda n: {"audio": wav(seed=n)[: place(1, 40)]}, "sound"),
        ("sound as picture", lambda n: {"image": wav(seed=n)}, "not a picture"),
        ("picture as sound", lambda n: {"audio": png(seed=n)}, "sound"),
        ("text as either", lambda n: {"image": b"hello", "audio": b"hello"}, "?"),
        ("one pixel", lambda n: {"image": png(1, n, wider=0)}, None),
        ("enormous picture", lambda n: {"image": bomb}, "too many pixels"),
        ("NaN samples", lambda n: {"audio": _broken(np.nan)}, "not numbers"),
        ("infinite samples", lambda n: {"audio": _broken(np.inf)}, "not numbers"),
        ("8 kHz", lambda n: {"audio": wav(0.3, 8_000, n)}, None),
        ("192 kHz", lambda n: {"audio": wav(0.3, 192_000, n)}, None),
        ("a hundredth of a second", lambda n: {"audio": wav(0.01, seed=n)}, "too short"),
        ("flipped bytes", lambda n: {"image": _flipped(png(40, n), random)}, "?"),
        ("flipped sound", lambda n: {"audio": _flipped(flac(n), random)}, "?"),
        ("good picture", lambda n: {"image": png(seed=n)}, None),
        ("good sound", lambda n: {"audio": wav(0.3, seed=n)}, None),
    ]  # fmt: skip
    files = [(name, make(n), reason) for n in range(1000) for name, make, reason in [kinds[n % 19]]]
    return [*files[:996], *[("an hour", {"audio": long_opus}, "too long")] * 4]


def _broken(value: float) -> bytes:
    samples = np.zeros(4000, dtype=np.float32)
    samples[77] = value
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def _flipped(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for index in random.integers(0, len(data), 12):
        changed[index] ^= int(random.integers(1, 256))
    return bytes(changed)


def test_a_thousand_damaged_files(tmp_path: Path, make: Callable[..., Made]) -> None:
    files = damaged()
    assert len(files) == 1000
    source = records(tmp_path / "records", [file for _, file, _ in files])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in ("image", "audio"):
        numbers = [n for n, (_, file, _) in enumerate(files) if kind in file]
        output = make(kind, source, max_rejected=1.0)
        accepted = set(output.rows["id"])
        reasons = dict(output.rejected.select("id", "reason").iter_rows())
        assert output.result.rows_in == len(numbers)
        assert accepted | set(reasons) == {f"{n:06d}" for n in numbers}
        assert not accepted & set(reasons)
        for n in numbers:
            name, _, expected = files[n]
            if expected is None:
                assert f"{n:06d}" in accepted, (name, reasons.get(f"{n:06d}"))
            elif expected != "?":
                assert expected in reasons[f"{n:06d}"], name
        assert output.rejected["position"].is_not_null().all()
        assert len(Counter(reasons.values())) >= 4
    # In KiB. An hour decoded would be 230 MB, the enormous picture 7.5 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_memory_is_bounded_where_long_sounds_are_cut(tmp_path: Path) -> None:
    """Twelve hours of sound in one shard, cut into windows, in a separate process."""
    files = [{"audio": quiet(3600)}] * 12
    source = records(tmp_path / "records", files, shards=1)
    script = tmp_path / "run.py"
    script.write_text(
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from model.modalities.audio.files import mel_filters\n"
        "from model.modalities.audio.settings import AudioSettings\n"
        "from stages.audio.stage import AudioConfig, AudioWorker\n"
        "from pipelines.running.beam_jobs import Ticks\n"
        "from pipelines.store.shared import SharedPath\n"
        "from stages.features.media import MediaSteps\n"
        "from stages.rows.pieces import RecordShard\n"
        "config = AudioConfig(mels=20, sample_rate=8000, segment={'window': 10, 'overlap': 1})\n"
        "settings = AudioSettings(mels=20, sample_rate=8000)\n"
        "worker = AudioWorker(config, settings, mel_filters(settings), 0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "shard = RecordShard('x', SharedPath.of(Path(sys.argv[1])), 12, ())\n"
        "folder = SharedPath.of(Path(sys.argv[2]))\n"
        "print(MediaSteps(worker, 20, 1, folder)(shard, Ticks(folder / 'ticks')).rows)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    (shard,) = source.files("rows/*.parquet")
    completed = subprocess.run(
        [sys.executable, script, shard, tmp_path],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent.parent,
        env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    rows, grown = (int(line) for line in completed.stdout.split())
    assert rows == 12
    # In KiB. All twelve decoded would be 1.4 GB.
    assert grown < 700_000


def test_pictures_become_patches_and_train_on_variants(
    tmp_path: Path, make: Callable[..., Made]
) -> None:
    files = [{"image": png(seed=n)} for n in range(12)] + [{"audio": wav()}]
    source = records(tmp_path / "records", files)
    plain = make("image", source)
    assert plain.result.rows_in == 12 and len(plain.rows) == 12
    assert plain.rows["values"].bin.size().unique().to_list() == [4 * 192]
    varied = make("image", source, crop=8, augment={"copies": 3, "crop": True, "flip": True})
    counts = dict(varied.rows.group_by("split").len().iter_rows())
    assert counts == {"train": 6 * 3, "valid": 3, "test": 3}
    held_out = varied.rows.filter(pl.col("split") != "train")
    middle = make("image", source, crop=8).rows.filter(pl.col("split") != "train")
    assert held_out.equals(middle)
    variants = varied.rows.filter(id="000000")["values"].to_list()
    assert len(set(variants)) == 3


def test_sounds_are_cut_into_pieces(tmp_path: Path, make: Callable[..., Made]) -> None:
    random = np.random.default_rng(0)
    quiet, loud = np.zeros(8000), random.standard_normal(8000) * 0.2
    stream = io.BytesIO()
    soundfile.write(stream, np.concatenate([loud, quiet, loud, quiet]), RATE, format="WAV")
    source = records(tmp_path / "records", [{"audio": stream.getvalue()}, {"audio": wav(2.0)}])
    pieces = make("audio", source, segment={"silence": 40}).rows
    assert pieces["id"].to_list() == ["000000", "000000", "000001"]
    windows = make("audio", source, segment={"window": 1.0, "overlap": 0.5}).rows
    assert windows["id"].to_list() == ["000000"] * 3 + ["000001"] * 3
    frames = windows["values"].bin.size() // (4 * 20)
    assert frames.to_list() == [101] * 6
    silent = records(tmp_path / "silent", [{"audio": wav(0.2)}, {"audio": wav(0.2, seed=1)}])
    with pytest.raises(ValueError, match=r"rejected 2 of 2 rows.*2 only silence"):
        make("audio", silent, segment={"window": 0.04})


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_statistics_are_numpys_over_the_training_split(
    tmp_path: Path, make: Callable[..., Made], kind: str
) -> None:
    file: Callable[[int], dict[str, Any]] = (
        (lambda n: {"image": png(seed=n)})
        if kind == "image"
        else (lambda n: {"audio": wav(seed=n)})
    )
    output = make(kind, records(tmp_path / "records", [file(n) for n in range(16)]))
    groups = 3 if kind == "image" else 20
    values = b"".join(output.rows.filter(split="train")["values"])
    train = np.frombuffer(values, np.uint8 if kind == "image" else np.float32).reshape(-1, groups)
    settings: ImageSettings | AudioSettings
    written = (output.folder / kind / "settings.json").read_text()
    settings = (
        ImageSettings.model_validate_json(written)
        if kind == "image"
        else AudioSettings.model_validate_json(written)
    )
    # The sums of a few files are rounded to 2⁻²⁰.
    np.testing.assert_allclose(settings.mean, train.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(settings.deviation, train.std(axis=0, dtype=np.float64), rtol=1e-6)


def test_sums_merge_in_any_order_to_the_same_numbers() -> None:
    random = np.random.default_rng(0)
    parts = [random.standard_normal(random.integers(1, 9) * 5) * 90 for _ in range(20)]
    sums = [sums_of(part.reshape(-1, 5), 5) for part in parts]
    assert merged(sums) == merged(sums[::-1])
    assert merged([*sums, sums_of(np.zeros((0, 5)), 5)]) == merged(sums)
    assert merged([merged(sums[:7]), merged([]), merged(sums[7:])]) == merged(sums)
    mean, deviation = moments(merged(sums))
    everything = np.concatenate(parts).reshape(-1, 5)
    np.testing.assert_allclose(mean, everything.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(deviation, everything.std(axis=0), rtol=1e-7)
    assert moments(([3, 3], [str(3 * 2**20)] * 2, [str(3 * 2**20)] * 2)) == ((1.0, 1.0), (1.0, 1.0))


def test_sums_leave_out_what_is_missing_and_count_in_steps_as_fine_as_asked() -> None:
    values = np.array([[1e-9, 5e9], [np.nan, 7e9], [3e-9, np.nan]])
    mean, deviation = moments(sums_of(values, 2, FINE), FINE)
    np.testing.assert_allclose(mean, np.nanmean(values, axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, np.nanstd(values, axis=0), rtol=1e-12)
    nothing = np.full((2, 1), np.nan)
    assert moments(sums_of(nothing, 1, FINE), FINE) == ((0.0,), (1.0,))


def test_sums_of_bytes_are_exact_however_many_there_are() -> None:
    random = np.random.default_rng(0)
    patches = random.integers(240, 256, (1000, 12), dtype=np.uint8)
    values = patches.reshape(-1, 3).astype(np.int64)
    counts, first, second = sums_of(patches, 3)
    assert counts == [4000] * 3
    assert [*map(int, first)] == (values.sum(axis=0) * 2**20).tolist()
    assert [*map(int, second)] == ((values**2).sum(axis=0) * 2**20).tolist()


def test_two_workers_and_a_resumed_run_write_the_same_bytes(
    tmp_path: Path, make: Callable[..., Made]
) -> None:
    files = [{"image": png(seed=n), "audio": wav(0.2 + n / 50, seed=n)} for n in range(20)]
    files[3] = {"image": b"broken", "audio": b"broken"}
    source = records(tmp_path / "records", files, shards=3)
    options: dict[str, dict[str, Any]] = {
        "image": {"crop": 8, "augment": {"copies": 2, "crop": True, "flip": True, "jitter": 0.2}},
        "audio": {"augment": {"copies": 2, "time_masks": 1, "frequency_masks": 1}},
    }
    for kind, varied in options.items():
        alone = make(kind, source, **varied).bytes()
        for mode in ({}, {"direct_running_mode": "multi_threading"}):
            two_workers = {"direct_num_workers": 2, **mode}
            assert make(kind, source, two_workers, **varied).bytes() == alone
        # The first shard is done, the second half-written, when a run is killed.
        whole_scratch, resumed_scratch = tmp_path / f"scratch-{kind}", tmp_path / f"again-{kind}"
        make(kind, source, scratch=whole_scratch, **varied)
        first = min((whole_scratch / kind).glob("*.json"))
        for name in (
            f"{kind}/{first.name}",
            f"rows/{first.stem}.parquet",
            f"rejects/{first.stem}.arrow",
        ):
            if (whole_scratch / name).exists():
                (resumed_scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (resumed_scratch / name).write_bytes((whole_scratch / name).read_bytes())
        (resumed_scratch / "rows" / ".half.parquet.tmp").write_bytes(b"half")
        assert make(kind, source, scratch=resumed_scratch, **varied).bytes() == alone


def test_rows_are_joined_with_their_pictures_and_sounds(
    tmp_path: Path, make: Callable[..., Made]
) -> None:
    files: list[dict[str, Any]] = [
        {"image": png(seed=1), "audio": wav(2.0)}, {"image": png(seed=2)}, {"audio": wav(1.0)},
        {"text": "plain"}, {"image": b"broken", "audio": wav(1.0)}, {"image": png(seed=3)},
        {"text": "a"}, {"text": "b"}, {"text": "simple"},
    ]  # fmt: skip
    source = records(tmp_path / "records", files, shards=1)
    from stages.text.options import TextConfig
    from stages.text.stage import Text

    output, scratch = tmp_path / "text", tmp_path / "text-scratch"
    output.mkdir()
    scratch.mkdir()
    events = Events(None)
    context = Context("text", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
    options = {"vocabulary": {"size": 20}, "filter": {"max_ratio": None}}
    Text(TextConfig.model_validate(options)).run(context, {"records": (source,), "model": ()})
    media = {
        "image": SharedPath.of(make("image", source).folder),
        "audio": SharedPath.of(make("audio", source, segment={"window": 1.0}).folder),
    }
    paths = FeaturePaths(SharedPath.of(output), media)
    shards = [path.name for path in sorted(output.glob("rows/*"))]
    train = paths.load(shards, "train")
    assert train.table["id"].to_list() == ["000000", "000001", "000005", "000008"]
    assert train.missing.select("id", "reason").rows() == [("000004", "image was rejected")]
    batch = train.source.collate(np.arange(4))
    assert batch["image_length"].tolist() == [4, 4, 4, 0]
    assert batch["audio_length"].tolist() == [101, 0, 0, 0]
    assert (batch["text"] > 0).any(axis=1).tolist() == [False, False, False, True]
    normalised = batch["image"][:, :, 0]
    assert abs(float(normalised.mean())) < 3 and normalised.dtype == np.float32
    parts = paths.load(shards, "train", each_part=True)
    assert parts.table.select("id", "part").rows() == [
        ("000000", 0), ("000000", 1), ("000001", 0), ("000005", 0),
        ("000008", 0),
    ]  # fmt: skip
    assert parts.source.media["audio"].counts.tolist() == [1, 1, 0, 0, 0]
    with_text = paths.load(shards, "test")
    assert with_text.source.text is not None and with_text.source.text.lengths[0] > 1
