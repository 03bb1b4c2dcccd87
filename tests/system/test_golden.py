"""This version reads what earlier versions wrote, and decodes and scores it to the same output.

`tests/golden/` has the results of one job for every version whose formats differ; `make.py` there
made them. They are never rewritten.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from exports.decoding.greedy import greedy
from exports.decoding.session import SessionStepper
from exports.decoding.torch_stepper import TorchStepper
from exports.decoding.translator import Translator
from exports.making.parity import same_logits
from model.future import FutureHead
from model.modalities.preparation import sources_of
from model.saved.folder import load_model, save_model
from model.wish_embedding import WishEmbedding
from model.wishes import Wishes
from pipelines.contracts.runs import RUN_FORMAT, RunRecord
from pipelines.finished.mlflow import metrics, parameters
from pipelines.finished.site import build
from pipelines.judging.baseline import BaselineRun
from pipelines.reading.spec import PipelineSpec, load_pipeline
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context, Result
from pipelines.store.artifacts import Artifact, Store, loose_artifact, read_artifact
from pipelines.store.runs_dir import RunsDir
from stages.rows.shards import read_rows

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VERSIONS = sorted(path for path in GOLDEN.iterdir() if (path / "store").is_dir())
ROUNDING = 2e-3
"""Log-probabilities are stored with four digits, and other processors round differently."""


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def version(request: pytest.FixtureRequest) -> Path:
    """The runs folder of an earlier version."""
    folder: Path = request.param
    return folder


@pytest.fixture(scope="module")
def record(version: Path) -> RunRecord:
    return RunRecord.read(version / "golden" / "latest")


@pytest.fixture(scope="module")
def artifacts(version: Path, record: RunRecord) -> dict[str, Artifact]:
    loaded = {}
    for name, facts in record.stages.items():
        assert facts.artifact is not None
        artifact = read_artifact(version / facts.artifact)
        assert artifact is not None and artifact.digest == facts.digest
        loaded[name] = artifact
    return loaded


@pytest.fixture(scope="module")
def spec() -> PipelineSpec:
    return load_pipeline(GOLDEN / "job.yaml")


def run(name: str, spec: PipelineSpec, artifacts: dict[str, Artifact], folder: Path) -> Result:
    """Runs a stage of the job on frozen inputs; its output is in `folder / "output"`."""
    for part in ("output", "scratch"):
        (folder / part).mkdir()
    events = Events(None)
    context = Context(
        stage=name,
        seed=spec.seed,
        base=GOLDEN,
        output=folder / "output",
        scratch=folder / "scratch",
        threads=1,
        progress=events,
        beam=BeamJobs({}, events),
    )
    stage = spec.stages[name]
    inputs = {key: tuple(artifacts[n] for n in names) for key, names in stage.inputs.items()}
    return stage.stage.run(context, inputs)


def test_frozen_graphs_generate_the_same_predictions(
    spec: PipelineSpec, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    result = run("generate", spec, artifacts, tmp_path)
    frozen = artifacts["generate"]
    predictions = read_rows(
        loose_artifact(
            tmp_path / "output",
        )
    )
    # Of several hypotheses the first, and how many: 0.1.0 stopped to look for others sooner.
    compared = (
        table.sort("id").with_columns(pl.col("best").list.head(1), count=pl.col("best").list.len())
        for table in (predictions, read_rows(frozen))
    )
    assert_frame_equal(*compared, check_exact=False, abs_tol=ROUNDING)
    assert result.rows == frozen.rows
    assert result.properties["tasks"] == frozen.properties["tasks"]
    drawn = pl.read_parquet(tmp_path / "output" / "diversity.parquet")
    before = pl.read_parquet(frozen.folder / "diversity.parquet").drop("reference")
    order = ["kind", "temperature", "task", "id", "sample"]
    # Ways to make several outputs that there were not in version 0.1.0 are left out.
    common = drawn.join(before, order, how="semi").select(before.columns)
    assert_frame_equal(common.sort(order), before.sort(order), check_dtypes=False)
    shown = (
        json.loads((f / "prompts.json").read_text()) for f in (tmp_path / "output", frozen.folder)
    )
    assert len({json.dumps(prompts) for prompts in shown}) == 1


def test_frozen_predictions_get_the_same_scores(
    spec: PipelineSpec, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    run("score", spec, artifacts, tmp_path)
    for name in ("scores.json", "classification.json", "diversity.json"):
        current, frozen = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for folder in (tmp_path / "output", artifacts["score"].folder)
        )
        if name == "diversity.json":  # which has further figures since
            current = [
                {key: now.get(key) for key in before}
                for now, before in zip(current, frozen, strict=True)
            ]
        assert rounded(current) == rounded(frozen)


def rounded(value: Any) -> Any:
    """Numbers to 12 digits: from Python 3.12 on, `sum`, which sacreBLEU calls, rounds less."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_frozen_preprocessing_gives_the_same_sources(
    record: RunRecord, artifacts: dict[str, Artifact]
) -> None:
    """From texts, pictures and sounds as they were ingested, not from features."""
    translator = Translator(artifacts["export"].folder)
    frozen = read_rows(artifacts["generate"])
    for name in ("sentences", "bars", "tones", "pairs"):
        rows = read_rows(artifacts[name]).filter(split="test").sort("id")
        table = frozen.filter(pl.col("id").is_in(rows["id"].implode())).sort("id")
        source = sources_of(translator.processor, rows.to_dicts())
        forced = translator.force(source, translator.target.encode(rows["target"].to_list()))
        scores = [result.score for result in forced]
        assert scores == pytest.approx(table["reference_log_probability"].to_list(), abs=ROUNDING)


@pytest.mark.parametrize("graphs", ["export", "small"])
def test_a_frozen_model_is_that_of_its_graphs(artifacts: dict[str, Artifact], graphs: str) -> None:
    model, _, processor = load_model(artifacts["train"].folder)
    stepper = SessionStepper(artifacts[graphs].folder)
    rows = pl.concat(
        [
            read_rows(artifacts[name]).filter(split="test")
            for name in ("sentences", "bars", "tones")
        ],
        how="diagonal",
    )
    source = sources_of(processor, rows.to_dicts()).collate(np.arange(len(rows)))
    limits = np.full(len(rows), 20)
    if graphs == "export":
        assert same_logits(TorchStepper(model), stepper, [(source, limits)], 1e-3) < 1e-3
    else:  # 8-bit graphs decode as they did before, which is close to the model's output
        exact, low = (greedy(decoder, source, limits) for decoder in (TorchStepper(model), stepper))
        same = sum(a.tokens == b.tokens for a, b in zip(exact, low, strict=True))
        assert same >= 0.8 * len(rows)


def test_a_frozen_run_can_be_compared_and_shown(
    version: Path, record: RunRecord, spec: PipelineSpec, artifacts: dict[str, Artifact],
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(version / "store", tmp_path / "store")
    baseline = BaselineRun(record, Store(tmp_path / "store"))
    entries = baseline.compare({"score": (spec.stages["score"].stage, artifacts["score"])})
    assert len(entries) == sum(score.own for score in record.scores)
    assert all(entry.changed == 0 and entry.p == 1 for entry in entries)
    shutil.copytree(version / "golden", tmp_path / "golden", symlinks=True)
    assert build(RunsDir(tmp_path), tmp_path / "site") == 1
    assert "golden" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert len(list(metrics(record, version / "golden" / "latest"))) > len(record.scores)
    assert {"key": "seed", "value": "11"} in list(parameters(record))


def test_what_this_version_writes_of_a_run_is_what_it_reads(version: Path, tmp_path: Path) -> None:
    folder = version / "golden" / "latest"
    record = RunRecord.read(folder)
    frozen = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record.to_json() == frozen
    later = {**frozen, "format": RUN_FORMAT + 1}
    (tmp_path / "run.json").write_text(json.dumps(later))
    with pytest.raises(ValueError, match="was written by a later version"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("export", "manifest.json"),
        ("export", "graphs.json"),
        ("export", "text/text.json"),
        ("export", "image/settings.json"),
        ("export", "audio/settings.json"),
        ("train", "model.json"),
    ],
)
def test_what_a_later_version_wrote_is_refused_and_never_misread(
    artifacts: dict[str, Artifact], tmp_path: Path, stage: str, file: str
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(artifacts[stage].folder, folder)

    def read() -> None:
        if file == "manifest.json":
            assert read_artifact(folder) is not None
        elif stage == "train":
            load_model(folder)
        else:
            _ = Translator(folder).processor.settings

    read()
    if file != "manifest.json":
        (folder / "manifest.json").unlink()  # A later version's would fit what it wrote.
    written = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**written, "format": 99}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"later version|another version|load it with the version"):
        read()


def test_every_stored_format_is_numbered(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    """As written today; files of 0.1.0 have no number, which means the first format."""
    model, config, processor = load_model(artifacts["train"].folder)
    save_model(tmp_path, config, model, processor)
    assert json.loads((tmp_path / "model.json").read_text())["format"] == 2
    for settings in (processor.text.settings, *processor.settings.values()):
        assert settings.model_dump()["format"] == 1


@pytest.mark.parametrize("head", [False, True])
def test_models_with_wishes_are_stored(
    tmp_path: Path, artifacts: dict[str, Artifact], head: bool
) -> None:
    model, config, processor = load_model(artifacts["train"].folder)
    wishes = Wishes({"tone": ("loud", "calm"), "level": ("1", "2", "3")})
    width = model.get_parameter("target_embedding.weight").shape[1]
    if head:
        model.future = FutureHead(wishes, width, processor.sizes["target"])
    else:
        model.wish_embedding = WishEmbedding(wishes, width)
        torch.nn.init.normal_(model.wish_embedding.weight)
    save_model(tmp_path, config, model, processor)
    written = json.loads((tmp_path / "model.json").read_text())
    assert written["format"] == (3 if head else 4)
    again, _, _ = load_model(tmp_path)
    assert again.wishes == wishes and (again.future is not None) == head
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    (tmp_path / "model.json").write_text(json.dumps({**written, "format": 4 if head else 3}))
    with pytest.raises(ValueError, match=r"weights\.safetensors lacks .*, which wishes need"):
        load_model(tmp_path)
