"""The options of `series`, as a user writes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.stage import Config


class SeriesConfig(Config):
    """How series of readings become vectors, one per time step."""

    channels: Annotated[int, Field(ge=1, description="numbers in a time step")] = 1
    max_steps: Annotated[
        int, Field(ge=1, description="longer series are rejected; a step is a model position")
    ] = 400
    max_rejected: Annotated[
        float, Field(ge=0, le=1, description="the stage fails if more than this share is rejected")
    ] = 0.5
