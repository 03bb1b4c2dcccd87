"""Pictures to patches: decoding with OpenCV, orientation, scaling, cropping, cutting.

Written once for training and serving. Imports no torch, no Beam and nothing of the pipeline.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import (  # the formats; Pillow loads some of them only when it is asked for any format
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from model.modalities.image.settings import ImageSettings
from model.modalities.media import MediaError, damage_as
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
FORMATS = (
    BmpImagePlugin.BmpImageFile.format,
    GifImagePlugin.GifImageFile.format,
    Jpeg2KImagePlugin.Jpeg2KImageFile.format,
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    PpmImagePlugin.PpmImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
"""Of Pillow's formats those that OpenCV tells by the same first bytes. For others, Pillow would
check one header and OpenCV could decode by another."""
STRIP = 256
"""Rows of a picture that are computed with at a time: numbers take four times the memory of bytes.
"""


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
        with PILLOW, Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            transparent = opened.mode in ALPHA or "transparency" in opened.info
            header = Header(opened.size, opened.format, transparent, opened.info.get("exif"))
    except UnidentifiedImageError as error:
        raise MediaError("not a picture", f"begins with {begins!r}") from error
    except Exception as error:  # damaged headers may raise anything in Pillow
        raise MediaError("damaged picture", f"{type(error).__name__}: {error}"[:200]) from error
    check_pixels(*header.size, max_pixels)
    if header.format == "PNG":
        check_chunks(data)
    return header


def check_chunks(data: bytes | memoryview) -> None:
    """Raises `MediaError` if a chunk of a PNG claims more bytes than there are (PNG, section 5.3):
    OpenCV takes as much memory as the chunk claims."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if bytes(data[place + 4 : place + 8]) == b"IEND":
            return
        place += 12 + length
    if place > len(data):
        raise MediaError("damaged picture", "a chunk is longer than the file")


def check_pixels(width: int, height: int, max_pixels: int, when: str = "") -> None:
    """Raises `MediaError` for a size that would take too much memory."""
    if width < 1 or height < 1:
        raise MediaError("damaged picture", f"{width} × {height} pixels")
    if width * height > max_pixels:
        raise MediaError("too many pixels", f"{width} × {height}{when}, limit {max_pixels}")


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
    if header.format in ("JPEG", "MPO"):
        short = min(header.size)
        factors = (factor for factor in REDUCED if short // factor >= settings.resize)
        flags = REDUCED.get(next(factors, 1), flags)
    with damage_as("damaged picture"):
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if picture is None or picture.size == 0:
        raise MediaError("damaged picture", f"a {header.format} that OpenCV cannot decode")
    if header.transparent:
        return upright(over_white(picture), header)
    return picture if flags == cv2.IMREAD_COLOR_RGB else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def over_white(picture: np.ndarray) -> np.ndarray:
    """Turns BGRA, grey with alpha or BGR (8 or 16 bits, or float) into RGB bytes on white."""
    result = np.empty((*picture.shape[:2], 3), np.uint8)
    for top in range(0, len(picture), STRIP):
        result[top : top + STRIP] = _over_white(picture[top : top + STRIP])
    return result


def _over_white(picture: np.ndarray) -> np.ndarray:
    levels = picture.astype(np.float32)
    if picture.dtype == np.uint16:
        levels /= 257
    elif picture.dtype != np.uint8:
        levels = np.clip(np.nan_to_num(levels), 0, 1) * 255
    if levels.ndim == 2 or levels.shape[2] == 1:
        return np.rint(levels).reshape(*levels.shape[:2], 1)
    colour = levels[..., :3][..., ::-1]
    if levels.shape[2] < 4:
        return np.rint(colour)
    alpha = levels[..., 3:] / 255
    return np.rint(colour * alpha + 255 * (1 - alpha))


def upright(picture: np.ndarray, header: Header) -> np.ndarray:
    """Undoes the EXIF orientation, which OpenCV does not do if alpha is kept."""
    if not header.exif:
        return picture
    exif = Image.Exif()
    try:
        exif.load(header.exif)
        turned = exif.get(ORIENTATION, 1)
    except Exception:  # damaged: as OpenCV, which then leaves the picture as it is
        return picture
    rotation, flip = TURNS.get(turned, (None, None)) if isinstance(turned, int) else (None, None)
    if rotation is not None:
        picture = cv2.rotate(picture, rotation)
    return picture if flip is None else cv2.flip(picture, flip)


def scale(picture: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Scales the short side to `settings.resize` pixels: by area averaging down, by bicubic up.

    Raises `MediaError` if a narrow picture would then have more than `settings.max_pixels`.
    """
    height, width = picture.shape[:2]
    short = settings.resize
    if min(height, width) == short:
        return picture
    rows, columns = scaled_size(picture, short)
    check_pixels(columns, rows, settings.max_pixels, f" when the short side has {short}")
    kind = cv2.INTER_AREA if short < min(height, width) else cv2.INTER_CUBIC
    return cv2.resize(picture, (columns, rows), interpolation=kind)


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


def middle(picture: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """A square of `settings.crop` cut out of the middle of the picture that `scale` makes.

    Pixels to the right of it or below are not computed: the mean over an area does not need them.
    """
    height, width = picture.shape[:2]
    short, side = settings.resize, settings.crop
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
        picture = scale(picture, settings)
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
    noisy = np.empty_like(picture)
    for top in range(0, len(picture), STRIP):
        part = picture[top : top + STRIP]
        noise = random.standard_normal(part.shape, dtype=np.float32) * (amount * 255)
        noisy[top : top + STRIP] = to_bytes(part + noise)
    return noisy


@OPENCV
def with_noise(data: bytes, amount: float, random: np.random.Generator) -> bytes:
    """An encoded picture with noise, as PNG. Raises `MediaError`."""
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
    return patches(middle(decode(data, settings), settings), settings)


def prepared(files: Sequence[bytes], settings: ImageSettings, folder: Path) -> list[np.ndarray]:
    """See `model.modalities.modality.Modality.preparation`."""
    with OPENCV, PILLOW:  # once for all of them
        return [prepare(data, settings) for data in files]
