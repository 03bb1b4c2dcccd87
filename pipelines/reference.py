"""The table of stages and their options, made from the code: `python -m pipelines.reference`.

With `--write docs/options.md`, replaces the text between the two markers in that file.
"""

from __future__ import annotations

import argparse
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines import registry

BEGIN = "<!-- stages: made by python -m pipelines.reference --write docs/options.md -->"
END = "<!-- end of stages -->"


def reference() -> str:
    """Markdown for every built-in stage and model."""
    parts = []
    for name, target in registry.BUILT_IN["stages"].items():
        stage = registry.load(target)
        summary = str(stage.__doc__).strip().splitlines()[0]
        takes = ", ".join(
            f"`{key}:` {'several ' if declared.many else ''}{declared.kind}"
            for key, declared in stage.inputs.items()
        )
        parts.append(
            f"## `{name}`\n\n{summary} Takes {takes or 'files'}; makes {stage.output}.\n\n"
            f"{_table(stage.Config)}"
        )
    for name, target in registry.BUILT_IN["models"].items():
        config = registry.load(target)
        summary = str(config.__doc__).strip().splitlines()[0]
        parts.append(f"## model `{name}`\n\n{summary}\n\n{_table(config)}")
    return "\n\n".join(parts)


def _table(config: type[BaseModel]) -> str:
    lines = ["| option | type | default | what it is |", "|---|---|---|---|"]
    for path, field in _options(config, ""):
        default = "required" if field.is_required() else f"`{_plain(field.default)}`"
        lines.append(f"| `{path}` | {_type(field.annotation)} | {default} | {field.description} |")
    return "\n".join(lines)


def _options(config: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in config.model_fields.items():
        inner = field.annotation
        nested = (
            isinstance(inner, type) and issubclass(inner, BaseModel) and not field.is_required()
        )
        if nested:
            yield from _options(typing.cast(type[BaseModel], inner), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_plain(item) for item in value)}]"
    return str(value)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        kinds = (_type(item) for item in arguments if item is not type(None))
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return ", ".join(f"`{item}`" for item in arguments)
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])} → {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    names = {str: "text", int: "number", float: "number", bool: "true, false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def written(text: str) -> str:
    """A page's text with a new table between the markers."""
    before, opened, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (opened and closed):
        raise ValueError(f"the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def main() -> int:
    command = argparse.ArgumentParser(description="Prints the stages and their options.")
    command.add_argument("--write", type=Path, metavar="FILE", help="replace the part in this file")
    options = command.parse_args()
    if options.write is None:
        print(reference())
    else:
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(written(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
