"""The JSON schema of pipeline files, made from the code: `python -m pipelines.schema`.

Editors complete and check a pipeline file by it, if the file's first line names it:
`# yaml-language-server: $schema=FILE`. It knows the built-in stages and models and those of
installed packages. What it cannot know (whether an input exists, whether options go together) is
checked when the file is read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines import registry
from pipelines.stage import Stage

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFINITIONS = "#/$defs/{name}"
VARIABLE = {"type": "string", "pattern": r"\$\{[^}]+\}"}
"""`${name}` can stand for any value."""
ABOUT_VALUE = ("title", "description", "default")
OWN_CLASS = {"type": "string", "pattern": ":", "description": "package.module:Class"}

Schema = dict[str, Any]


def schema() -> Schema:
    """The schema of a pipeline file (JSON Schema 2020-12)."""
    definitions: Schema = {}
    models = {}
    for name, target in sorted(registry.names("models").items()):
        models[name] = f"model-{name}"
        config = registry.load(target)
        definitions[models[name]] = _closed(config, definitions, {"use": {"const": name}})
    definitions["model"] = _chosen(models)
    for partial in (False, True):
        kind = "partial-stage" if partial else "stage"
        stages = {}
        for name, target in sorted(registry.names("stages").items()):
            stages[name] = f"{kind}-{name}"
            definitions[stages[name]] = _stage(registry.load(target), definitions, partial)
        definitions[kind] = _chosen(stages, required=not partial)
        definitions[f"{kind}s"] = {
            "type": "object",
            "properties": {
                name: {
                    "if": {"required": ["use"]},
                    "then": _reference(kind),
                    "else": _reference(place),
                    "description": definitions[place]["description"],
                }
                for name, place in stages.items()
            },
            "additionalProperties": _reference(kind),
        }
    return {
        "$schema": DIALECT,
        "title": "Gemini pipeline",
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "description": "of the pipeline; that of the file if not given",
            },
            "seed": {"type": "integer", "description": "of all random choices", "default": 0},
            "beam": {
                "type": "object",
                "description": "options of Apache Beam, passed on as they are",
            },
            "variables": {"type": "object", "description": "values that ${name} inserts"},
            "include": {
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                "description": "files to merge; this file takes precedence",
            },
            "stages": {"description": "stages by name"},
            "gates": {
                "type": ["array", "null"],
                "items": {"type": "string"},
                "description": "conditions that a good run meets, as in bleu:translate.test >= 10",
            },
            "baseline": {
                "type": "string",
                "description": "what scores are compared with: latest, none, RUN or PIPELINE/RUN",
                "default": "latest",
            },
        },
        "additionalProperties": False,
        # A file that includes others can leave out what they say.
        "if": {"required": ["include"]},
        "then": {"properties": {"stages": _reference("partial-stages")}},
        "else": {"properties": {"stages": _reference("stages")}, "required": ["stages"]},
        "$defs": dict(sorted(definitions.items())),
    }


def _reference(name: str) -> Schema:
    return {"$ref": DEFINITIONS.format(name=name)}


def _chosen(places: Mapping[str, str], required: bool = True) -> Schema:
    """What `use:` chooses: a definition by name, or a class of the user's own."""
    return {
        "type": ["object", "null"],
        "properties": {"use": {"anyOf": [{"enum": sorted(places)}, OWN_CLASS]}},
        **({"required": ["use"]} if required else {}),
        "allOf": [
            {
                "if": {"properties": {"use": {"const": name}}, "required": ["use"]},
                "then": _reference(place),
            }
            for name, place in sorted(places.items())
        ],
    }


def _stage(stage: type[Stage], definitions: Schema, partial: bool) -> Schema:
    """The options and inputs of a stage."""
    inputs: Schema = {"use": {"type": "string"}}
    for name, declared in stage.inputs.items():
        several = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        if not declared.many:
            several["maxItems"] = 1
        inputs[name] = {
            "anyOf": [
                {"type": "string"},
                several,
                *([{"type": "null"}] if declared.optional else []),
            ],
            "description": f"takes {declared.kind}: {declared.description}",
        }
    closed = _closed(stage.Config, definitions, inputs)
    closed["description"] = str(stage.__doc__).strip().splitlines()[0]
    needed = [name for name, declared in stage.inputs.items() if not declared.optional]
    required = sorted({*closed.pop("required", []), *needed})
    if partial or not required:
        closed["type"] = ["object", "null"]  # `report:` alone is a stage with nothing to say
    return closed if partial or not required else {**closed, "required": required}


def _closed(config: type[BaseModel], definitions: Schema, further: Schema) -> Schema:
    """The schema of options with further properties; what it refers to goes to `definitions`."""
    made = config.model_json_schema(ref_template=DEFINITIONS.replace("{name}", "{model}"))
    inner = made.pop("$defs", {})
    for name, definition in inner.items():
        if name == "ModelConfig":
            continue  # `use:` chooses one
        shaped = _shaped(definition)
        if definitions.setdefault(name, shaped) != shaped:
            raise ValueError(f"two classes of options are named {name}")
    shaped = _shaped(made)
    return {**shaped, "properties": {**further, **shaped.get("properties", {})}}


def _shaped(value: Any) -> Any:
    """A schema of pydantic's in which `${name}` can stand for any value, and `model:` is chosen by
    `use:`."""
    if isinstance(value, list):
        return [_shaped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("$ref") == DEFINITIONS.format(name="ModelConfig"):
        return {**value, **_reference("model")}
    shaped = {}
    for key, item in value.items():
        if key == "properties":
            shaped[key] = {name: _or_variable(_shaped(inner)) for name, inner in item.items()}
        elif key in ("items", "additionalProperties") and isinstance(item, dict):
            shaped[key] = _or_variable(_shaped(item))
        elif key == "title" or key == "default":
            shaped[key] = item
        else:
            shaped[key] = _shaped(item)
    shaped.pop("title", None)
    return shaped


def _or_variable(value: Schema) -> Schema:
    about = {key: item for key, item in value.items() if key in ABOUT_VALUE}
    rest = {key: item for key, item in value.items() if key not in ABOUT_VALUE}
    if rest == {"type": "string"} or not rest:
        return value
    listed = rest["anyOf"] if set(rest) == {"anyOf"} else [rest]
    return {"anyOf": [*listed, VARIABLE], **about}


def text() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.schema", description="Prints the JSON schema of pipeline files."
    )
    command.add_argument("--write", type=Path, metavar="FILE", help="write it to this file instead")
    options = command.parse_args()
    if options.write is None:
        print(text().rstrip("\n"))
    else:
        options.write.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
