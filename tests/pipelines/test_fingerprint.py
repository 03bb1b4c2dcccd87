"""Fingerprints: what changes them, what does not, and how differences are named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.base import Json
from pipelines.contracts.runs import Parts
from pipelines.planning import fingerprint
from pipelines.planning.fingerprint import code_hashes, differences, flatten
from pipelines.store.digests import canonical, digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_equal_digest_means_equal_parts(first: dict[str, Json], second: dict[str, Json]) -> None:
    assert (digest(first) == digest(second)) == (canonical(first) == canonical(second))


def test_order_of_keys_does_not_count() -> None:
    assert digest({"a": {"x": 1, "y": 2}, "b": 3}) == digest({"b": 3, "a": {"y": 2, "x": 1}})


def test_what_cannot_be_hashed_is_an_error() -> None:
    with pytest.raises(TypeError):
        digest({"a": object()})
    with pytest.raises(ValueError, match="Out of range"):
        digest({"a": float("nan")})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "stage.py").write_text(
        "import json\nfrom mine import helper\nfrom mine.deep import thing\nclass A: pass\n"
    )
    (folder / "helper.py").write_text('"""Doc."""\ndef f(x):\n    return x + 1\n')
    (folder / "deep.py").write_text("def thing():\n    from . import lazy\n    return lazy\n")
    (folder / "lazy.py").write_text("raise RuntimeError('hashing must not import')\n")
    (folder / "unused.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def hashes(package: Path) -> dict[str, Json]:
    fingerprint._parse.cache_clear()
    fingerprint._source.cache_clear()
    return dict(code_hashes(["mine.stage:A"]))


def test_code_is_followed_through_imports_and_not_run(package: Path) -> None:
    assert sorted(hashes(package)) == [
        "mine/__init__.py",
        "mine/deep.py",
        "mine/helper.py",
        "mine/lazy.py",
        "mine/stage.py",
    ]


def test_comments_docstrings_and_layout_change_nothing(package: Path) -> None:
    before = hashes(package)
    (package / "helper.py").write_text(
        '"""Other."""\n\n# why\ndef f(x):\n    "More."\n    return (x +\n  1)  # how\n'
    )
    text = (package / "helper.py").read_text().replace('    "More."\n', "")
    (package / "helper.py").write_text(text)
    assert hashes(package) == before


def test_a_change_of_code_is_named(package: Path) -> None:
    before = hashes(package)
    (package / "helper.py").write_text("def f(x):\n    return x + 2\n")
    assert differences({"CODE": before}, {"CODE": hashes(package)}) == ["CODE mine/helper.py"]


def test_differences_are_sentences() -> None:
    before: Parts = {
        "CONFIG": flatten({"a": {"b": 1}, "c": 2}),
        "LIBRARY": {"torch": "1"},
        "INPUT": {"f": "x"},
    }
    after: Parts = {
        "CONFIG": flatten({"a": {"b": 3}, "c": 2}),
        "LIBRARY": {"torch": "2"},
        "INPUT": {"f": "y"},
    }
    assert differences(before, after) == [
        "CONFIG a.b: 1 → 3",
        "INPUT f",
        'LIBRARY torch: "1" → "2"',
    ]


def test_registering_a_stage_reruns_nothing() -> None:
    assert "pipelines/registry.py" not in code_hashes(["stages.train:Train"])


def test_scoring_code_is_not_part_of_training() -> None:
    training = code_hashes(["stages.train:Train", "model.networks.transformer:Transformer"])
    assert {
        "model/training/loop.py",
        "model/networks/layers.py",
        "exports/decoding/greedy.py",
    } <= training.keys()
    assert (
        not {"stages/score/stage.py", "stages/measures/statistics.py", "stages/score/counting.py"}
        & training.keys()
    )
