"""What other libraries keep to themselves is used in one place, for the versions that are pinned;
what belongs to the whole process is put back."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from model.modalities.image import files
from model.modalities.image.settings import ImageSettings
from model.modalities.media import MediaError
from model.modalities.opencv import OPENCV
from model.modalities.process_wide import ProcessWide, Undo
from pipelines.internals.versions import require
from stages.train import _torch_settings

PACKAGES = ("pipelines", "stages", "model", "exports")
FOLDER = Path("pipelines/internals")


def private_uses(path: Path) -> list[str]:
    """Attributes and imports that begin with one underscore and are not of the class itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")}  # fmt: skip
    uses = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            if node.attr not in own:
                uses.append(f"{path}:{node.lineno} {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module:
            foreign = node.module.split(".")[0] not in PACKAGES
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            if foreign and any(re.match(r"_[^_]", name) for name in names):
                uses.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    return uses


def test_private_names_of_libraries_stand_in_one_folder(root: Path) -> None:
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    outside = [
        use for path in paths if root / FOLDER not in path.parents for use in private_uses(path)
    ]
    # Python's own: workers, of pools and of runs, end at once; a library of C is closed, so that
    # the next one is new.
    assert [use.rpartition(" ")[2] for use in outside] == [
        "os._exit", "os._exit", "self.library._handle"
    ]  # fmt: skip
    assert any(private_uses(path) for path in (root / FOLDER).glob("*.py"))


def test_the_versions_are_those_that_are_pinned(root: Path) -> None:
    pins = (root / "pyproject.toml").read_text(encoding="utf-8")
    checked: dict[str, str] = {}
    for path in (root / FOLDER).glob("*.py"):
        for names, version in re.findall(
            r'^require\(\[([^\]]*)\], "([^"]*)"\)', path.read_text(), re.M
        ):
            checked |= dict.fromkeys(re.findall(r'"([^"]*)"', names), version)
    assert set(checked) == {"apache-beam", "onnxruntime", "onnxruntime-gpu", "sacrebleu"}
    for name, version in checked.items():
        assert re.search(rf'"{name}=={re.escape(version)}[";]', pins), name


def test_another_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(ImportError, match=r"pip install numpy==1\.0"):
        require(["numpy"], "1.0")
    with pytest.raises(ImportError, match="installed is none: pip install no-such-thing==1"):
        require(["no-such-thing"], "1")


@pytest.fixture
def settings() -> Iterator[list[object]]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield [cv2.getNumThreads(), cv2.utils.logging.getLogLevel(), Image.MAX_IMAGE_PIXELS]
    cv2.setNumThreads(threads)


def test_decoding_leaves_opencv_and_pillow_as_they_were(
    settings: list[object],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    decode = cv2.imdecode

    def decoding(*arguments: Any) -> Any:
        seen.append(cv2.getNumThreads())
        return decode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", decoding)
    picture = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    assert files.prepare(picture, ImageSettings(resize=8, crop=8, patch=4)).shape == (4, 48)
    # Cut where only OpenCV can see it; of a PNG, our own look at its chunks would.
    cut = cv2.imencode(".bmp", np.zeros((9, 9, 3), np.uint8))[1].tobytes()[:60]
    with pytest.raises(MediaError):
        files.decode(cut, ImageSettings(resize=8))
    after = [cv2.getNumThreads(), cv2.utils.logging.getLogLevel(), Image.MAX_IMAGE_PIXELS]
    assert after == settings and settings[2] is not None
    assert seen == [1, 1]  # both reached OpenCV
    assert capfd.readouterr().err == ""


def test_importing_decoders_changes_nothing() -> None:
    script = (
        "import cv2, warnings; from PIL import Image\n"
        "def state(): return (cv2.getNumThreads(), cv2.utils.logging.getLogLevel(),"
        " Image.MAX_IMAGE_PIXELS, list(warnings.filters))\n"
        "before = state()\n"
        "import model.modalities.image.files, model.modalities.audio.files\n"
        "assert state() == before, (before, state())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_setting_holds_until_the_last_one_leaves() -> None:
    calls: list[str] = []

    def put() -> Undo:
        calls.append("put")
        return lambda: calls.append("undone")

    setting = ProcessWide(put)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with setting:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other, daemon=True)
    with setting:
        thread.start()
        inside.wait()
        with setting:
            pass
        assert calls == ["put"]
    assert calls == ["put"]
    leave.set()
    thread.join()
    assert calls == ["put", "undone"]
    with pytest.raises(KeyError), setting:
        raise KeyError
    assert calls == ["put", "undone"] * 2


def test_opencv_runs_on_one_thread_inside() -> None:
    with OPENCV:
        assert cv2.getNumThreads() == 1


def test_training_leaves_pytorch_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with _torch_settings(threads + 1, seed=5):
        assert torch.get_num_threads() == threads + 1
        first = torch.rand(3)
    with _torch_settings(1, seed=5):
        assert torch.equal(torch.rand(3), first)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_a_job_leaves_beam_as_it_was(tmp_path: Path) -> None:
    from apache_beam.runners.worker.statesampler import StateSampler

    from pipelines.running.beam_jobs import BeamJobs
    from pipelines.running.events import Events

    before = StateSampler.__init__.__defaults__
    assert BeamJobs({}, Events(None)).combine([1, 2], sum, tmp_path / "sum.json") == 3
    assert StateSampler.__init__.__defaults__ == before


def test_a_job_samples_often_and_says_nothing_misleading() -> None:
    import logging

    from apache_beam.runners.worker.statesampler import StateSampler

    from pipelines.internals.apache_beam import frequent_sampling
    from pipelines.running.beam_jobs import MISLEADING, without_misleading_warnings

    with frequent_sampling():
        assert StateSampler.__init__.__defaults__ == (20,)
    root = logging.getLogger()
    with without_misleading_warnings():
        records = [
            logging.LogRecord("root", logging.WARNING, "", 0, text, arguments, None)
            for text, arguments in ((MISLEADING[0], ()), ("100%% %d", ("x",)), ("kept", ()))
        ]
        assert [bool(root.filter(record)) for record in records] == [False, True, True]
    assert root.filter(records[0])


def test_the_options_of_beam_that_a_plan_knows_are_those_of_beam(root: Path) -> None:
    """REWRITE=1 writes them again, for another version of Beam."""
    from pipelines.internals.apache_beam import option_names

    path = root / "pipelines" / "reading" / "beam_options.txt"
    listing = "".join(f"{name}\n" for name in sorted(option_names()))
    if os.environ.get("REWRITE"):
        path.write_text(listing, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == listing
