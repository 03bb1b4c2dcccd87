"""Pictures: OpenCV's and Pillow's own results are the reference."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from model.modalities.image.files import (
    add_noise,
    crop,
    decode,
    jitter,
    middle,
    patches,
    prepare,
    scale,
    to_bytes,
)
from model.modalities.image.settings import ImageSettings
from model.modalities.media import MediaError, seeded

SETTINGS = ImageSettings(resize=32, crop=32, patch=8)
WHOLE = ImageSettings(resize=10_000)


def scene(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (5, 6, channels), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(picture: np.ndarray, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "GIF"])
def test_every_format_decodes_to_what_pillow_sees(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(scene(), format, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    # JPEG decoders round their transforms differently.
    tolerance = 4 if format in ("JPEG", "JPEG2000") else 0
    assert np.abs(decode(data, WHOLE).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("transparent", [False, True])
def test_pictures_stand_upright(orientation: int, transparent: bool) -> None:
    picture = scene(channels=4 if transparent else 3)
    if transparent:
        picture[..., 3] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "PNG" if transparent else "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode(data, WHOLE)
    assert decoded.shape[:2] == (expected.height, expected.width)
    assert np.abs(decoded.astype(int) - np.asarray(expected)).mean() < 2


def test_alpha_lies_over_white() -> None:
    picture = np.zeros((4, 4, 4), dtype=np.uint8)
    picture[:2] = (10, 20, 30, 255)
    picture[3] = (0, 0, 0, 128)
    decoded = decode(encoded(picture, "PNG"), WHOLE)
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert decoded[2, 0].tolist() == [255, 255, 255]
    assert decoded[3, 0].tolist() == [127, 127, 127]


def test_grey_palette_and_sixteen_bits() -> None:
    ramp = np.linspace(0, 255, 16, dtype=np.uint8).reshape(4, 4)
    expected = np.repeat(ramp[..., None], 3, axis=2)
    assert np.array_equal(decode(encoded(ramp, "PNG"), WHOLE), expected)
    wide = cv2.imencode(".png", ramp.astype(np.uint16) * 257)[1].tobytes()
    assert np.array_equal(decode(wide, WHOLE), expected)
    deep = np.dstack([ramp.astype(np.uint16) * 257] * 3 + [np.full((4, 4), 65535, np.uint16)])
    assert np.array_equal(decode(cv2.imencode(".png", deep)[1].tobytes(), WHOLE), expected)
    stream = io.BytesIO()
    Image.fromarray(ramp).convert("P").save(stream, "PNG", transparency=0)
    assert decode(stream.getvalue(), WHOLE).shape == (4, 4, 3)
    stream = io.BytesIO()
    Image.fromarray(scene()).convert("CMYK").save(stream, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB"))
    assert np.abs(decode(stream.getvalue(), WHOLE).astype(int) - expected).mean() < 6


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_by_their_header() -> None:
    with pytest.raises(MediaError, match="too many pixels: 50000 × 50000"):
        decode(bomb(50_000, 50_000), SETTINGS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello world", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|damaged picture"),
        (encoded(scene(), "JPEG")[:100], "not a picture|damaged picture"),
        (bomb(100, 100), "damaged picture"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        decode(data, SETTINGS)


def test_formats_of_which_opencv_could_read_another_header_are_refused() -> None:
    """Radiance: Pillow does not read it, and OpenCV takes another of two sizes than we would."""
    picture = scene().astype(np.float32) / 255
    data = cv2.imencode(".hdr", picture)[1].tobytes()
    two = data.replace(b"#?RGBE\n", b"#?RGBE\n-Y 1 +X 1\n")
    for file in (data, two):
        with pytest.raises(MediaError, match="not a picture"):
            decode(file, WHOLE)


@pytest.mark.parametrize("length", [20_000, 100_000])
@pytest.mark.parametrize("lies", [False, True])
def test_a_narrow_picture_does_not_grow_without_limit(length: int, lies: bool) -> None:
    """A few hundred bytes, which scaling would turn into gigabytes."""
    narrow = np.zeros((1, length, 3), np.uint8)
    data = encoded(narrow if lies else narrow.transpose(1, 0, 2), "PNG")
    assert len(data) < 1000
    with pytest.raises(MediaError, match=r"too many pixels: .* when the short side has 224, limit"):
        prepare(data, ImageSettings())


def test_a_damaged_exif_chunk_leaves_a_picture_as_it_is() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (8, 6)).save(stream, "PNG", exif=b"Exif\0\0no such header")
    assert decode(stream.getvalue(), WHOLE).shape == (6, 8, 3)
    stream = io.BytesIO()
    endless = b"MM\0\x2a\0\0\0\x08" + b"\xff" * 42
    Image.new("RGBA", (8, 6)).save(stream, "PNG", exif=endless)
    assert decode(stream.getvalue(), WHOLE).shape[2] == 3


def test_a_chunk_that_claims_gigabytes_takes_no_memory() -> None:
    """Found by tests/fuzz.py: OpenCV 5 takes 2 GB for it before it sees that the file is short."""
    data = encoded(scene(), "PNG")
    place = data.index(b"IDAT") - 4
    with pytest.raises(MediaError, match="a chunk is longer than the file"):
        decode(data[:place] + b"\x7f\xff\xff\xff" + data[place + 4 :], WHOLE)
    assert np.array_equal(decode(data + b"\xff" * 40, WHOLE), scene()), "after the end"


def test_noise_in_strips_is_the_noise_of_the_whole() -> None:
    picture = scene(700, 30)
    random = seeded(3)
    noise = random.standard_normal(picture.shape, dtype=np.float32) * (0.3 * 255)
    assert np.array_equal(add_noise(picture, 0.3, seeded(3)), to_bytes(picture + noise))


def shorter(short: int, side: int = 224) -> ImageSettings:
    return ImageSettings(resize=short, crop=side)


def test_scaling_is_by_area_downwards_and_bicubic_upwards() -> None:
    picture = scene()
    down = cv2.resize(picture, (30, 20), interpolation=cv2.INTER_AREA)
    up = cv2.resize(picture, (120, 80), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(scale(picture, shorter(20)), down)
    assert np.array_equal(scale(picture, shorter(80)), up)
    assert scale(picture, shorter(40)) is picture


def test_large_jpegs_are_decoded_small() -> None:
    data = encoded(scene(512, 700), "JPEG")
    assert min(decode(data, ImageSettings(resize=64)).shape[:2]) == 64
    assert min(decode(data, ImageSettings(resize=65)).shape[:2]) == 128
    assert decode(data, ImageSettings(resize=300)).shape[:2] == (512, 700)
    # Only the reduction itself loses detail: both are the same small picture.
    small = scale(decode(data, ImageSettings(resize=64)), shorter(64))
    whole = scale(decode(data, WHOLE), shorter(64))
    assert np.abs(small.astype(int) - whole).mean() < 2


def test_crops_are_in_the_middle_or_anywhere_by_seed() -> None:
    picture = scene()
    assert np.array_equal(middle(picture, shorter(40, 20)), picture[10:30, 20:40])
    first, second = (crop(picture, 20, seeded(1, "a")) for _ in range(2))
    assert np.array_equal(first, second)
    assert any(not np.array_equal(first, crop(picture, 20, seeded(seed))) for seed in range(5))


def test_the_middle_is_that_of_the_whole_scaled_picture() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(20, 400, 2)
        short = int(random.integers(8, min(height, width) + 30))
        side = int(random.integers(1, short + 1))
        picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = scale(picture, shorter(short))
        top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
        cut = whole[top : top + side, left : left + side]
        assert np.array_equal(middle(picture, shorter(short, side)), cut)


def test_patches_are_read_row_by_row() -> None:
    picture = scene(32, 32)
    color = patches(picture, SETTINGS)
    assert color.shape == (16, 192) and color.dtype == np.uint8
    assert np.array_equal(color[5].reshape(8, 8, 3), picture[8:16, 8:16])
    grey = patches(picture, ImageSettings(resize=32, crop=32, patch=8, channels=1))
    expected = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[8:16, 8:16]
    assert np.array_equal(grey[5].reshape(8, 8), expected)
    assert np.array_equal(prepare(encoded(picture, "PNG"), SETTINGS), color)


def test_jitter_and_noise_keep_to_their_measure() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    noisy = add_noise(grey, 0.1, seeded(0))
    assert noisy.std() == pytest.approx(25.5, rel=0.05)  # 12,288 draws
    assert np.array_equal(jitter(scene(), 0.0, seeded(0)), scene())
    changed = jitter(grey, 0.2, seeded(1))
    assert 128 * 0.8 - 1 <= changed.mean() <= 128 * 1.2 + 1
