"""What a pipeline file says of who is told how a run went: `notify:` and `metrics:`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal, Self
from urllib.error import HTTPError, URLError

from pydantic import Field, field_validator, model_validator

from pipelines.stage import Config

Event = Literal["success", "recovery", "gate", "failure", "late"]
"""How a run ended: well, well after one that did not, with a gate that failed, in another way; or
that it takes longer than `expected:`."""
BAD = ("gate", "failure")
FROM_ENVIRONMENT = re.compile(r"\$([A-Za-z_]\w*)")


class NoticeConfig(Config):
    """Who is told, and when."""

    when: list[Event | Literal["always"]] = Field(
        ["failure", "gate", "recovery"],
        min_length=1,
        description="success, recovery (after a run that was not good), gate, failure, late, or "
        "always",
    )
    command: list[str] | None = Field(
        None,
        min_length=1,
        description="a program and its arguments, which gets the event and run.json as JSON on its "
        "standard input",
    )
    webhook: str | None = Field(
        None,
        pattern=r"^(https?://|\$)",
        description="a URL that gets the same as a POST request; $NAME is taken from the "
        "environment, so that it need not be in the file",
    )
    apprise: str | None = Field(
        None,
        min_length=1,
        description="a URL of Apprise (mail, Slack, Matrix and so on), with "
        "`pip install '.[notify]'`; $NAME is taken from the environment",
    )

    @field_validator("when", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len([1 for way in (self.command, self.webhook, self.apprise) if way is not None]) != 1:
            raise ValueError("takes one of command:, webhook: and apprise:")
        return self

    def wants(self, event: Event) -> bool:
        return event in self.when or "always" in self.when


class MetricsConfig(Config):
    """Where the numbers of a run go for Prometheus."""

    file: str | None = Field(
        None,
        min_length=1,
        description="a file for node_exporter's textfile collector, which ends in .prom; relative "
        "to the pipeline file",
    )
    pushgateway: str | None = Field(
        None,
        min_length=1,
        description="a Pushgateway's URL; $NAME is taken from the environment",
    )


class SettingError(ValueError):
    """What is set here is wrong; the message has nothing secret in it."""


def told_safely(error: Exception) -> str:
    """An error of a server or a library, without what could be a secret: a URL, or a part of it."""
    if isinstance(error, SettingError):
        return str(error)
    if isinstance(error, HTTPError):
        return f"the server said {error.code}"
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(reason).__name__


def from_environment(value: str, environment: Mapping[str, str] = os.environ) -> str:
    """The value, or that of the variable of the environment that it names as `$NAME`. Raises
    `SettingError` if there is no such variable."""
    match = FROM_ENVIRONMENT.fullmatch(value)
    if match is None:
        return value
    if not environment.get(match[1]):
        raise SettingError(f"the environment has no variable {match[1]}")
    return environment[match[1]]
