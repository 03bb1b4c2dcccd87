"""A small end-to-end job with every modality, and models from outside the repository."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from exports.decoding.translator import Translator
from pipelines.store.shared import SharedPath

if TYPE_CHECKING:
    from tests.system.conftest import Network

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, senses: Callable[[Path], Path], run_pipeline: Run
) -> tuple[Path, Path]:
    """The job's file and its run."""
    folder = tmp_path_factory.mktemp("senses")
    path = senses(folder)
    run_pipeline(path, "--runs-dir", folder / "runs")
    return path, folder / "runs" / "senses" / "latest"


@pytest.fixture(scope="module")
def report(job: tuple[Path, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((job[1] / "report" / "report.json").read_text())
    return loaded


def test_every_task_has_the_scores_that_fit_it(report: dict[str, Any]) -> None:
    metrics: dict[str, set[str]] = {}
    for score in report["scores"]:
        if not score["slice"] and not score.get("baseline"):
            metrics.setdefault(score["task"], set()).add(score["metric"])
            assert score["signature"] and score["n"] > 0
    labelled = {"accuracy", "top_accuracy", "macro_f1", "calibration_error"}
    plain = {"bleu", "chrf", "ter", "exact_match", "token_accuracy", "perplexity"}
    assert metrics == {
        "copy": plain,
        # A single word is shorter than the four words that BLEU needs.
        "transcribe": plain - {"bleu"} | {"wer", "cer"},
        "read": labelled,
        "both": labelled,
    }
    baseline = next(score for score in report["scores"] if score.get("baseline"))
    own = next(s for s in report["scores"] if s["task"] == "read" and s["metric"] == "accuracy")
    assert baseline["n"] == own["n"] and baseline["value"] > 0.95


def test_pairs_are_measured_together_and_alone(report: dict[str, Any]) -> None:
    cells = {
        (s["slice"]["condition"], s["slice"]["modalities"])
        for s in report["scores"]
        if s["slice"] and set(s["slice"]) == {"condition", "modalities"}
    }
    views = ("image", "audio", "image+audio")
    assert cells == {(c, view) for c in ("clean", "noisy") for view in views}


def test_no_voice_and_no_picture_is_in_two_splits(job: tuple[Path, Path]) -> None:
    stages = json.loads((job[1] / "run.json").read_text())["stages"]
    for stage, column in (("speech", "voice"), ("digits", "image"), ("pairs", "voice")):
        folder = job[1].parent.parent / stages[stage]["artifact"]
        table = pl.concat([pl.read_parquet(p) for p in sorted(folder.glob("rows/*"))])
        splits = table.drop_nulls(column).group_by(column).agg(pl.col("split").n_unique())
        assert splits["split"].max() == 1, stage


def test_labels_are_all_that_is_said(job: tuple[Path, Path]) -> None:
    stages = json.loads((job[1] / "run.json").read_text())["stages"]
    folder = job[1].parent.parent / stages["generate"]["artifact"]
    table = pl.concat([pl.read_parquet(p) for p in sorted(folder.glob("rows/*"))], how="diagonal")
    read = table.filter(pl.col("task") == "read")
    assert set(read["hypothesis"]) <= {"zero", "one", "two"}
    for row in read.iter_rows(named=True):
        assert row["labels"][0] == row["hypothesis"]
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert table.filter(pl.col("task") == "copy")["labels"].null_count() == 30


def test_the_report_shows_pictures_and_plays_sounds(
    job: tuple[Path, Path], report: dict[str, Any]
) -> None:
    page = (job[1] / "report" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) >= 12
    assert len(re.findall(r'<audio controls preload="none" src="data:audio/flac', page)) >= 6
    assert page.count('class="confusion"') == 2
    assert "SVC(gamma=0.001)" in page and "Quality against variety" in page
    kinds = [(row["task"], row["kind"]) for row in report["diversity"]]
    made = ["mean", "beam", "latent", "sampling", "likeliest", "selection"]
    assert sorted(kinds) == sorted((task, kind) for kind in made for task in ("copy", "transcribe"))
    for row in report["diversity"]:
        assert row["rows"] == 4
        assert (row["samples"], row["drawn"]) == {
            "mean": (1, 1), "latent": (2, 2), "sampling": (2, 2),
        }.get(row["kind"], (2, 6))  # fmt: skip
        assert (row.get("beside") == 1.0) == (row["kind"] == "selection")
    assert page.count("selection with variety 0.3 against tokens drawn at temperature 1.0") == 2
    assert "copy: best BLEU against self-BLEU" in page and page.count("<circle") >= 10
    with (job[1] / "report" / "tables" / "diversity.csv").open(encoding="utf-8") as file:
        assert {"self_bleu_ci95_low", "coverage_gain_p"} <= set(next(csv.reader(file)))
    assert [prompt["prompt"] for prompt in report["prompts"]] == ["1 2 3", "seven.png"]
    point = report["curves"]["train"][-1]
    assert {"informative_dimensions", "divergence", "divergence.3"} <= set(point)


def test_exchanging_latents_tells_whether_they_say_anything(
    job: tuple[Path, Path], report: dict[str, Any]
) -> None:
    """Reference: a model that does not look at its latent, and one that looks at nothing else."""
    import torch

    from model.saved.folder import load_model
    from pipelines.contracts.tasks import Task
    from stages.features.feature_set import FeaturePaths
    from stages.latent import GivenLatents, exchanges

    assert {row["task"]: row["rows"] for row in report["latent"]} == {"copy": 20, "transcribe": 6}
    page = (job[1] / "report" / "index.html").read_text(encoding="utf-8")
    assert "What the latent variable says" in page
    stages = json.loads((job[1] / "run.json").read_text())["stages"]
    folder = {name: job[1].parent.parent / made["artifact"] for name, made in stages.items()}
    model, _, processor = load_model(folder["train"])
    media = {name: SharedPath.of(folder[name]) for name in ("image", "audio")}
    paths = FeaturePaths(SharedPath.of(folder["text"]), media)
    shards = [path.name for path in sorted((folder["text"] / "rows").glob("*"))]
    rows = paths.load(shards, "valid")
    plain = Task(languages={}, labels=(), modalities=())
    tasks = dict.fromkeys(set(rows.table["task"]), plain)

    def changed(factor: float) -> dict[str, float]:
        with torch.no_grad():
            model.get_parameter("latent_projection.weight").copy_(factor * projection)
        found = list(exchanges(model, rows, tasks, processor.target))
        if not factor:
            assert all(each.bleu == each.bleu_own == each.bleu_exchanged for each in found)
        return {each.task: each.changed for each in found}

    shape = model.get_parameter("latent_projection.weight").shape
    projection = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert set(changed(0.0).values()) == {0.0}
    assert changed(100.0)["copy"] > 0.9
    # What is given is what the steps use: the same as noise that leads to it.
    source = rows.source.collate(np.arange(3))
    given = np.full((3, 4), 0.5, dtype=np.float32)
    state = GivenLatents(model, given).start(source)
    assert torch.equal(state.memory["latent"], torch.from_numpy(given))


def test_the_gate_decodes_as_many_rows_as_it_is_asked_to(report: dict[str, Any]) -> None:
    assert report["lineage"]["export"]["properties"]["parity"] == {"rows": 24, "tokens_agree": 24}


def test_the_graphs_answer_raw_files(job: tuple[Path, Path]) -> None:
    """Serving equals training: a raw file gets the same answer as in the pipeline."""
    stages = json.loads((job[1] / "run.json").read_text())["stages"]
    store = job[1].parent.parent
    translator = Translator(store / stages["export"]["artifact"])
    predictions = pl.concat(
        [
            pl.read_parquet(p)
            for p in sorted((store / stages["generate"]["artifact"]).glob("rows/*"))
        ],
        how="diagonal",
    )
    heard = pl.concat(
        [pl.read_parquet(p) for p in sorted((store / stages["speech"]["artifact"]).glob("rows/*"))]
    )
    joined = heard.filter(split="test").join(predictions.select("id", "hypothesis"), on="id")
    answers = translator.answer(joined.select("audio").to_dicts(), "transcribe")
    assert answers == joined["hypothesis"].to_list() and len(answers) == 6
    with pytest.raises(ValueError, match="say which task: both, copy, read, transcribe"):
        translator.translate(["1"])


@pytest.mark.parametrize("share", ["object store", pytest.param("folder", marks=pytest.mark.long)])
def test_two_hosts_make_the_same_bytes(
    share: str,
    job: tuple[Path, Path],
    network: Network,
    tmp_path: Path,
    artifact_bytes: Callable[[Path], dict[str, bytes]],
    request: pytest.FixtureRequest,
) -> None:
    """ingest, text, image, audio, generate and score, on workers that share nothing with the run
    but its results; the others work in the run's own process."""
    path, latest = job
    runs = str(tmp_path / "runs")
    if share == "object store":
        runs = request.getfixturevalue("shared_nothing")
    for number in (1, 2):
        network.serve(number, hidden=[tmp_path] if share == "object store" else [])
    said = network.run(path, "--runs-dir", runs, *network.beam(1, 2))
    assert f"workers are on {network.host(1)}, {network.host(2)}\n" in said
    (folder,) = (tmp_path / "cache").iterdir() if share == "object store" else [tmp_path / "runs"]
    made = artifact_bytes(folder)
    assert made == artifact_bytes(latest.parent.parent) and len(made) > 60


def test_a_second_run_has_nothing_to_do(job: tuple[Path, Path], run_pipeline: Run) -> None:
    completed = run_pipeline(job[0], "--runs-dir", job[1].parent.parent, "--plan")
    assert "run" not in {line.split()[1] for line in completed.stdout.splitlines() if line.strip()}


OUTSIDE = '''\
"""A model from outside the repository: a bag of words, and the words generated so far."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from model.configuration import ModelConfig
from model.contract import EncoderDecoder, Output


class BagConfig(ModelConfig):
    """A bag of words."""

    network: ClassVar[str] = "bag:Bag"
    width: Annotated[int, Field(ge=1, description="width")] = 16


class Bag(EncoderDecoder):
    def __init__(self, config, sizes):
        super().__init__()
        self.max_length, self.width = config.max_length, config.width
        self.source = nn.Embedding(sizes["source"], config.width)
        self.target = nn.Embedding(sizes["target"], config.width)
        self.output = nn.Linear(config.width, sizes["target"])

    def encode(self, source):
        ids = source["text"]
        present = (ids != 0).float()[..., None]
        return {"bag": (self.source(ids) * present).sum(1) / present.sum(1).clamp(min=1)}

    def empty_cache(self, batch):
        return {"generated": torch.zeros(batch, 1, self.width)}

    def step(self, tokens, position, seen, memory, cache):
        generated = 0.5 * cache["generated"] + self.target(tokens)
        logits = self.output(torch.tanh(generated + memory["bag"][:, None]))
        return logits, {"generated": generated}

    def forward(self, source, target):
        memory, cache, logits = self.encode(source), self.empty_cache(len(target)), []
        for position in range(target.shape[1]):
            tokens = target[:, position : position + 1]
            step_logits, cache = self.step(tokens, torch.tensor(position), None, memory, cache)
            logits.append(step_logits)
        return Output(torch.cat(logits, 1))

    def example_source(self, batch, length):
        return {"text": torch.full((batch, length), 4)}

    def dynamic_axes(self):
        return {"text": {1: "tokens"}, "generated": {1: "hypotheses"}}
'''


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("{use: lstm, width: 32}", id="lstm", marks=pytest.mark.long),
        pytest.param("{use: 'bag:BagConfig', width: 24}", id="bag"),
    ],
)
def test_other_models_go_through_the_same_stages(
    tmp_path: Path, small_job: Callable[..., Path], run_pipeline: Run, model: str
) -> None:
    job = small_job(tmp_path)
    text = re.sub(r"model: \{use: transformer[^}]*\}", f"model: {model}", job.read_text())
    job.write_text(text)
    (tmp_path / "bag.py").write_text(OUTSIDE)
    run_pipeline(job, "--runs-dir", tmp_path / "runs")
    record = json.loads((tmp_path / "runs" / "small" / "latest" / "run.json").read_text())
    assert record["status"] == "complete" and record["scores"]
    # Its code is part of what the result depends on.
    (tmp_path / "bag.py").write_text(OUTSIDE.replace("0.5 *", "0.25 *"))
    plan = run_pipeline(job, "--runs-dir", tmp_path / "runs", "--plan").stdout
    assert ("bag.py" in plan) == ("bag" in model)


def test_a_model_that_cannot_take_pictures_says_so(
    job: tuple[Path, Path], tmp_path: Path, run_pipeline: Run
) -> None:
    completed = run_pipeline(
        job[0], "--runs-dir", job[1].parent.parent, "--set", "train.model={use: lstm}", code=1
    )
    assert "say model: {use: gemini}" in completed.stdout + completed.stderr
