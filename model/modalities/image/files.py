"""Pictures to patches: decoding with OpenCV, orientation, scaling, cropping, cutting.

Written once for training and serving. Imports no torch, no Beam and nothing of the pipeline.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from model.modalities.image.settings import ImageSettings
from model.modalities.media import MediaError
from model.modalities.opencv import OPENCV
from model.modalities.process_wide import ProcessWide, Undo

ORIENTATION = 0x0112
TURNS = {
    2: (None, 1),
    3: (cv2.ROTATE_180, None),
    4: (None, 0),
    5: (cv2.ROTATE_90_CLOCKWISE, 1),
    6: (cv2.ROTATE_90_CLOCKWISE, None),
    7: (cv2.ROTATE_90_COUNTERCLOCKWISE, 1),
    8: (cv2.ROTATE_90_COUNTERCLOCKWISE, None),
}
"""EXIF orientation to the rotation, and the flip after it, that undo it (Exif 2.3, tag 274)."""
REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
"""Pillow's modes with transparency."""
RADIANCE = re.compile(rb"[-+]Y (\d{1,9}) [-+]X (\d{1,9})\n")
"""The size in the header of a Radiance picture, the one format that OpenCV reads and Pillow not."""


def _without_pillows_limit() -> Undo:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None

    def undo() -> None:
        Image.MAX_IMAGE_PIXELS = limit

    return undo


PILLOW = ProcessWide(_without_pillows_limit)
"""Only headers are read with Pillow, and `max_pixels` is the limit."""


@dataclass(frozen=True)
class Header:
    """What a picture says of itself before it is decoded."""

    size: tuple[int, int]
    """Width and height."""
    format: str | None = None
    """Pillow's name of it."""
    transparent: bool = False
    exif: bytes | None = None


def probe(data: bytes | memoryview, max_pixels: int) -> Header:
    """The header of a picture, without decoding. Raises `MediaError`, also for too many pixels."""
    if not len(data):
        raise MediaError("empty file")
    begins = bytes(data[:8])
    try:
        size = RADIANCE.search(data[:4096]) if begins.startswith(b"#?") else None
        if size:
            header = Header((int(size[2]), int(size[1])))
        else:
            with PILLOW, Image.open(io.BytesIO(data)) as opened:
                transparent = opened.mode in ALPHA or "transparency" in opened.info
                header = Header(opened.size, opened.format, transparent, opened.info.get("exif"))
    except UnidentifiedImageError as error:
        raise MediaError("not a picture", f"begins with {begins!r}") from error
    except Exception as error:  # damaged headers may raise anything in Pillow
        raise MediaError("damaged picture", f"{type(error).__name__}: {error}") from error
    width, height = header.size
    if width * height > max_pixels:
        raise MediaError("too many pixels", f"{width} × {height}, limit {max_pixels}")
    return header


@OPENCV
def decode(data: bytes | memoryview, settings: ImageSettings) -> np.ndarray:
    """A picture as (height, width, 3) RGB bytes, upright, alpha over white.

    The pixel limit is checked on the header alone. JPEG is decoded at a half, a quarter or an
    eighth of its size if the short side is then still at least `settings.resize`.

    Raises:
        MediaError: not a picture, damaged, or too large.
    """
    header = probe(data, settings.max_pixels)
    flags = cv2.IMREAD_UNCHANGED if header.transparent else cv2.IMREAD_COLOR_RGB
    if header.format == "JPEG":
        short = min(header.size)
        factors = (factor for factor in REDUCED if short // factor >= settings.resize)
        flags = REDUCED.get(next(factors, 1), flags)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise MediaError("damaged picture", str(error).strip()[:200]) from error
    if picture is None or picture.size == 0:
        raise MediaError("damaged picture", f"a {header.format} that OpenCV cannot decode")
    if header.transparent:
        return upright(over_white(picture), header)
    return picture if flags == cv2.IMREAD_COLOR_RGB else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def over_white(picture: np.ndarray) -> np.ndarray:
    """Turns BGRA, grey with alpha or BGR (8 or 16 bits, or float) into RGB bytes on white."""
    if picture.dtype == np.uint16:
        picture = picture.astype(np.float32) / 257
    elif picture.dtype != np.uint8:
        picture = np.clip(np.nan_to_num(picture.astype(np.float32)), 0, 1) * 255
    if picture.ndim == 2 or picture.shape[2] == 1:
        return np.repeat(np.rint(picture).astype(np.uint8).reshape(*picture.shape[:2], 1), 3, 2)
    colour = picture[..., :3][..., ::-1].astype(np.float32)
    if picture.shape[2] < 4:
        return np.rint(colour).astype(np.uint8)
    alpha = picture[..., 3:].astype(np.float32) / 255
    return np.rint(colour * alpha + 255 * (1 - alpha)).astype(np.uint8)


def upright(picture: np.ndarray, header: Header) -> np.ndarray:
    """Undoes the EXIF orientation, which OpenCV does not do if alpha is kept."""
    if not header.exif:
        return picture
    exif = Image.Exif()
    exif.load(header.exif)
    rotation, flip = TURNS.get(exif.get(ORIENTATION, 1), (None, None))
    if rotation is not None:
        picture = cv2.rotate(picture, rotation)
    return picture if flip is None else cv2.flip(picture, flip)


def scale(picture: np.ndarray, short: int) -> np.ndarray:
    """Scales the short side to `short` pixels: by area averaging down, by bicubic up."""
    height, width = picture.shape[:2]
    if min(height, width) == short:
        return picture
    kind = cv2.INTER_AREA if short < min(height, width) else cv2.INTER_CUBIC
    return cv2.resize(picture, scaled_size(picture, short)[::-1], interpolation=kind)


def scaled_size(picture: np.ndarray, short: int) -> tuple[int, int]:
    """Height and width after `scale`."""
    height, width = picture.shape[:2]
    ratio = short / min(height, width)
    return max(short, round(height * ratio)), max(short, round(width * ratio))


def crop(picture: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """A square cut out at a random place."""
    spare_y, spare_x = picture.shape[0] - side, picture.shape[1] - side
    top, left = int(random.integers(spare_y + 1)), int(random.integers(spare_x + 1))
    return picture[top : top + side, left : left + side]


def middle(picture: np.ndarray, short: int, side: int) -> np.ndarray:
    """A square cut out of the middle of the picture that `scale` makes.

    Pixels to the right of it or below are not computed: the mean over an area does not need them.
    """
    height, width = picture.shape[:2]
    rows, columns = scaled_size(picture, short)
    top, left = (rows - side) // 2, (columns - side) // 2
    if short < min(height, width):
        # One more pixel than needed, so that the last one's share is not rounded off.
        below = min(height, math.ceil((top + side) * height / rows) + 1)
        right = min(width, math.ceil((left + side) * width / columns) + 1)
        picture = cv2.resize(
            picture[:below, :right],
            None,
            fx=columns / width,
            fy=rows / height,
            interpolation=cv2.INTER_AREA,
        )
    else:
        picture = scale(picture, short)
    return picture[top : top + side, left : left + side]


def flip(picture: np.ndarray) -> np.ndarray:
    """Mirrors the picture left to right."""
    return np.ascontiguousarray(picture[:, ::-1])


def jitter(picture: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Multiplies brightness, contrast and saturation by factors from 1 - amount to 1 + amount."""
    brightness, contrast, saturation = random.uniform(1 - amount, 1 + amount, 3)
    pixels = picture.astype(np.float32) * brightness
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    grey = pixels.mean(axis=2, keepdims=True)
    return to_bytes((pixels - grey) * saturation + grey)


def add_noise(picture: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose deviation is `amount` of the whole range."""
    noise = random.standard_normal(picture.shape, dtype=np.float32) * (amount * 255)
    return to_bytes(picture + noise)


@OPENCV
def with_noise(data: bytes, amount: float, random: np.random.Generator) -> bytes:
    """An encoded picture with noise, as PNG."""
    picture = add_noise(decode(data, ImageSettings(resize=1 << 30)), amount, random)
    encoded: bytes = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    return encoded


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def patches(picture: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """(patches, patch · patch · channels) bytes of a square picture, row by row (Dosovitskiy et
    al., 2021, section 3.1)."""
    if settings.channels == 1:
        picture = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)[..., None]
    count, side, channels = settings.columns, settings.patch, settings.channels
    cut = picture.reshape(count, side, count, side, channels).swapaxes(1, 2)
    return cut.reshape(count * count, side * side * channels)


def prepare(data: bytes | memoryview, settings: ImageSettings) -> np.ndarray:
    """Patches of an encoded picture, without any augmentation: what serving does."""
    return patches(middle(decode(data, settings), settings.resize, settings.crop), settings)


def prepared(files: Sequence[bytes], settings: ImageSettings, folder: Path) -> list[np.ndarray]:
    """See `model.modalities.modality.Modality.preparation`."""
    with OPENCV, PILLOW:  # once for all of them
        return [prepare(data, settings) for data in files]
