"""The schema of pipeline files accepts what the reader accepts and refuses what it refuses.

The reference for the schema's own form is jsonschema's metaschema of draft 2020-12.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines import registry
from pipelines.reading.document import SpecError
from pipelines.reading.spec import load_pipeline
from pipelines.schema import schema, text

WRITTEN = "docs/pipeline.schema.json"
DELETE = object()
GOOD = """
name: small
stages:
  rows: {use: ingest, source: a.tsv, columns: {text: source, target: target}}
  text: {records: [rows], vocabulary: {size: 20}}
  train: {features: text, model: {use: transformer, layers: 1}, steps: 10}
  export: {model: train, features: text}
  generate: {graphs: export, features: text}
  score: {predictions: generate}
  report: {scores: [score]}
gates: [exact_match >= 1]
"""


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_the_written_schema_is_that_of_the_code(root: Path) -> None:
    message = f"python -m pipelines.schema --write {WRITTEN}"
    assert (root / WRITTEN).read_text(encoding="utf-8") == text(), message


def test_every_pipeline_file_names_the_schema_and_fits(
    root: Path, validator: jsonschema.Draft202012Validator
) -> None:
    paths = [root / "pipeline.yaml", *sorted((root / "examples").glob("*.yaml"))]
    assert len(paths) > 4
    for path in paths:
        content = path.read_text(encoding="utf-8")
        named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", content)
        assert named, path
        assert (path.parent / named[1]).resolve() == root / WRITTEN
        validator.validate(yaml.safe_load(content))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good pipeline with another value at a path."""
    document: dict[str, Any] = yaml.safe_load(GOOD)
    *above, last = path.split("/")
    place = document
    for key in above:
        place = place[key]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    return document


def reads(document: dict[str, Any], folder: Path) -> bool:
    path = folder / "small.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        load_pipeline(path)
    except SpecError:
        return False
    return True


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage", {}),
        ("seed", "one"),
        ("stages", DELETE),
        ("gates", "exact_match >= 1"),
        ("stages/more", {"use": "ingset"}),
        ("stages/more", {"source": "a.tsv"}),
        ("stages/rows/source", DELETE),
        ("stages/rows/spilt", {"test": 3}),
        ("stages/text/records", DELETE),
        ("stages/text/vocabulary/size", [20]),
        ("stages/text/vocabulary/sise", 20),
        ("stages/export/model", ["train", "train"]),
        ("stages/train/steps", "many"),
        ("stages/train/steps", 0),
        ("stages/train/model/use", "transfomer"),
        ("stages/train/model/use", DELETE),
        ("stages/train/model/laiers", 2),
        ("stages/train/model/layers", 1.5),
        ("stages/train/precision", "fp8"),
        ("stages/score/metrics", ["blue"]),
        ("stages/report/examples", {}),
        ("stages", {}),
        ("stages/use", {"use": "score", "predictions": "generate"}),
        ("stages/a b", {"use": "score", "predictions": "generate"}),
        ("name", ""),
        ("beam", {"direct_num_workers": "two"}),
        ("beam", {"direct_num_workers": True}),
        ("beam", {"direct_num_workers": -1}),
    ],
)
def test_what_the_reader_refuses_the_schema_refuses(
    tmp_path: Path, validator: jsonschema.Draft202012Validator, path: str, value: Any
) -> None:
    document = changed(path, value)
    assert not reads(document, tmp_path)
    assert not validator.is_valid(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("variables", {"size": 20}),
        ("beam", {"direct_num_workers": 2}),
        ("stages/report", {"scores": "score", "title": "A"}),
        ("stages/again", {"use": "score", "predictions": "generate"}),
        ("stages/upper", {"use": "stages.score.stage:Score", "predictions": "generate"}),
        ("stages/train/model", {"use": "model.configuration:LstmConfig", "width": 32}),
        ("stages/train/model/use", "gemini"),
        ("stages/train/learning_rate", 1),
        ("gates", []),
        ("gates", None),
        ("beam", None),
    ],
)
def test_what_the_reader_accepts_the_schema_accepts(
    tmp_path: Path, validator: jsonschema.Draft202012Validator, path: str, value: Any
) -> None:
    document = changed(path, value)
    assert reads(document, tmp_path)
    validator.validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages/train/steps", 5),
        ("seed", 3),
        ("beam", {"direct_num_workers": 1}),
        ("gates", ["exact_match >= 1"]),
        ("stages/score", {"predictions": "generate"}),
        ("stages/train/model/use", "lstm"),
        ("stages/again/use", "score"),
        ("stages/train/betas/0", 0.9),
    ],
)
def test_a_variable_stands_for_any_value(
    tmp_path: Path, validator: jsonschema.Draft202012Validator, path: str, value: Any
) -> None:
    if path == "stages/again/use":
        document = changed("stages/again", {"use": "${one}", "predictions": "generate"})
    elif path == "stages/train/betas/0":
        document = changed("stages/train/betas", ["${one}", 0.98])
    elif path == "stages/train/model/use":
        document = changed("stages/train/model", {"use": "${one}"})
    else:
        document = changed(path, "${one}")
    document |= {"variables": {"one": value}}
    assert reads(document, tmp_path)
    validator.validate(document)


@pytest.mark.parametrize(
    ("stages", "fits"),
    [
        ({"train": {"steps": 20}}, True),
        ({"train": {"model": {"layers": 2}}}, True),
        ({"again": {"metrics": ["bleu"]}}, True),
        ({"train": {"stepps": 20}}, False),
        ({"train": {"steps": "many"}}, False),
    ],
)
def test_a_file_that_includes_others_may_say_less(
    tmp_path: Path,
    validator: jsonschema.Draft202012Validator,
    stages: dict[str, Any],
    fits: bool,
) -> None:
    again = changed("stages/again", {"use": "score", "predictions": "generate"})
    (tmp_path / "base.yaml").write_text(json.dumps(again))
    document = {"include": "base.yaml", "stages": stages}
    assert reads(document, tmp_path) is fits
    assert validator.is_valid(document) is fits


def test_packages_with_classes_of_like_names_fit_in(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = registry.BUILT_IN["stages"]["generate"]
    more = {"stages": {"other": generate, "broken": "no_such_module:Stage"}, "models": {}}
    monkeypatch.setattr(registry, "names", lambda group: registry.BUILT_IN[group] | more[group])
    made = schema(installed=True)
    jsonschema.Draft202012Validator.check_schema(made)
    assert "stage-other" in made["$defs"] and "stage-broken" not in made["$defs"]


def test_hovering_shows_what_an_option_is() -> None:
    definitions = schema()["$defs"]
    for name in ("stage-train", "stage-generate", "model-gemini"):
        descriptions = [
            option.get("description") for option in definitions[name]["properties"].values()
        ]
        assert sum(map(bool, descriptions)) >= len(descriptions) - 1, name
