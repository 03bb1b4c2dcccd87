"""Sounds: librosa's own functions are the reference."""

from __future__ import annotations

import io
import struct

import librosa
import numpy as np
import pytest
import soundfile

from model.modalities.audio.files import (
    add_noise,
    decode,
    log_mel,
    mel_filters,
    plain_wav,
    sounding,
    spec_augment,
    windows,
    with_noise,
)
from model.modalities.audio.preview import preview
from model.modalities.audio.settings import AudioSettings
from model.modalities.media import MediaError, seeded

SETTINGS = AudioSettings(mels=64)
DECIBELS = 1e-2
"""Both compute in fp32; near the floor of -100 dB a sum of squares keeps four digits."""


def tone(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 1800 * time * time)
    sound = sound + 0.01 * random.standard_normal(len(time))
    return np.stack([sound * (1 - 0.5 * n) for n in range(channels)], axis=1)


def encoded(
    samples: np.ndarray, rate: int, format: str = "WAV", subtype: str | None = None
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, subtype=subtype)
    return stream.getvalue()


@pytest.fixture(scope="module")
def filters() -> np.ndarray:
    return mel_filters(SETTINGS)


@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 16_000),
        ("WAV", "FLOAT", 44_100),
        ("WAV", "PCM_24", 192_000),
        ("FLAC", None, 22_050),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
        ("MP3", None, 32_000),
        ("WAV", "PCM_U8", 8_000),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_librosas(format: str, subtype: str | None, rate: int, channels: int) -> None:
    data = encoded(tone(0.7, rate, channels), rate, format, subtype)
    expected, _ = librosa.load(io.BytesIO(data), sr=16_000, mono=True)
    samples = decode(data, SETTINGS)
    assert samples.dtype == np.float32 and len(samples) == len(expected)
    np.testing.assert_allclose(samples, expected, atol=1e-6)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_plain_wavs_are_what_libsndfile_reads(channels: int, rate: int) -> None:
    data = encoded(tone(0.1, rate, channels), rate)
    expected, expected_rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
    parsed = plain_wav(memoryview(data))
    assert parsed is not None and parsed[1] == expected_rate
    assert np.array_equal(parsed[0], expected)
    # Other chunks can come before and after, also with an odd length.
    head, samples = data[12:36], data[36:]
    body = b"WAVE" + chunk(b"LIST", b"odd") + head + chunk(b"cue ", b"") + samples + b"tail"
    reparsed = plain_wav(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert reparsed is not None and np.array_equal(reparsed[0], expected)


def test_unusual_wavs_are_left_to_libsndfile() -> None:
    sound = tone(0.1, 8_000)
    data = encoded(sound, 8_000)
    for unusual in (
        b"", data[:11], data[:30], data[:-2], b"RIFX" + data[4:], data.replace(b"fmt ", b"fnt "),
        data[:20] + struct.pack("<H", 3) + data[22:], data[:22] + b"\0\0" + data[24:],
        *(encoded(sound, 8_000, "WAV", kind) for kind in ("FLOAT", "PCM_U8", "PCM_24", "ULAW")),
        encoded(sound, 8_000, "WAVEX"), encoded(sound, 8_000, "FLAC"),
    ):  # fmt: skip
        assert plain_wav(unusual) is None
    # A truncated WAV is decoded as far as it goes.
    assert len(decode(data[:-200], AudioSettings(sample_rate=8_000))) == len(sound) - 100


@pytest.mark.parametrize("window", [400, 512, 401])
@pytest.mark.parametrize("hop", [160, 100])
def test_frames_are_librosas(window: int, hop: int) -> None:
    settings = AudioSettings(window=window, hop=hop, mels=40)
    spectrograms = log_mel(
        clips := [tone(seconds, 16_000)[:, 0].astype(np.float32) for seconds in (0.5, 0.02, 3.1)],
        settings,
        mel_filters(settings),
    )
    for clip, frames in zip(clips, spectrograms, strict=True):
        mel = librosa.feature.melspectrogram(
            y=clip, sr=16_000, n_fft=window, hop_length=hop, n_mels=40
        )
        expected = librosa.power_to_db(mel, top_db=None).T
        assert frames.shape == expected.shape
        np.testing.assert_allclose(frames, expected, atol=DECIBELS)


def test_clips_do_not_see_one_another(filters: np.ndarray) -> None:
    clips = [tone(s, 16_000, seed=n)[:, 0].astype(np.float32) for n, s in enumerate((30, 0.1, 1))]
    together = log_mel(clips, SETTINGS, filters)
    for clip, frames in zip(clips, together, strict=True):
        (alone,) = log_mel([clip], SETTINGS, filters)
        # A matrix product of a different size may sum in a different order.
        np.testing.assert_allclose(frames, alone, atol=DECIBELS)
    assert log_mel([], SETTINGS, filters) == []


def test_silence_is_found_as_librosa_finds_it() -> None:
    random = np.random.default_rng(3)
    pause = 0.0005 * random.standard_normal(9000)
    parts = [pause, tone(0.4, 16_000)[:, 0], pause, tone(0.9, 16_000)[:, 0] * 0.5, pause]
    samples = np.concatenate(parts).astype(np.float32)
    for top_db in (20, 40, 60):
        expected = librosa.effects.split(samples, top_db=top_db)
        assert np.array_equal(sounding(samples, top_db), expected)
    assert len(sounding(samples, 30)) == 2


def test_windows_cover_everything_and_overlap() -> None:
    samples = np.arange(1050, dtype=np.float32)
    parts = list(windows(samples, 400, 100))
    assert [(part[0], len(part)) for part in parts] == [
        (0, 400),
        (300, 400),
        (600, 400),
        (900, 150),
    ]
    assert len(list(windows(samples[:400], 400, 100))) == 1
    assert len(list(windows(samples[:50], 400, 100))) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"RIFF....WAVE", "damaged or unknown sound"),
        (b"not a sound at all", "damaged or unknown sound"),
        (encoded(np.zeros((0, 1)), 16_000), "no samples"),
        (encoded(np.array([0.1, np.nan, 0.2]), 16_000, subtype="FLOAT"), "samples are not numbers"),
        (encoded(np.array([0.1, np.inf]), 16_000, subtype="FLOAT"), "samples are not numbers"),
        (
            encoded(np.array([0.1, 3e38]), 16_000, subtype="FLOAT"),
            r"too loud: .* 3e\+38",
        ),
        (encoded(np.array([0.1, -200]), 16_000, subtype="FLOAT"), "too loud: samples up to 200"),
        (encoded(np.zeros(16_000), 1), "unusual rate: 1 Hz"),
        (encoded(np.zeros(16_000), 2**31 - 1), "unusual rate: 2147483647 Hz"),
        (encoded(np.zeros(16_000), 1, subtype="FLOAT"), "unusual rate: 1 Hz"),
    ],
)
def test_what_is_no_sound(data: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        decode(data, SETTINGS)


def test_long_sounds_are_refused_by_their_header() -> None:
    data = encoded(np.zeros(160_000), 16_000)
    with pytest.raises(MediaError, match=r"too long: 10\.0 s at 16000 Hz"):
        decode(data, SETTINGS, max_seconds=9)
    with pytest.raises(MediaError, match="too long"):
        decode(data, AudioSettings(max_samples=100_000))
    assert len(decode(data, SETTINGS, max_seconds=10)) == 160_000


def test_resampling_does_not_grow_without_limit() -> None:
    data = encoded(np.zeros(160_000), 1_000)
    with pytest.raises(MediaError, match=r"too long: 160\.0 s at 1000 Hz"):
        decode(data, AudioSettings(max_samples=200_000))


def test_a_header_that_claims_more_than_there_is_takes_no_memory() -> None:
    data = bytearray(encoded(tone(0.2, 16_000), 16_000, "FLAC"))
    data[21] |= 0x0F  # STREAMINFO: the low four bits of byte 13, and 32 more, count the samples
    data[22:26] = b"\xff\xff\xff\xff"
    for use in (
        lambda: decode(bytes(data), SETTINGS),
        lambda: with_noise(bytes(data), 10, seeded(0)),
    ):
        with pytest.raises(MediaError, match="too long"):
            use()
    preview(bytes(data))


@pytest.mark.parametrize("rate", [1, 8_000, 2**31 - 1])
def test_a_preview_is_short_whatever_the_rate(rate: int) -> None:
    shown = preview(encoded(np.zeros(300_000), rate))
    assert (shown is None) == (rate != 8_000)
    if shown is not None:
        assert soundfile.info(io.BytesIO(shown.data)).frames == 80_000


def test_noise_has_the_ratio_asked_for() -> None:
    samples = tone(2, 16_000)[:, 0].astype(np.float32)
    noise = add_noise(samples, 10, seeded(0)) - samples
    ratio = 10 * np.log10((samples**2).mean() / (noise**2).mean())
    assert ratio == pytest.approx(10, abs=0.2)


def test_masks_cover_what_they_say_and_no_more() -> None:
    frames = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    masked = spec_augment(frames, 2, 2, seeded(5))
    mean = frames.mean()
    changed = masked != frames
    assert np.all(masked[changed] == mean)
    rows, columns = changed.all(axis=1).sum(), changed.all(axis=0).sum()
    assert rows <= 20 and columns <= 16 and changed.any()
    assert np.array_equal(spec_augment(frames, 0, 0, seeded(5)), frames)
