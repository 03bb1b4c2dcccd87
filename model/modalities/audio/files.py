"""Sounds to log-mel frames: decoding, mono, resampling, silence, windows, one FFT for many clips.

The numbers are those of librosa's functions (`load`, `feature.melspectrogram`, `power_to_db`,
`effects.split`), its filter bank included; the work is done for a batch of clips at once. Written
once for training and serving. Imports no torch, no Beam and nothing of the pipeline.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import soundfile
import soxr
from threadpoolctl import ThreadpoolController

from model.modalities.audio.settings import AudioSettings
from model.modalities.media import MediaError, damage_as
from model.modalities.opencv import OPENCV
from model.modalities.process_wide import ProcessWide, Undo

FRAMES = 512
"""Frames transformed at a time."""
BANDS = 6
"""Parts of the filter bank that are applied separately: each spans a few spectrum bins."""
WAVE_PCM = 1
"""`WAVE_FORMAT_PCM`, of a WAV file's format chunk."""
LEAST_RATE, MOST_RATE = 1_000, 1_000_000
"""Hz. A header can claim any rate, and resampling from or to it then takes any time."""
LOUDEST = 100.0
"""Full scale is 1; floating-point files can go beyond, which is up to 40 dB here."""
NOISE_SAMPLES = 20_000_000
"""Longest sound that gets noise: its samples are held several times."""
AMIN = 1e-10
"""`librosa.power_to_db`'s floor."""


class _Content(io.BytesIO):
    """A file for libsndfile, which calls back for every read. What is raised there is printed with
    a traceback and goes on; so a place before the beginning, from a damaged header, is the
    beginning."""

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self.tell(), len(self.getbuffer()))[whence]
        return super().seek(max(0, min(start + offset, len(self.getbuffer()))))


def plain_wav(data: bytes | memoryview) -> tuple[np.ndarray, int] | None:
    """16-bit samples (frames, channels) and the rate of a complete and ordinary WAV file, without
    copying; None for any other file, which libsndfile then reads.

    With Python's calls into libsndfile and its calls back, worker threads wait for each other
    longer than the rest of the work takes.
    """
    if len(data) < 12 or bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"WAVE":
        return None
    offset, kind = 12, None
    while offset + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, offset)
        offset += 8
        if offset + size > len(data):
            return None
        if name == b"fmt " and size >= 16:
            kind = struct.unpack_from("<HHIIHH", data, offset)
        elif name == b"data":
            if kind is None or kind[0] != WAVE_PCM or kind[5] != 16 or not kind[1] or not kind[2]:
                return None
            frames = size // (2 * kind[1])
            samples = np.frombuffer(data, "<i2", frames * kind[1], offset)
            return samples.reshape(frames, kind[1]), kind[2]
        offset += size + size % 2
    return None


def decode(
    data: bytes | memoryview, settings: AudioSettings, max_seconds: float | None = None
) -> np.ndarray:
    """A sound as mono float32 samples (samples,) at `settings.sample_rate`.

    As `librosa.load(sr=..., mono=True)`: the mean of the channels, then soxr's HQ resampling.
    Its length, before and after resampling, is checked in its header, before it is decoded.

    Raises:
        MediaError: not a sound, damaged, without samples, too long, too loud, of an unusual rate,
            or with samples that are not numbers.
    """
    mono, rate = decoded(data, settings.max_samples, max_seconds, settings.sample_rate)
    if rate != settings.sample_rate:
        length = int(np.ceil(len(mono) * settings.sample_rate / rate))
        with damage_as("damaged or unknown sound"):
            mono = _fixed(soxr.resample(mono, rate, settings.sample_rate, quality="HQ"), length)
    return np.ascontiguousarray(mono, dtype=np.float32)


def decoded(
    data: bytes | memoryview,
    max_samples: int,
    max_seconds: float | None = None,
    wanted: int = 0,
    part: float | None = None,
) -> tuple[np.ndarray, int]:
    """Mono samples at the sound's own rate, and that rate. Raises `MediaError` as `decode`.

    Args:
        wanted: the rate at which the samples must not be more than `max_samples` either.
        part: seconds from the beginning that are enough; the length is then not checked.
    """
    if not len(data):
        raise MediaError("empty file")

    def checked(frames: int, channels: int, rate: int) -> int:
        """How many frames to read."""
        if not LEAST_RATE <= rate <= MOST_RATE or channels < 1:
            limits = f"limits {LEAST_RATE} and {MOST_RATE}"
            raise MediaError("unusual rate", f"{rate} Hz, {channels} channels, {limits}")
        if part is not None:
            return min(frames, round(part * rate), max_samples // channels)
        grown = frames * max(1.0, wanted / rate)
        if max(frames * channels, grown) > max_samples or (
            max_seconds and frames / rate > max_seconds
        ):
            raise MediaError("too long", f"{frames / rate:.1f} s at {rate} Hz")
        return frames

    plain = plain_wav(data)
    if plain is not None:
        whole, rate = plain
        whole = whole[: checked(len(whole), whole.shape[1], rate)]
    else:
        try:
            reason = "damaged or unknown sound"
            with damage_as(reason), soundfile.SoundFile(_Content(data)) as file:
                rate = file.samplerate
                count = checked(file.frames, file.channels, rate)
                # libsndfile's own conversion of 16 bits takes four times as long as NumPy's.
                kind = "int16" if file.subtype == "PCM_16" else "float32"
                whole = file.read(count, dtype=kind, always_2d=True)
        except MediaError as error:
            cause = error.__cause__
            if isinstance(cause, soundfile.LibsndfileError):
                # Its own text names the object in memory, which differs from process to process.
                raise MediaError(error.reason, cause.error_string) from cause
            raise
    if len(whole) == 0:
        raise MediaError("no samples")
    exact = whole.dtype.kind == "i"
    samples = np.multiply(whole, np.float32(1 / 32768), dtype=np.float32) if exact else whole
    if not exact:
        bad = int((~np.isfinite(samples)).sum())
        if bad:
            raise MediaError("samples are not numbers", f"{bad} of them")
        peak = float(np.abs(samples).max())
        if peak > LOUDEST:
            # One such file would decide the mean of all: its power is beyond any recording's.
            detail = f"samples up to {peak:.3g}, where full scale is 1; limit {LOUDEST:g}"
            raise MediaError("too loud", detail)
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1), rate


def _fixed(samples: np.ndarray, length: int) -> np.ndarray:
    return np.pad(samples, (0, max(0, length - len(samples))))[:length]


def mel_filters(settings: AudioSettings) -> np.ndarray:
    """librosa's filter bank (mels, 1 + window // 2). Takes seconds: librosa compiles itself."""
    import librosa.filters

    filters = librosa.filters.mel(
        sr=settings.sample_rate, n_fft=settings.window, n_mels=settings.mels
    )
    return np.asarray(filters, dtype=np.float32)


def frame_count(samples: int, settings: AudioSettings) -> int:
    return 1 + (samples + settings.window // 2 * 2 - settings.window) // settings.hop


@OPENCV
def log_mel(
    clips: Sequence[np.ndarray], settings: AudioSettings, filters: np.ndarray
) -> list[np.ndarray]:
    """Log-mel frames (frames, mels) float32, in dB, of every clip.

    `power_to_db(melspectrogram(y, n_fft=window, hop_length=hop), top_db=None)`: Hann window,
    frames centred, zeros beyond the ends.
    """
    counts = [frame_count(len(clip), settings) for clip in clips]
    # Several threads would sum a product in a varying order; one thread always sums in one.
    with BLAS:
        return _log_mel(clips, counts, settings, filters)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _one_blas_thread() -> Undo:
    limiter = _blas().limit(limits=1)
    return lambda: limiter.restore_original_limits()


BLAS = ProcessWide(_one_blas_thread)
"""With several threads, BLAS would add in another order."""


def _log_mel(
    clips: Sequence[np.ndarray], counts: list[int], settings: AudioSettings, filters: np.ndarray
) -> list[np.ndarray]:
    size, hop = settings.window, settings.hop
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    tiled = np.tile(hann.astype(np.float32), (FRAMES, 1))
    bands = _bands(_packed(filters, size))
    # The clips are concatenated, each starting on the grid of hops, with zeros around it. They form
    # one sequence of frames; frames that span two clips are not used.
    spans = [-(-max(len(clip) + size // 2 * 2, size) // hop) for clip in clips]
    starts = np.cumsum([0, *spans]).tolist()
    whole = np.zeros(starts[-1] * hop + size, dtype=np.float32)
    for clip, start in zip(clips, starts, strict=False):
        first = start * hop + size // 2
        whole[first : first + len(clip)] = clip
    step = whole.itemsize
    view = np.ndarray((starts[-1], size), np.float32, whole, strides=(hop * step, step))
    levels = np.empty((starts[-1], settings.mels), dtype=np.float32)
    frames, spectrum = np.zeros((2, FRAMES, size), dtype=np.float32)
    for first in range(0, len(view), FRAMES):
        count = min(FRAMES, len(view) - first)
        frames[:count] = view[first : first + count]
        frames *= tiled  # contiguous, which is faster than windowing while copying
        _levels(frames[:count], spectrum[:count], bands, levels[first : first + count])
    return [levels[at : at + count] for at, count in zip(starts, counts, strict=False)]


Band = tuple[slice, slice, np.ndarray]
"""Some mel bins, the columns of the spectrum that they are computed from, and the weights."""


def _packed(filters: np.ndarray, window: int) -> np.ndarray:
    """Weights (mels, window) for a spectrum as OpenCV packs it: Re 0, Re 1, Im 1, Re 2, Im 2, …;
    for an even window, the last is Re window/2. Both parts of a bin have the same weight."""
    return np.concatenate([filters[:, :1], np.repeat(filters[:, 1:], 2, axis=1)], axis=1)[
        :, :window
    ]


def _bands(packed: np.ndarray) -> list[Band]:
    bands = []
    for part in np.array_split(np.arange(len(packed)), min(BANDS, len(packed))):
        used = np.flatnonzero(packed[part].any(axis=0))
        mels = slice(part[0], part[-1] + 1)
        # With more mel bins than the spectrum has bins, some filters are empty.
        columns = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
        bands.append((mels, columns, np.ascontiguousarray(packed[mels, columns].T)))
    return bands


def _levels(
    frames: np.ndarray, spectrum: np.ndarray, bands: Sequence[Band], levels: np.ndarray
) -> None:
    """Windowed frames (frames, window) to `levels` (frames, mels) in dB; `spectrum` is a buffer."""
    # Intel's transform, where OpenCV has it, takes a third of the time of scipy's.
    cv2.dft(frames, spectrum, cv2.DFT_ROWS)
    np.multiply(spectrum, spectrum, out=spectrum)
    for mels, columns, weights in bands:
        np.matmul(spectrum[:, columns], weights, out=levels[:, mels])
    np.log(np.maximum(levels, AMIN, out=levels), out=levels)
    levels *= np.float32(10 / np.log(10))


def sounding(samples: np.ndarray, top_db: float) -> np.ndarray:
    """Intervals (intervals, 2) of samples that are less than `top_db` below the loudest frame.

    The intervals of `librosa.effects.split` with its defaults (frames of 2048, hop of 512).
    """
    frame, hop = 2048, 512
    padded = np.pad(samples, frame // 2)
    sums = np.concatenate([[0.0], np.cumsum(padded.astype(np.float64) ** 2)])
    starts = np.arange(0, len(padded) - frame + 1, hop)
    power = (sums[starts + frame] - sums[starts]) / frame
    level = 10 * np.log10(np.maximum(AMIN, power) / max(AMIN, power.max()))
    loud = np.concatenate([[False], level > -top_db, [False]])
    edges = np.flatnonzero(np.diff(loud.astype(np.int8)))
    return np.minimum(edges.reshape(-1, 2) * hop, len(samples))


def windows(samples: np.ndarray, length: int, overlap: int) -> Iterator[np.ndarray]:
    """Pieces of `length` samples, each sharing `overlap` with the one before; the last is short."""
    step = length - overlap
    for start in range(0, max(1, len(samples) - overlap), step):
        yield samples[start : start + length]


def add_noise(samples: np.ndarray, snr: float, random: np.random.Generator) -> np.ndarray:
    """White noise at a signal-to-noise ratio of `snr` dB over the whole clip."""
    power = float(np.mean(samples.astype(np.float64) ** 2))
    deviation = np.sqrt(max(power, AMIN) / 10 ** (snr / 10))
    noise = random.standard_normal(len(samples), dtype=np.float32)
    return samples + noise * np.float32(deviation)


def encode(samples: np.ndarray, rate: int) -> bytes:
    """Mono samples as a FLAC file of 16 bits, made quieter where they would be clipped."""
    stream = io.BytesIO()
    peak = float(np.abs(samples).max(initial=0.0))
    soundfile.write(stream, samples / max(1.0, peak), rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def with_noise(data: bytes, snr: float, random: np.random.Generator) -> bytes:
    """An encoded sound with white noise, as FLAC at its own rate, mono. Raises `MediaError`."""
    samples, rate = decoded(data, NOISE_SAMPLES)
    with damage_as("damaged or unknown sound"):
        return encode(add_noise(samples, snr, random), rate)


def spec_augment(
    frames: np.ndarray, times: int, bands: int, random: np.random.Generator
) -> np.ndarray:
    """Sets `times` stretches of up to a tenth of the frames, and `bands` of up to an eighth of the
    bins, to the clip's mean (Park et al., 2019, section 2, without time warping)."""
    masked = frames.copy()
    mean = frames.mean()
    length, mels = frames.shape
    for _ in range(times):
        width = int(random.integers(0, max(1, length // 10) + 1))
        start = int(random.integers(0, length - width + 1))
        masked[start : start + width] = mean
    for _ in range(bands):
        width = int(random.integers(0, max(1, mels // 8) + 1))
        start = int(random.integers(0, mels - width + 1))
        masked[:, start : start + width] = mean
    return masked


def save_filters(folder: Path, filters: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"mel": np.ascontiguousarray(filters)}, folder / "filters.safetensors")


def load_filters(folder: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(folder / "filters.safetensors")["mel"]


def prepared(files: Sequence[bytes], settings: AudioSettings, folder: Path) -> list[np.ndarray]:
    """See `model.modalities.modality.Modality.preparation`."""
    return log_mel([decode(data, settings) for data in files], settings, load_filters(folder))
