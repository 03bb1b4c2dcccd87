"""Validation of options: pydantic's errors as paths and sentences, and plug-ins chosen by `use`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines import registry
from pipelines.registry import did_you_mean

OptionPath = tuple[Any, ...]


class NestedError(ValueError):
    """Problems of options validated inside another model's validator."""

    def __init__(self, problems: list[tuple[OptionPath, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


def problems_of(error: ValidationError, known: Sequence[str]) -> list[tuple[OptionPath, str]]:
    """Path and message of every error; those of nested plug-ins have the full path.

    Args:
        known: the keys that are allowed at the top, for suggestions.
    """
    pairs: list[tuple[OptionPath, str]] = []
    for item in error.errors():
        path = item["loc"]
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, NestedError):
            pairs += [((*path, *sub), message) for sub, message in inner.problems]
        elif item["type"] == "extra_forbidden":
            siblings = known if len(path) == 1 else ()
            pairs.append((path, f"unknown option{did_you_mean(path[-1], siblings)}"))
        elif item["type"] == "missing":
            pairs.append((path, "is required"))
        else:
            message = item["msg"].removeprefix("Value error, ")
            pairs.append((path, f"{message[:1].lower()}{message[1:]}, not {_short(item['input'])}"))
    return pairs


def choose(group: registry.Group, value: Any) -> Any:
    """Validates `{use: NAME, ...options}` against the class that NAME stands for.

    For a field of a stage's config that is itself a plug-in, such as the model of `train`.
    """
    if not isinstance(value, dict):
        return value
    options = dict(value)
    if not isinstance(options.get("use"), str):
        names = ", ".join(sorted(registry.names(group)))
        raise NestedError([(("use",), f"is required: one of {names}, or package.module:Class")])
    try:
        cls = registry.load(registry.resolve(group, options.pop("use")))
    except ValueError as error:
        raise NestedError([(("use",), str(error))]) from error
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        raise NestedError([(("use",), f"{value['use']} is not a class of options")])
    try:
        return cls.model_validate(options)
    except ValidationError as error:
        raise NestedError(problems_of(error, list(cls.model_fields))) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
