"""Makes the frozen results of a version: `python tests/golden/make.py VERSION`.

Run it once for a version whose formats differ from all earlier ones, and never again for that
version: its folder holds what that version wrote. The sources are generated here, so that they
contain no third-party material: digits as text, bars as pictures, tones as sounds.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
WORDS = ("down", "across", "left", "right")


def write_sources(folder: Path) -> None:
    """Writes the files that `job.yaml` reads."""
    chance = random.Random(5)
    texts: set[str] = set()
    while len(texts) < 150:
        texts.add(" ".join(chance.choice("0123456789") for _ in range(chance.randint(2, 5))))
    lines = [f"{text}\t{text}" for text in sorted(texts)]
    (folder / "sentences.tsv").write_text("source\ttarget\n" + "\n".join(lines) + "\n")
    noise = np.random.default_rng(5)
    rows, table = [], ["path\ttarget"]
    for number in range(64):
        word = WORDS[number % 4]
        picture = noise.integers(0, 5, (4, 4))
        {
            "down": picture[:, 1],
            "across": picture[1],
            "left": picture[:, 0],
            "right": picture[:, 3],
        }[word][:] = 16
        rows.append(",".join([*map(str, picture.reshape(-1)), word]))
        path = folder / f"tone-{number:02d}.wav"
        pitch = 250 * (1 + number % 4)
        seconds = np.arange(700 + 13 * number) / 4000
        samples = np.sin(2 * np.pi * pitch * seconds) + noise.normal(0, 0.05, len(seconds))
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 4000, 0, "NONE", ""))
            file.writeframes((samples * 12000).astype("<i2").tobytes())
        table.append(f"{path.name}\t{word}")
    (folder / "bars.csv").write_text("\n".join(rows) + "\n")
    (folder / "tones.tsv").write_text("\n".join(table) + "\n")


def main(version: str) -> None:
    target = HERE / version
    if target.exists():
        sys.exit(f"{target} exists already; the results of a version are never overwritten")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder)
        shutil.copy(HERE / "job.yaml", folder)
        runs = folder / "runs"
        command = [sys.executable, "-m", "pipelines.run", str(folder / "job.yaml")]
        subprocess.run([*command, "--runs-dir", str(runs)], check=True)
        (run,) = (path.parent for path in runs.glob("golden/2*/run.json"))
        # Of the run, only its record; of the store, its artifacts, without the report's copies.
        home = target / "golden" / "latest"
        home.mkdir(parents=True)
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        record["machine"] = {**record["machine"], "platform": "", "cpus": 0}
        (home / "run.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        shutil.copytree(runs / "store" / "artifacts", target / "store" / "artifacts")


if __name__ == "__main__":
    main(sys.argv[1])
