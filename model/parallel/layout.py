"""How processes share the training of a model. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Layout(BaseModel):
    """How many processes there are, and what each has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dp_replicate: Annotated[
        int, Field(ge=1, description="groups of processes, each with all weights")
    ] = 1
    dp_shard: Annotated[
        int, Field(ge=1, description="processes of a group, which share weights and optimizer")
    ] = 1

    @property
    def processes(self) -> int:
        return self.dp_replicate * self.dp_shard

    @model_validator(mode="after")
    def _is_a_power(self) -> Self:
        for name in type(self).model_fields:
            degree = getattr(self, name)
            if degree & (degree - 1):
                raise ValueError(f"{name}: {degree} is not a power of 2")
        return self

    def check(self, parts: int) -> None:
        """Raises `ValueError` if a step of so many parts cannot be shared."""
        if parts % self.processes:
            raise ValueError(
                f"parallel: {self.processes} processes cannot share a step of parts: {parts}; set "
                f"parts: {self.processes}, or a multiple that is a power of 2"
            )
