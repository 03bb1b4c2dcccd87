"""The JSON schema of pipeline files, made from the code: `python -m pipelines.schema`.

Editors complete and check a pipeline file by it, if the file's first line names it:
`# yaml-language-server: $schema=FILE`. It knows the built-in stages and models, and on demand
those of installed packages. What it cannot know (whether an input exists, whether options go
together) is checked when the file is read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines import registry
from pipelines.reading import document
from pipelines.reading.durations import DURATION
from pipelines.reading.spec import MOST_RETRIES, NAME, RESERVED
from pipelines.stage import Stage
from pipelines.telling.options import MetricsConfig, NoticeConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VARIABLE = {"type": "string", "pattern": document.VARIABLE.pattern}
"""`${name}` can stand for any value."""
WHOLE_NAME = f"^{NAME.pattern}$"
ABOUT_VALUE = ("description", "default")
EFFORT: dict[str, Any] = {
    "retries": {
        "type": "integer",
        "minimum": 0,
        "maximum": MOST_RETRIES,
        "description": "how often a stage is tried again after a failure that may pass",
        "default": 0,
    },
    "timeout": {
        "type": "string",
        "pattern": DURATION,
        "description": "how long an attempt at a stage may take: 90s, 20m, 2h, 1d",
    },
}
"""What a pipeline says for all its stages, and a stage for itself."""
OWN_CLASS = {"type": "string", "pattern": ":", "description": "package.module:Class"}

Schema = dict[str, Any]


def schema(installed: bool = False) -> Schema:
    """The schema of a pipeline file (JSON Schema 2020-12).

    Args:
        installed: whether stages and models of installed packages are in it too; one that cannot
            be imported is named on stderr and left out.
    """
    definitions: Schema = {}
    for partial in (False, True):
        before = "partial-" if partial else ""
        models = {}
        for name, config in _classes("models", installed):
            models[name] = f"{before}model-{name}"
            closed = _closed(config, definitions, {"use": _use([name])}, models[name], partial)
            definitions[models[name]] = closed
        definitions[f"{before}model"] = _chosen(models, required=not partial)
        stages = {}
        for name, stage in _classes("stages", installed):
            stages[name] = f"{before}stage-{name}"
            definitions[stages[name]] = _stage(stage, definitions, stages[name], partial)
        definitions[f"{before}stage"] = _chosen(stages, required=not partial)
        # What a file that includes others calls a stage can have its `use:` in one of them.
        any_stage = {"anyOf": [_reference(place) for place in stages.values()]}
        definitions[f"{before}stages"] = {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": WHOLE_NAME, "not": {"enum": sorted(RESERVED)}},
            "properties": {
                name: _or_variable(
                    {
                        "if": {"required": ["use"]},
                        "then": _reference(f"{before}stage"),
                        "else": any_stage if partial else _reference(place),
                        "description": definitions[place]["description"],
                    }
                )
                for name, place in stages.items()
            },
            "additionalProperties": _or_variable(_reference(f"{before}stage")),
        }
    notice = _closed(NoticeConfig, definitions, {}, "notice", False)
    when = notice["properties"]["when"]
    several = next(each for each in when["anyOf"] if each.get("type") == "array")
    notice["properties"]["when"] = {**when, "anyOf": [*when["anyOf"], several["items"]]}
    definitions["notice"] = notice
    one = _reference("notice")
    return {
        "$schema": DIALECT,
        "title": "Gemini pipeline",
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "pattern": WHOLE_NAME,
                "description": "of the pipeline; that of the file if not given",
            },
            "seed": _or_variable(
                {"type": "integer", "description": "of all random choices", "default": 0}
            ),
            "beam": _or_variable(
                {
                    "type": ["object", "null"],
                    "properties": {"direct_num_workers": {"type": "integer", "minimum": 0}},
                    "description": "options of Apache Beam, passed on as they are",
                }
            ),
            "variables": {"type": "object", "description": "values that ${name} inserts"},
            "include": {
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                "description": "files to merge; this file takes precedence",
            },
            **_effort(),
            "expected": _or_variable(
                {
                    "type": "string",
                    "pattern": DURATION,
                    "description": "how long a run should take: 2h; a longer one is late",
                }
            ),
            "notify": {
                "anyOf": [one, {"type": "array", "items": one}, {"type": "null"}],
                "description": "who is told how a run went",
            },
            "metrics": {
                **_closed(MetricsConfig, definitions, {}, "metrics", False),
                "type": ["object", "null"],
            },
            "stages": {"description": "stages by name"},
            "gates": _or_variable(
                {
                    "type": ["array", "null"],
                    "items": {"type": "string"},
                    "description": "conditions of a good run, as in bleu:translate.test >= 10",
                }
            ),
            "baseline": {
                "type": "string",
                "description": "what scores are compared with: latest, none, RUN or PIPELINE/RUN",
                "default": "latest",
            },
        },
        "additionalProperties": False,
        # A file that includes others can leave out what they say.
        "if": {"required": ["include"]},
        "then": {"properties": {"stages": _or_variable(_reference("partial-stages"))}},
        "else": {
            "properties": {"stages": _or_variable(_reference("stages"))},
            "required": ["stages"],
        },
        "$defs": dict(sorted(definitions.items())),
    }


def _effort() -> Schema:
    return {name: _or_variable(said) for name, said in EFFORT.items()}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _classes(group: registry.Group, installed: bool) -> Iterator[tuple[str, Any]]:
    targets = registry.names(group) if installed else registry.BUILT_IN[group]
    for name, target in sorted(targets.items()):
        try:
            yield name, registry.load(target)
        except ValueError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)


def _use(names: Sequence[str]) -> Schema:
    return {"anyOf": [{"enum": sorted(names)}, OWN_CLASS, VARIABLE]}


def _chosen(places: Mapping[str, str], required: bool) -> Schema:
    """What `use:` chooses: a definition by name, or a class of the user's own."""
    return {
        "type": ["object", "null"],
        "properties": {"use": _use(list(places))},
        **({"required": ["use"]} if required else {}),
        "allOf": [
            {
                "if": {"properties": {"use": {"const": name}}, "required": ["use"]},
                "then": _reference(place),
            }
            for name, place in sorted(places.items())
        ],
    }


def _stage(stage: type[Stage], definitions: Schema, place: str, partial: bool) -> Schema:
    """The options and inputs of a stage."""
    inputs: Schema = {"use": {"type": "string"}, **_effort()}
    for name, declared in stage.inputs.items():
        several = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        if not declared.many:
            several["maxItems"] = 1
        nothing = [{"type": "null"}] if declared.optional else []
        inputs[name] = {
            "anyOf": [{"type": "string"}, several, *nothing],
            "description": f"takes {declared.kind}: {declared.description}",
        }
    closed = _closed(stage.Config, definitions, inputs, place, partial)
    closed["description"] = (stage.__doc__ or stage.__name__).strip().splitlines()[0]
    needed = [name for name, declared in stage.inputs.items() if not declared.optional]
    required = sorted({*closed.pop("required", []), *needed})
    if required and not partial:
        return {**closed, "required": required}
    return {**closed, "type": ["object", "null"]}  # a stage with nothing to say


def _closed(
    config: type[BaseModel], definitions: Schema, further: Schema, place: str, partial: bool
) -> Schema:
    """The schema of options with further properties. What it refers to becomes definitions whose
    names begin with `place`, because two classes of options can have one name."""
    made = config.model_json_schema(ref_template=f"#/$defs/{place}.{{model}}")
    inner = made.pop("$defs", {})
    if "$ref" in made:  # it contains itself
        made = dict(inner[made["$ref"].rpartition(".")[2]])
    for name, definition in inner.items():
        if name != "ModelConfig":  # `use:` chooses one
            definitions[f"{place}.{name}"] = _shaped(definition, partial)
    shaped = _shaped(made, partial)
    return {**shaped, "properties": {**further, **shaped.get("properties", {})}}


def _shaped(value: Any, partial: bool) -> Any:
    """A schema of pydantic's in which `${name}` can stand for any value, and `use:` chooses the
    model; without what is required, where an included file can have it."""
    if isinstance(value, list):
        return [_shaped(item, partial) for item in value]
    if not isinstance(value, dict):
        return value
    if str(value.get("$ref")).endswith(".ModelConfig"):
        return {**value, **_reference("partial-model" if partial else "model")}
    shaped: Schema = {}
    for key, item in value.items():
        if key == "properties":
            shaped[key] = {
                name: _or_variable(_shaped(inner, partial)) for name, inner in item.items()
            }
        elif key in ("items", "additionalProperties") and isinstance(item, dict):
            shaped[key] = _or_variable(_shaped(item, partial))
        elif key == "prefixItems":
            shaped[key] = [_or_variable(_shaped(inner, partial)) for inner in item]
        elif key == "default":
            shaped[key] = item
        elif key != "title" and not (partial and key == "required"):
            shaped[key] = _shaped(item, partial)
    return shaped


def _or_variable(value: Schema) -> Schema:
    about = {key: item for key, item in value.items() if key in ABOUT_VALUE}
    rest = {key: item for key, item in value.items() if key not in ABOUT_VALUE}
    if rest == {"type": "string"} or not rest:
        return value
    listed = rest["anyOf"] if set(rest) == {"anyOf"} else [rest]
    return {"anyOf": [*listed, VARIABLE], **about}


def text(installed: bool = False) -> str:
    return json.dumps(schema(installed), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.schema", description="Prints the JSON schema of pipeline files."
    )
    command.add_argument("--write", type=Path, metavar="FILE", help="write it to this file instead")
    command.add_argument(
        "--installed", action="store_true", help="with stages and models of installed packages"
    )
    options = command.parse_args()
    if options.write is None:
        print(text(options.installed), end="")
    else:
        options.write.write_text(text(options.installed), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
