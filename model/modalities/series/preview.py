"""Series on a page: a small drawing."""

from __future__ import annotations

import json

import numpy as np

from model.modalities.media import MediaError
from model.modalities.modality import Preview
from model.modalities.series.files import decode
from model.modalities.series.settings import SeriesSettings

WIDTH, HEIGHT = 160, 60
MOST_BYTES = 4_000_000
COLOURS = ("#0b66c3", "#c3470b", "#2a8f3c", "#7d3cb5", "#8a6d00", "#c30b6b")


def preview(data: bytes) -> Preview | None:
    """An SVG with a line for each channel, scaled from its lowest to its highest reading, with gaps
    where one is missing; None if the content is not a series."""
    if len(data) > MOST_BYTES:
        return None
    try:
        listed = json.loads(data)
        first = listed[0] if isinstance(listed, list) and listed else None
        channels = len(first) if isinstance(first, list) else 1
        if not channels:
            return None
        values = decode(data, SeriesSettings(channels=channels, max_steps=100_000)).astype(float)
    except (MediaError, ValueError, RecursionError):
        return None
    across = np.linspace(1, WIDTH - 1, len(values))
    lines = []
    for channel in range(channels):
        column = values[:, channel]
        present = np.isfinite(column)
        if not present.any():
            continue
        least, greatest = column[present].min(), column[present].max()
        down = HEIGHT - 2 - (column - least) / ((greatest - least) or 1) * (HEIGHT - 4)
        path, pen = [], "M"
        for x, y, is_there in zip(across, down, present, strict=True):
            if is_there:
                path.append(f"{pen}{x:.1f} {y:.1f}h0")  # a single reading is a dot
            pen = "L" if is_there else "M"
        colour = COLOURS[channel % len(COLOURS)]
        lines.append(
            f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.5" '
            'stroke-linecap="round"/>'
        )
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(lines)}</svg>'
    )
    return Preview("image/svg+xml", drawing.encode(), ".svg")
