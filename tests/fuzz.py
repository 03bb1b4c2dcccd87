"""Real files of every format that is read, changed at random, through every decoder.

`python tests/fuzz.py 100000 1`: number of inputs, and a seed. What may come out is a result or the
error that the decoder promises; anything else, more than `MOST_SECONDS` for an input, or more than
`MOST_MEGABYTES` more memory than before, ends it with the input kept in a file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import contextlib

import cv2
import numpy as np
import polars as pl
import polib
import soundfile
from PIL import Image

from model.modalities.audio import files as sounds
from model.modalities.audio.preview import preview as audio_preview
from model.modalities.audio.settings import AudioSettings
from model.modalities.image import files as pictures
from model.modalities.image.preview import preview as image_preview
from model.modalities.image.settings import ImageSettings
from model.modalities.media import MediaError, seeded
from model.modalities.series.files import decode as decode_series
from model.modalities.series.preview import preview as series_preview
from model.modalities.series.settings import SeriesSettings
from pipelines.contracts.base import LaterVersionError
from pipelines.contracts.runs import RunRecord
from pipelines.reading.document import SpecError
from pipelines.reading.spec import load_pipeline
from pipelines.store.artifacts import read_artifact
from stages.ingest.formats import parse
from stages.ingest.opened import Limits, Unit

MOST_SECONDS, MOST_MEGABYTES = 5.0, 400
IMAGE = ImageSettings(resize=64, crop=64, patch=8, max_pixels=4_000_000)
AUDIO = AudioSettings(mels=20, max_samples=2_000_000)
SERIES = SeriesSettings(channels=2, max_steps=500)
LIMITS = Limits(max_line_bytes=100_000, max_document_bytes=1_000_000, max_unpacked_bytes=20_000_000)
Decoder = Callable[[bytes, Path], None]


def image(data: bytes, folder: Path) -> None:
    for use in (
        lambda: pictures.prepare(data, IMAGE),
        lambda: pictures.with_noise(data, 0.1, seeded(1)),
    ):
        with contextlib.suppress(MediaError):
            use()
    image_preview(data)


FILTERS = sounds.mel_filters(AUDIO)


def audio(data: bytes, folder: Path) -> None:
    try:
        frames = sounds.log_mel([sounds.decode(data, AUDIO)], AUDIO, FILTERS)
        assert np.isfinite(frames[0]).all()
        sounds.with_noise(data, 10, seeded(1))
    except MediaError:
        pass
    audio_preview(data)


def series(data: bytes, folder: Path) -> None:
    with contextlib.suppress(MediaError):
        decode_series(data, SERIES)
    series_preview(data)


def table(name: str) -> Decoder:
    """Every row is a row or a reject."""

    def read(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        format = name.split(".")[1]
        catalogue = format in ("po", "mo")
        unit = Unit(
            url=str(path),
            shown=name,
            format="gettext" if catalogue else format,  # type: ignore[arg-type]
            columns={"text": "msgid" if catalogue else "a", "target": "de" if catalogue else "b"},
            header=["a", "b"] if format in ("tsv", "csv") else None,
            pairs={"de": str(path)},
            limits=LIMITS,
        )
        for parsed in parse(unit):
            assert parsed.reason is not None or set(parsed.values) >= {"text", "target"}

    return read


def pipeline(data: bytes, folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_bytes(data)
    with contextlib.suppress(SpecError):
        load_pipeline(path)


def manifest(data: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(data)
    (folder / "run.json").write_bytes(data)
    with contextlib.suppress(LaterVersionError):
        read_artifact(folder)
    with contextlib.suppress(ValueError):
        RunRecord.read(folder)


def scene() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (48, 36), interpolation=cv2.INTER_CUBIC)


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def recorded(format: str, subtype: str | None, channels: int = 1) -> bytes:
    time = np.arange(6000) / 16_000
    samples = np.stack([np.sin(2 * np.pi * 440 * time) * 0.3] * channels, axis=1)
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16_000, format=format, subtype=subtype)
    return stream.getvalue()


def seeds() -> list[tuple[str, Decoder, list[bytes]]]:
    """Name, decoder, and good files of every format."""
    picture = Image.fromarray(scene())
    alpha = picture.convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture, picture.rotate(90)]
    images = [
        encoded(picture, "PNG"), encoded(alpha, "PNG", exif=exif.tobytes()),
        encoded(picture.convert("P"), "PNG"), encoded(picture.convert("I;16"), "PNG"),
        encoded(picture, "JPEG", exif=exif.tobytes()), encoded(picture, "JPEG", progressive=True),
        encoded(picture.convert("L"), "JPEG"), encoded(picture, "WEBP"),
        encoded(alpha, "WEBP", lossless=True), encoded(picture, "BMP"), encoded(picture, "GIF"),
        encoded(picture, "GIF", save_all=True, append_images=frames), encoded(picture, "TIFF"),
        encoded(picture, "TIFF", compression="tiff_lzw"), encoded(picture, "PPM"),
        encoded(picture, "JPEG2000"), cv2.imencode(".hdr", scene().astype(np.float32))[1].tobytes(),
    ]  # fmt: skip
    audios = [
        recorded("WAV", "PCM_16"), recorded("WAV", "PCM_16", 2), recorded("WAV", "FLOAT"),
        recorded("WAV", "PCM_24"), recorded("WAV", "ULAW"), recorded("FLAC", None),
        recorded("OGG", "VORBIS"), recorded("OGG", "OPUS"), recorded("MP3", None),
        recorded("AIFF", "PCM_16"), recorded("CAF", "PCM_16"), recorded("W64", "PCM_16"),
    ]  # fmt: skip
    catalogue = polib.POFile()
    for n in range(9):
        catalogue.append(polib.POEntry(msgid=f"hello {n}", msgstr=f"hallo {n}"))
    rows = [(f'source "{n}"\n, x', f"target {n}") for n in range(30)]
    tsv = "a\tb\n" + "".join(f"source {n}\ttarget 读 {n}\n" for n in range(30))
    quoted = "".join('"{}","{}"\n'.format(a.replace('"', '""'), b) for a, b in rows)
    listed = [{"a": a, "b": b, "c": [1, {"d": None}]} for a, b in rows]
    stored = io.BytesIO()
    pl.DataFrame(rows, schema=["a", "b"], orient="row").write_parquet(stored)
    with tempfile.NamedTemporaryFile(suffix=".mo") as compiled:
        catalogue.save_as_mofile(compiled.name)
        mo = Path(compiled.name).read_bytes()
    root = Path(__file__).resolve().parent.parent
    jobs = [path.read_bytes() for path in sorted((root / "examples").glob("*.yaml"))]
    jobs.append(
        b"a: &a [1, 2]\nb: {<<: {c: *a}, d: *a}\nvariables: {v: 1}\nname: ${v}\nstages: {}\n"
    )
    golden = root / "tests" / "golden" / "0.1.0"
    states = [path.read_bytes() for path in sorted(golden.rglob("manifest.json"))[:4]]
    states += [path.read_bytes() for path in sorted(golden.rglob("run.json"))[:1]]
    return [
        ("image", image, images),
        ("audio", audio, audios),
        ("series", series, [b"[[1, 2], [3.5, null], [-1e5, 4]]", b"[" + b"[1, 2]," * 50 + b"[3]]"]),
        ("tsv", table("x.tsv"), [tsv.encode(), tsv.replace("\n", "\r\n").encode("utf-8-sig")]),
        ("csv", table("x.csv"), [("a,b\n" + quoted).encode()]),
        ("jsonl", table("x.jsonl"), ["\n".join(map(json.dumps, listed)).encode()]),
        ("json", table("x.json"), [json.dumps(listed).encode(x) for x in ("utf-8", "utf-16")]),
        ("parquet", table("x.parquet"), [stored.getvalue()]),
        ("po", table("x.po"), [str(catalogue).encode()]),
        ("mo", table("x.mo"), [mo]),
        ("gz", table("x.tsv.gz"), [gzip.compress(tsv.encode())]),
        ("bz2", table("x.tsv.bz2"), [bz2.compress(tsv.encode())]),
        ("xz", table("x.tsv.xz"), [lzma.compress(tsv.encode())]),
        ("pipeline", pipeline, jobs),
        ("state", manifest, states),
    ]  # fmt: skip


EXTREMES = [b"\0", b"\xff", b"\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
            b"\0\0\0\x01", b"\x01\0\0\0", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\n", b'"', b"[", b"{",
            b"&a ", b"*a ", b"\t", b",", b"9" * 40, b"-1", b"1e99", b"\xed\xa0", b"\\"]  # fmt: skip


def mutated(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A file with a few changes: bits, extreme numbers, parts cut, repeated or of other files."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6, 12))):
        size = len(changed)
        # Headers are where most decisions are made.
        at = chance.randrange(min(size, 64) if chance.random() < 0.5 else size) if size else 0
        kind = chance.randrange(7)
        if kind == 0 and size:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            value = chance.choice(EXTREMES)
            changed[at : at + len(value)] = value
        elif kind == 2:
            changed[at:at] = chance.choice(EXTREMES) * chance.choice((1, 1, 2, 50, 500))
        elif kind == 3:
            del changed[at : at + chance.choice((1, 2, 4, 16, 200))]
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            part = changed[at : at + chance.choice((4, 12, 64, 400))]
            changed[at:at] = part * chance.choice((1, 2, 20))
        else:
            other = chance.choice(others)
            start = chance.randrange(max(1, len(other)))
            changed[at : at + 40] = other[start : start + chance.choice((4, 40, 400))]
    return bytes(changed[:300_000])


def peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(inputs: int, seed: int, only: str = "") -> int:
    chance = random.Random(seed)
    decoders = [entry for entry in seeds() if only in ("", entry[0])]
    everything = [data for _, _, files in decoders for data in files]
    counts, slowest = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for _, decode, files in decoders:  # the good files first: what is loaded lazily is loaded
            for data in files:
                decode(data, folder)
        before = peak()
        for number in range(inputs):
            name, decode, files = decoders[number % len(decoders)]
            others = everything if chance.random() < 0.1 else files
            data = mutated(chance, chance.choice(files), others)
            kept = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}-{name}"
            kept.write_bytes(data)
            started = time.monotonic()
            try:
                decode(data, folder)
            except BaseException as error:
                print(f"{name}, input {number}: {type(error).__name__}: {error}; see {kept}")
                raise
            seconds = time.monotonic() - started
            if seconds > MOST_SECONDS or peak() - before > MOST_MEGABYTES:
                print(f"{name}, input {number}: {seconds:.1f} s, {peak():.0f} MB; see {kept}")
                return 1
            kept.unlink()
            counts[name] += 1
            slowest[name] = max(slowest[name], round(1000 * seconds))
    told = ", ".join(f"{name} {counts[name]:,} ({slowest[name]} ms)" for name in counts)
    print(f"{inputs:,} inputs, slowest of each: {told}; {peak() - before:.0f} MB more at the peak")
    return 0


if __name__ == "__main__":
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4]))
