"""The image and audio stages compared with plain loops and named peers. See benchmarks/README.md.

Images: a bare OpenCV loop that decodes, scales, crops and cuts the same, and Hugging Face
`datasets` with torchvision's transforms written in Pillow and NumPy. Audio: librosa's own calls.
The stage also reads and writes Parquet, measures mean and deviation and keeps rejects; the loops do
not. The script checks that our numbers and the loops' are the same.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import soundfile

from model.modalities.audio.files import decode, log_mel, mel_filters
from model.modalities.audio.settings import AudioSettings
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import Artifact, loose_artifact
from stages.audio.options import AudioConfig
from stages.audio.stage import Audio
from stages.image.options import ImageConfig
from stages.image.stage import Image
from stages.rows.shards import MEDIA_GROUP, write_records

RESIZE, CROP, PATCH = 256, 224, 16
RATE, WINDOW, HOP, MELS = 16_000, 400, 160, 80


def pictures(count: int) -> list[bytes]:
    """JPEGs of 640 × 480 with detail at several scales, as photographs have."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        layers = [
            cv2.resize(
                random.integers(0, 256, (480 // s, 640 // s, 3), dtype=np.uint8).astype(np.float32),
                (640, 480),
                interpolation=cv2.INTER_CUBIC,
            )
            * s
            for s in (4, 16, 80)
        ]
        picture = np.clip(sum(layers) / 100, 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return files


def sounds(count: int, rate: int) -> list[bytes]:
    """WAVs of 1 to 8 seconds."""
    random = np.random.default_rng(1)
    files = []
    for _ in range(count):
        samples = 0.1 * random.standard_normal(round(random.uniform(1, 8) * rate))
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate, format="WAV", subtype="PCM_16")
        files.append(stream.getvalue())
    return files


def records(folder: Path, name: str, files: list[bytes]) -> Artifact:
    table = pl.DataFrame(
        {
            "id": [f"{n:06d}" for n in range(len(files))],
            "split": ["train"] * len(files),
            "task": ["caption"] * len(files),
            "target": ["x"] * len(files),
            "position": [f"made:{n}" for n in range(len(files))],
            name: files,
        }
    )
    write_records(table, folder, 8)
    facts = {"languages": {}, "labels": [], "modalities": [name]}
    properties = {"tasks": {"caption": facts}}
    return loose_artifact(folder, rows=len(files), digest="0" * 64, properties=properties)


def stage(kind: str, source: Artifact, workers: int) -> float:
    """Seconds of the whole stage."""
    with tempfile.TemporaryDirectory() as folder:
        return run_stage(kind, source, workers, Path(folder))


def run_stage(kind: str, source: Artifact, workers: int, folder: Path) -> float:
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir()
    scratch.mkdir()
    events = Events(None)
    options = {"direct_num_workers": workers} if workers > 1 else {}
    context = Context(
        kind, 0, folder, output, scratch, 1, events, BeamJobs(options, events, folder / "beam.log")
    )
    chosen: Any
    if kind == "image":
        chosen = Image(ImageConfig(resize=RESIZE, crop=CROP, patch=PATCH))
    else:
        chosen = Audio(AudioConfig(sample_rate=RATE, window=WINDOW, hop=HOP, mels=MELS))
    started = time.perf_counter()
    chosen.run(context, {"records": (source,)})
    return time.perf_counter() - started


def opencv_loop(files: list[bytes]) -> tuple[float, list[np.ndarray]]:
    """A straightforward loop, on one thread."""
    cv2.setNumThreads(1)
    started = time.perf_counter()
    results = []
    for data in files:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert picture is not None
        height, width = picture.shape[:2]
        ratio = RESIZE / min(height, width)
        size = max(RESIZE, round(width * ratio)), max(RESIZE, round(height * ratio))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        top, left = (picture.shape[0] - CROP) // 2, (picture.shape[1] - CROP) // 2
        picture = picture[top : top + CROP, left : left + CROP]
        count = CROP // PATCH
        cut = picture.reshape(count, PATCH, count, PATCH, 3).swapaxes(1, 2)
        results.append(cut.reshape(count * count, -1))
    return time.perf_counter() - started, results


def first_of(
    calls: Callable[[list[bytes]], tuple[float, list[np.ndarray]]], files: list[bytes]
) -> float:
    return calls(files)[0]


def librosa_calls(files: list[bytes]) -> tuple[float, list[np.ndarray]]:
    """librosa as in its documentation, timed after it has compiled itself."""
    import librosa

    def spectrogram(data: bytes) -> np.ndarray:
        samples, rate = librosa.load(io.BytesIO(data), sr=RATE)
        mel = librosa.feature.melspectrogram(
            y=samples, sr=rate, n_fft=WINDOW, hop_length=HOP, n_mels=MELS
        )
        return librosa.power_to_db(mel, top_db=None).T

    spectrogram(files[0])
    started = time.perf_counter()
    results = [spectrogram(data) for data in files]
    return time.perf_counter() - started, results


def our_calls(files: list[bytes]) -> tuple[float, list[np.ndarray]]:
    """Only the computation of the audio stage: the same work as librosa's calls."""
    settings = AudioSettings(sample_rate=RATE, window=WINDOW, hop=HOP, mels=MELS)
    filters = mel_filters(settings)
    started = time.perf_counter()
    results = []
    for start in range(0, len(files), MEDIA_GROUP):
        clips = [decode(data, settings) for data in files[start : start + MEDIA_GROUP]]
        results += log_mel(clips, settings, filters)
    return time.perf_counter() - started, results


def peer(python: str, files: list[bytes]) -> float:
    """Seconds of Hugging Face `datasets` in its own environment, without its import."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            (Path(folder) / f"{number:06d}.jpg").write_bytes(data)
        script = Path(__file__).parent / "peers" / "hf_images.py"
        completed = subprocess.run(
            [python, script, folder, str(RESIZE), str(CROP), str(PATCH)],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(json.loads(completed.stdout.splitlines()[-1])["seconds"])


def values(kind: str, source: Artifact, number: Any, features: int) -> list[np.ndarray]:
    """The values that a stage computed for each row."""
    with tempfile.TemporaryDirectory() as folder:
        run_stage(kind, source, 1, Path(folder))
        paths = sorted(Path(folder).glob("output/rows/*"))
        table = pl.concat([pl.read_parquet(path) for path in paths]).sort("id")
    return [np.frombuffer(row, number).reshape(-1, features) for row in table["values"]]


def check(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float) -> None:
    for our_row, their_row in zip(ours, theirs, strict=True):
        difference = np.abs(our_row.astype(np.float64) - their_row).max()
        if difference > tolerance:
            sys.exit(f"the results differ by {difference}")


def measured_images(
    folder: Path, arguments: argparse.Namespace
) -> tuple[str, float, dict[str, list[float]]]:
    photographs = pictures(arguments.images)
    photograph_rows = records(folder / "images", "image", photographs)

    contenders: dict[str, Callable[[], float]] = {
        "bare OpenCV loop": lambda: opencv_loop(photographs)[0],
        "image stage, 1 worker": lambda: stage("image", photograph_rows, 1),
        "image stage, 2 workers": lambda: stage("image", photograph_rows, 2),
    }
    if arguments.hf:
        contenders["datasets + Pillow transforms"] = lambda: peer(arguments.hf, photographs)
    ours = values("image", photograph_rows, np.uint8, PATCH * PATCH * 3)
    check(ours, opencv_loop(photographs)[1], 0)
    return "images/s", len(photographs), rounds(contenders, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--sounds", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hf", help="a Python with datasets and Pillow")
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()  # until the end of the process
    folder = Path(scratch.name)
    tables: list[tuple[str, float, dict[str, list[float]]]] = []
    if arguments.images:
        tables.append(measured_images(folder, arguments))
    for rate in (RATE, 22_050):
        clips = sounds(arguments.sounds, rate)
        rows = records(folder / f"sounds-{rate}", "audio", clips)
        seconds = sum(soundfile.info(io.BytesIO(data)).duration for data in clips)
        check(values("audio", rows, np.float32, MELS), librosa_calls(clips)[1], 2e-2)
        spoken: dict[str, Callable[[], float]] = {
            f"librosa, {rate} Hz": partial(first_of, librosa_calls, clips),
            f"the stage's functions, {rate} Hz": partial(first_of, our_calls, clips),
            f"audio stage, {rate} Hz, 1 worker": partial(stage, "audio", rows, 1),
            f"audio stage, {rate} Hz, 2 workers": partial(stage, "audio", rows, 2),
        }
        tables.append(("audio seconds/s", seconds, rounds(spoken, arguments.rounds)))

    for unit, amount, measured in tables:
        print(f"\n| contender | {unit} (median) | seconds of each round | to the first |")
        print("|---|---:|---|---:|")
        first = statistics.median(next(iter(measured.values())))
        for name, times in measured.items():
            median = statistics.median(times)
            listed = ", ".join(f"{value:.2f}" for value in times)
            print(f"| {name} | {amount / median:,.0f} | {listed} | {first / median:.2f} |")


def rounds(contenders: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Seconds of each contender; the contenders take turns."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, run in contenders.items():
            measured[name].append(run())
    return measured


if __name__ == "__main__":
    main()
