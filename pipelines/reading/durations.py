"""Lengths of time as people write them: `90s`, `20m`, `2h`, `1d`."""

from __future__ import annotations

import re

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = r"^\s*(\d+(?:\.\d+)?)\s*([smhd])\s*$"
LONGEST = 366 * UNITS["d"]


def seconds_of(value: object) -> float:
    """The seconds of a length of time. Raises `ValueError` if it is none."""
    match = re.fullmatch(DURATION.strip("^$"), value) if isinstance(value, str) else None
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"must be a time with its unit, as 90s, 20m, 2h or 1d, not {value!r}")
    return seconds
