"""Sounds to log-mel frames: decoding, mono, resampling, silence, windows, one FFT for many clips.

The numbers are those of librosa's functions (`load`, `feature.melspectrogram`, `power_to_db`,
`effects.split`), its filter bank included; the work is done for a batch of clips at once. Written
once for training and serving. Imports no torch, no Beam and nothing of the pipeline.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import scipy.fft
import soundfile
import soxr
from threadpoolctl import ThreadpoolController

from model.media import AudioSettings, MediaError

FRAMES = 512
"""Frames transformed at a time: they fit a core's cache."""
BANDS = 4
"""Parts of the filter bank that are applied apart: each spans a few of the spectrum's bins."""
AMIN = 1e-10
"""`librosa.power_to_db`'s floor."""


def decode(data: bytes, settings: AudioSettings, max_seconds: float | None = None) -> np.ndarray:
    """A sound as mono float32 samples (samples,) at `settings.sample_rate`.

    As `librosa.load(sr=..., mono=True)`: the mean of the channels, then soxr's HQ resampling.
    Whether it is too long is told by its header, before it is decoded.

    Raises:
        MediaError: not a sound, damaged, silent for lack of samples, too long, or with samples
            that are no numbers.
    """
    if not data:
        raise MediaError("empty file")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            seconds = file.frames / file.samplerate
            limit = settings.max_samples
            if file.frames * file.channels > limit or (max_seconds and seconds > max_seconds):
                raise MediaError("too long", f"{seconds:.1f} s at {file.samplerate} Hz")
            if file.subtype == "PCM_16":  # libsndfile's own conversion takes four times as long
                whole = file.read(dtype="int16", always_2d=True)
                samples = np.multiply(whole, np.float32(1 / 32768), dtype=np.float32)
            else:
                samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        # Its own text names the object in memory, which is another in every process.
        raise MediaError("damaged or unknown sound", error.error_string) from error
    if len(samples) == 0:
        raise MediaError("no samples")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise MediaError("samples are not numbers", f"{int((~np.isfinite(mono)).sum())} of them")
    if rate != settings.sample_rate:
        length = int(np.ceil(len(mono) * settings.sample_rate / rate))
        mono = _fixed(soxr.resample(mono, rate, settings.sample_rate, quality="HQ"), length)
    return np.ascontiguousarray(mono, dtype=np.float32)


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


def log_mel(
    clips: Sequence[np.ndarray], settings: AudioSettings, filters: np.ndarray
) -> list[np.ndarray]:
    """Log-mel frames (frames, mels) float32, in dB, of every clip.

    `power_to_db(melspectrogram(y, n_fft=window, hop_length=hop), top_db=None)`: Hann window,
    frames centred, zeros beyond the ends.
    """
    counts = [frame_count(len(clip), settings) for clip in clips]
    # A product split among threads adds in another order; one thread always adds in one.
    with _blas().limit(limits=1):
        return _log_mel(clips, counts, settings, filters)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _log_mel(
    clips: Sequence[np.ndarray], counts: list[int], settings: AudioSettings, filters: np.ndarray
) -> list[np.ndarray]:
    half = settings.window // 2
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.window) / settings.window)
    window, bands = hann.astype(np.float32), _bands(filters)
    levels = np.empty((sum(counts), settings.mels), dtype=np.float32)
    # Frames of short clips share a transform, those of a long one are spread over several.
    frames = np.empty((FRAMES, settings.window), dtype=np.float32)
    longest = max(map(len, clips), default=0)
    whole = np.zeros(longest + 2 * half + settings.window, dtype=np.float32)
    filled, done = 0, 0
    for clip, count in zip(clips, counts, strict=True):
        padded = whole[: max(len(clip) + 2 * half, settings.window)]
        padded[half : half + len(clip)] = clip
        padded[half + len(clip) :] = 0
        view = np.lib.stride_tricks.sliding_window_view(padded, settings.window)[:: settings.hop]
        taken = 0
        while taken < count:
            more = min(FRAMES - filled, count - taken)
            np.multiply(view[taken : taken + more], window, out=frames[filled : filled + more])
            filled, taken = filled + more, taken + more
            if filled == FRAMES:
                _levels(frames, bands, levels[done : done + filled])
                filled, done = 0, done + filled
    _levels(frames[:filled], bands, levels[done : done + filled])
    return np.split(levels, np.cumsum(counts)[:-1]) if clips else []


Band = tuple[slice, slice, np.ndarray]
"""Some of the mel bins, the bins of the spectrum that they are made of, and the weights."""


def _bands(filters: np.ndarray) -> list[Band]:
    bands = []
    for part in np.array_split(np.arange(len(filters)), min(BANDS, len(filters))):
        used = np.flatnonzero(filters[part].any(axis=0))
        mels = slice(part[0], part[-1] + 1)
        # With more mel bins than the spectrum has bins, some filters are empty.
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
        bands.append((mels, bins, np.ascontiguousarray(filters[mels, bins].T)))
    return bands


def _levels(frames: np.ndarray, bands: Sequence[Band], levels: np.ndarray) -> None:
    """Windowed frames (frames, window) to `levels` (frames, mels) in dB. Overwrites the frames."""
    if not len(frames):
        return
    parts = scipy.fft.rfft(frames, axis=1, overwrite_x=True).view(np.float32)
    np.multiply(parts, parts, out=parts)
    power = parts[:, 0::2] + parts[:, 1::2]
    for mels, bins, weights in bands:
        np.matmul(power[:, bins], weights, out=levels[:, mels])
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
    """An encoded sound with white noise, as FLAC at its own rate, mono."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        samples = file.read(dtype="float32", always_2d=True).mean(axis=1)
        return encode(add_noise(samples, snr, random), file.samplerate)


def spec_augment(
    frames: np.ndarray, times: int, bands: int, random: np.random.Generator
) -> np.ndarray:
    """Up to `times` stretches of a tenth of the frames, and `bands` of an eighth of the bins, set
    to the clip's mean (Park et al., 2019, section 2, without time warping)."""
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
