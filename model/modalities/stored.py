"""Settings as they are stored. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class StoredSettings(BaseModel):
    """Base of settings that are stored beside features, models and graphs. Settings
    that were stored without a format have format 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1

    @model_validator(mode="before")
    @classmethod
    def _not_later(cls, value: Any) -> Any:
        known = cls.model_fields["format"].default
        written = value.get("format", 1) if isinstance(value, dict) else known
        if written > known:
            raise ValueError(
                f"written by a later version (format {written}, known is {known}): "
                "pip install --upgrade gemini-pipelines"
            )
        return value
