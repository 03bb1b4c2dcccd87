"""Addresses of machines, as options name them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipelines.contracts.base import Json

ADDRESS = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")


def addresses_of(text: str) -> tuple[str, ...]:
    """The addresses in a text, `host:port` with commas between them. Raises `ValueError`."""
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in addresses:
        match = ADDRESS.fullmatch(address)
        if match is None or not 0 < int(match[1]) < 65536:
            raise ValueError(f"{address!r} must be host:port")
    if not addresses:
        raise ValueError("must be host:port of a worker pool, with commas between several")
    return addresses


def pools_of(options: Mapping[str, Json]) -> tuple[str, ...]:
    """The addresses of worker pools that Beam's options name for the FnApiRunner. Raises
    `ValueError`."""
    runner = options.get("runner", "FnApiRunner")
    if runner != "FnApiRunner" or options.get("environment_type") != "EXTERNAL":
        return ()
    return addresses_of(str(options.get("environment_config") or ""))
