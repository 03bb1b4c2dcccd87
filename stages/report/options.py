"""The options of `report`, as a user writes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.stage import Config

CONTENT = "content.json"
"""The file of a report's artifact that pages are drawn from: `pipelines.contracts.Content`."""


class ReportConfig(Config):
    """What the report shows."""

    title: Annotated[str, Field(description="heading; the pipeline's name if not given")] = ""
    examples: Annotated[
        int, Field(ge=0, description="rows shown for each task, split and modality")
    ] = 12
