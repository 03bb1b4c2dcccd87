"""A stage dies after its Beam work, just before its end: the second attempt reuses that work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context, Stage
from pipelines.store.artifacts import Artifact, read_artifact
from stages.generate.options import GenerateConfig
from stages.generate.stage import Generate
from stages.text.options import TextConfig
from stages.text.stage import Text


class Died(Exception):
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def artifacts(finished: tuple[Path, Path]) -> Callable[[str], Artifact]:
    def find(stage: str) -> Artifact:
        (folder,) = (finished[1] / "store" / "artifacts").glob(f"{stage}-*")
        artifact = read_artifact(folder)
        assert artifact is not None
        return artifact

    return find


@pytest.mark.parametrize("kind", ["text", "generate"])
def test_work_done_before_the_death_is_used(
    tmp_path: Path,
    artifacts: Callable[[str], Artifact],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    stage: Stage
    inputs: dict[str, Any]
    if kind == "text":
        vocabulary = {"size": 20, "shared": True}
        stage = Text(TextConfig.model_validate({"vocabulary": vocabulary}))
        inputs = {"records": (artifacts("rows"),), "model": ()}
        last = "stages.text.work.check_rejected"
    else:
        stage = Generate(GenerateConfig())
        inputs = {"graphs": (artifacts("export"),), "features": (artifacts("text"),)}
        last = "stages.generate.work.write_json"
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    events = Events(None)
    context = Context(kind, 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))

    def die(*_: Any) -> None:
        raise Died

    output.mkdir()
    scratch.mkdir()
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(last, die)
        stage.run(context, inputs)
    # As the engine does: the output is emptied, scratch is kept.
    shutil.rmtree(output)
    output.mkdir()
    runs: list[object] = []
    run = BeamJobs.run

    def spread(self: BeamJobs, build: Any, local: bool = False) -> None:
        # Sums of finished shards are merged again in this process.
        if local:
            run(self, build, local=True)
        else:
            runs.append(build)

    monkeypatch.setattr(BeamJobs, "run", spread)
    stage.run(context, inputs)
    assert not runs, "the second attempt has nothing left to do in Beam"
    expected = files(artifacts(kind).folder)
    del expected["manifest.json"]
    assert files(output) == expected
