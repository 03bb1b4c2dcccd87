"""Why a row cannot be used."""

from __future__ import annotations


class RowError(ValueError):
    """A row that cannot be used: a reason that is counted, and a detail for the user."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
