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

from pipelines.reading.document import SpecError
from pipelines.reading.spec import load_pipeline
from pipelines.schema import schema, text

WRITTEN = "docs/pipeline.schema.json"
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
    """The good pipeline with another value at a path; None removes it."""
    document: dict[str, Any] = yaml.safe_load(GOOD)
    *above, last = path.split("/")
    place = document
    for key in above:
        place = place[key]
    if value is None:
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
        ("stages", None),
        ("gates", "exact_match >= 1"),
        ("stages/more", {"use": "ingset"}),
        ("stages/more", {"source": "a.tsv"}),
        ("stages/rows/source", None),
        ("stages/rows/spilt", {"test": 3}),
        ("stages/text/records", None),
        ("stages/text/vocabulary/size", [20]),
        ("stages/text/vocabulary/sise", 20),
        ("stages/export/model", ["train", "train"]),
        ("stages/train/steps", "many"),
        ("stages/train/steps", 0),
        ("stages/train/model/use", "transfomer"),
        ("stages/train/model/use", None),
        ("stages/train/model/laiers", 2),
        ("stages/train/model/layers", 1.5),
        ("stages/train/precision", "fp8"),
        ("stages/score/metrics", ["blue"]),
        ("stages/report/examples", {}),
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
    ],
)
def test_what_the_reader_accepts_the_schema_accepts(
    tmp_path: Path, validator: jsonschema.Draft202012Validator, path: str, value: Any
) -> None:
    document = changed(path, value)
    assert reads(document, tmp_path)
    validator.validate(document)


def test_a_variable_stands_for_any_value(
    tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    document = changed("stages/train/steps", "${steps}") | {"variables": {"steps": 5}}
    assert reads(document, tmp_path)
    validator.validate(document)


def test_a_file_that_includes_others_may_say_less(
    tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    (tmp_path / "base.yaml").write_text(GOOD)
    document = {"include": "base.yaml", "stages": {"train": {"steps": 20}}}
    assert reads(document, tmp_path)
    validator.validate(document)
    document["stages"] = {"train": {"stepps": 20}}
    assert not reads(document, tmp_path) and not validator.is_valid(document)


def test_hovering_shows_what_an_option_is() -> None:
    definitions = schema()["$defs"]
    for name in ("stage-train", "stage-generate", "model-gemini"):
        descriptions = [
            option.get("description") for option in definitions[name]["properties"].values()
        ]
        assert sum(map(bool, descriptions)) >= len(descriptions) - 1, name
