"""Text and series of readings from end to end, through the stages that all modalities share."""

from __future__ import annotations

import json
import math
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from exports.decoding.translator import Translator
from model.batching import Ragged
from model.modalities.series.settings import SeriesSettings
from model.modalities.target import TargetCodec
from model.vocabulary import EOS
from pipelines.store.artifacts import Artifact, read_artifact
from stages.rows.shards import read_rows

Run = Callable[..., subprocess.CompletedProcess[str]]

JOB = """\
name: sensors
seed: 4
stages:
  machines:
    use: ingest
    task: describe
    source: machines.jsonl
    columns: {text: part, series: log.readings, target: said}
    split: {valid: 40, test: 60}
    deduplicate: exact
    shards: 2
  alone:
    use: ingest
    task: name
    source: alone.csv
    columns: {series: readings, target: said}
    labels: true
    split: {valid: 20, test: 40}
    deduplicate: none
    shards: 1
  text: {records: [machines, alone], vocabulary: {size: 48}}
  series: {records: [machines, alone], channels: 2, max_steps: 20}
  train:
    features: [text, series]
    model: {use: gemini, layers: 1, width: 32, heads: 2}
    steps: 260
    batch_tokens: 600
    learning_rate: 0.005
    warmup: 30
    validate_every: 130
    precision: fp32
  export: {model: train, features: [text, series]}
  small: {use: export, model: train, features: [text, series], precision: int8}
  generate: {graphs: export, features: [text, series], prompts: [{task: name, series: own.json}]}
  again: {use: generate, graphs: small, features: [text, series]}
  score: {predictions: generate}
  report: {scores: score}
"""


def readings(kind: str, source: random.Random) -> list[list[float | None]]:
    """A noisy line that rises, falls or stays, in volts and in microvolts; a tenth is missing."""
    slope = {"rises": 1.0, "falls": -1.0, "stays": 0.0}[kind]
    steps = source.randrange(8, 16)
    rows: list[list[float | None]] = []
    for step in range(steps):
        volts = 1000 + 50 * slope * (step / steps - 0.5) + source.gauss(0, 2)
        rows.append([volts, 1e-6 * source.gauss(3, 1)])
    for row in rows[1:]:
        for channel in range(2):
            if source.random() < 0.1:
                row[channel] = None
    return rows


def job(folder: Path) -> Path:
    source = random.Random(6)
    kinds = ["rises", "falls", "stays"]
    with (folder / "machines.jsonl").open("w") as file:
        for _ in range(500):
            part, kind = source.choice(["pump", "fan", "motor"]), source.choice(kinds)
            row = {"part": part, "log": {"readings": readings(kind, source)}}
            file.write(json.dumps({**row, "said": f"{part} {kind}"}) + "\n")
        broken: list[Any] = [[[1.0]], [[None, None]], [["a", 1]], [[1, 2]] * 21, 7]
        for wrong in broken:
            row = {"part": "pump", "log": {"readings": wrong}, "said": "pump stays"}
            file.write(json.dumps(row) + "\n")
    pl.DataFrame(
        [
            {"readings": json.dumps(readings(kind, source)), "said": kind}
            for kind in (source.choice(kinds) for _ in range(260))
        ]
    ).write_csv(folder / "alone.csv")
    (folder / "own.json").write_text(json.dumps(readings("falls", source)))
    path = folder / "pipeline.yaml"
    path.write_text(JOB)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, run_pipeline: Run) -> Path:
    folder = tmp_path_factory.mktemp("series")
    run_pipeline(job(folder), "--runs-dir", folder / "runs")
    return folder / "runs" / "sensors" / "latest"


def artifact(home: Path, stage: str) -> Artifact:
    record = json.loads((home / "run.json").read_text(encoding="utf-8"))
    stored = read_artifact(home.parent.parent / record["stages"][stage]["artifact"])
    assert stored is not None
    return stored


def test_series_say_what_they_show(home: Path) -> None:
    report = json.loads((home / "report" / "report.json").read_text(encoding="utf-8"))
    scores = {(score["task"], score["metric"]): score["value"] for score in report["scores"]}
    assert scores["name", "accuracy"] > 0.9
    assert scores["describe", "exact_match"] > 0.8
    assert {example["modalities"] for example in report["examples"]} == {"series", "text+series"}
    assert report["prompts"][0]["output"] == "falls"


def test_8_bits_say_nearly_the_same(home: Path) -> None:
    tables = [read_rows(artifact(home, name)).sort("id") for name in ("generate", "again")]
    same = (tables[0]["hypothesis"] == tables[1]["hypothesis"]).mean()
    assert isinstance(same, float) and same > 0.9


def test_what_is_no_series_is_kept_aside_with_the_reason(home: Path) -> None:
    text = (home / "report" / "rejected.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert {row["reason"] for row in rows} == {
        "no readings",
        "not a number",
        "series file not found",
        "too long",
        "wrong number of channels",
    }
    assert len(rows) == 5
    assert all("machines.jsonl" in row["position"] for row in rows)


def test_mean_and_deviation_are_those_of_the_training_readings(home: Path) -> None:
    """Compared with NumPy's, which skip NaN; the second channel is a millionth of the first."""
    folder = artifact(home, "series").folder / "series"
    settings = SeriesSettings.model_validate_json((folder / "settings.json").read_text())
    values = []
    for name in ("machines", "alone"):
        rows = read_rows(artifact(home, name)).filter(split="train")
        for data in rows["series"]:
            steps = json.loads(data)
            # Series that the stage rejected have another number of channels, or only gaps.
            if isinstance(steps, list) and len(steps) > 1 and len(steps) <= 20:
                values += [
                    [math.nan if reading is None else reading for reading in step] for step in steps
                ]
    table = np.array(values, dtype=np.float32).astype(np.float64)
    np.testing.assert_allclose(settings.mean, np.nanmean(table, axis=0), rtol=1e-9)
    np.testing.assert_allclose(settings.deviation, np.nanstd(table, axis=0), rtol=1e-9)


def test_the_graphs_answer_raw_series_and_a_missing_reading_is_no_zero(home: Path) -> None:
    translator = Translator(artifact(home, "export").folder)
    rising = [[975.0 + 4 * step, 3e-6] for step in range(12)]
    holes = [
        [None if step % 3 == 1 else volts, micro] for step, (volts, micro) in enumerate(rising)
    ]
    rows = [{"series": json.dumps(series).encode()} for series in (rising, holes)]
    assert translator.answer(rows, "name") == ["rises", "rises"]
    text = translator.answer([{"text": "fan", **rows[1]}], "describe")
    assert text == ["fan rises"]


def test_the_report_draws_series(home: Path) -> None:
    page = (home / "report" / "index.html").read_text(encoding="utf-8")
    assert "<th>series</th>" in page and 'src="data:image/svg+xml;base64,' in page


def test_nothing_outside_its_folder_names_it(root: Path) -> None:
    """The fourth modality is in its folders, the two registries, its tests and the docs."""
    named = [
        str(path.relative_to(root))
        for wing in ("pipelines", "stages", "model", "exports")
        for path in (root / wing).rglob("*.py")
        if "modalities.series" in (text := path.read_text(encoding="utf-8"))
        or '"series"' in text
        or "stages.series" in text
    ]
    outside = [path for path in named if "/series/" not in path]
    assert sorted(outside) == ["model/modalities/known.py", "pipelines/registry.py"]


class Numerals(TargetCodec):
    """Targets that are not text: the token ids as numerals, three at most."""

    size = 48

    def encode(self, targets: Sequence[str]) -> Ragged:
        return Ragged.of([[*map(int, target.split("-")), EOS] for target in targets])

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        return ["-".join(map(str, row)) for row in tokens]

    def limits(self, positions: np.ndarray, longest: int) -> np.ndarray:
        return np.full(len(positions), 3)


def test_what_is_decoded_is_for_the_targets_codec_to_say(home: Path) -> None:
    translator = Translator(artifact(home, "export").folder)
    rows = [{"text": "motor"}, {"text": "fan"}]
    texts = translator.answer(rows, "describe")
    pieces = [translator.target.encode([text]).row(0)[:-1] for text in texts]
    translator.target = Numerals()
    numerals = translator.answer(rows, "describe")
    assert numerals == ["-".join(map(str, row[:3])) for row in pieces]
    source = translator.sources(rows, "describe")
    scored = translator.force(source, translator.target.encode(numerals))
    assert [score.tokens for score in scored] == [len(row[:3]) + 1 for row in pieces]
