"""What `series` does with the series of a group of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from model.modalities.media import Row


class SeriesWorker:
    """One array of readings per row."""

    modality = "series"

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def process(self, rows: Sequence[Row]) -> Iterator[Any]:
        from model.modalities.media import MediaError
        from model.modalities.series.files import decode

        for row in rows:
            try:
                yield [decode(row["series"], self.settings)]
            except MediaError as error:
                yield error
