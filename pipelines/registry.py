"""Names to classes: built-ins, installed entry points, and `package.module:Class`."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from typing import Any, Literal

Group = Literal["stages", "models", "utilities", "judges"]

BUILT_IN: dict[Group, dict[str, str]] = {
    "stages": {
        "ingest": "stages.ingest.stage:Ingest",
        "speak": "stages.speak.stage:Speak",
        "pair": "stages.pair:Pair",
        "text": "stages.text.stage:Text",
        "image": "stages.image.stage:Image",
        "audio": "stages.audio.stage:Audio",
        "series": "stages.series.stage:Series",
        "import": "stages.import_model:Import",
        "train": "stages.train:Train",
        "export": "stages.export:Export",
        "generate": "stages.generate.stage:Generate",
        "score": "stages.score.stage:Score",
        "svc": "stages.svc:Svc",
        "report": "stages.report.stage:Report",
    },
    "models": {
        "gemini": "model.configuration:GeminiConfig",
        "transformer": "model.configuration:TransformerConfig",
        "lstm": "model.configuration:LstmConfig",
    },
    "utilities": {"ngram_f1": "exports.decoding.several:ngram_f1"},
    "judges": {"hsk_level": "stages.judges:hsk_level"},
}
KIND: dict[Group, str] = {
    "stages": "stage", "models": "model", "utilities": "utility", "judges": "judge",
}  # fmt: skip
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""`package.module:Class`."""
ENTRY_POINTS = "gemini_pipelines.{group}"


def names(group: Group) -> dict[str, str]:
    """All known names of a group and the "module:Class" behind each; built-ins win."""
    installed = importlib.metadata.entry_points(group=ENTRY_POINTS.format(group=group))
    return {entry.name: entry.value for entry in installed} | BUILT_IN[group]


def resolve(group: Group, use: str) -> str:
    """The "module:Class" behind a name. Raises `ValueError` with a suggestion."""
    if ":" in use:
        if not TARGET.fullmatch(use):
            raise ValueError(f"{use!r} is not of the form package.module:Class")
        return use
    known = names(group)
    if use not in known:
        raise ValueError(
            f"unknown {KIND[group]} {use!r}{did_you_mean(use, known)}; known names are "
            f"{', '.join(sorted(known))}, or write package.module:Class for your own"
        )
    return known[use]


def load(target: str) -> Any:
    """The class at "module:Class". Raises `ValueError` saying what could not be imported."""
    module, _, name = target.partition(":")
    try:
        loaded: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of the user's can raise anything
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise ValueError(f"cannot import {module!r} of {target!r}: {kind}{error}") from error
    for part in name.split("."):
        if not hasattr(loaded, part):
            raise ValueError(f"module {module!r} has no {name!r}{did_you_mean(part, dir(loaded))}")
        loaded = getattr(loaded, part)
    return loaded


def did_you_mean(wrong: Any, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or an empty string if no known name is similar."""
    near = difflib.get_close_matches(str(wrong), list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""
