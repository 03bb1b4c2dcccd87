"""Hugging Face `datasets` over a folder of pictures, with torchvision's usual transforms
(Resize, CenterCrop) written in Pillow, and patches cut with NumPy. Prints its seconds as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

FOLDER, RESIZE, CROP, PATCH = sys.argv[1], *map(int, sys.argv[2:5])


def transform(picture: Image.Image) -> np.ndarray:
    picture = picture.convert("RGB")
    width, height = picture.size
    ratio = RESIZE / min(width, height)
    # torchvision's Resize is bilinear with antialiasing, which Pillow's always is.
    picture = picture.resize(
        (round(width * ratio), round(height * ratio)), Image.Resampling.BILINEAR
    )
    left, top = (picture.width - CROP) // 2, (picture.height - CROP) // 2
    pixels = np.asarray(picture.crop((left, top, left + CROP, top + CROP)))
    count = CROP // PATCH
    cut = pixels.reshape(count, PATCH, count, PATCH, 3).swapaxes(1, 2)
    return cut.reshape(count * count, -1)


def batch(rows: dict[str, list[Any]]) -> dict[str, list[np.ndarray]]:
    return {"patches": [transform(picture) for picture in rows["image"]]}


paths = [str(path) for path in sorted(Path(FOLDER).iterdir())]
datasets.disable_progress_bars()
table = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
features = datasets.Features(
    {"patches": datasets.Array2D((CROP * CROP // PATCH**2, PATCH * PATCH * 3), "uint8")}
)
started = time.perf_counter()
table.map(batch, batched=True, batch_size=32, remove_columns=["image"], features=features)
print(json.dumps({"seconds": time.perf_counter() - started}))
