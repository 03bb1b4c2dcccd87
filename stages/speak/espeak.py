"""eSpeak NG through its C interface, from the library that `espeakng-loader` brings."""

from __future__ import annotations

import _ctypes
import ctypes
from typing import Any, Self

import numpy as np

SYNCHRONOUS, UTF8, RATE, PITCH = 2, 1, 1, 3
"""`AUDIO_OUTPUT_SYNCHRONOUS`, `espeakCHARS_UTF8`, `espeakRATE` and `espeakPITCH` of
`espeak-ng/speak_lib.h`."""


class Engine:
    """The library, newly loaded; only one at a time.

    It keeps its state in globals, so its speech, down to the sample, depends on all that it spoke
    before and on two random generators. The speech of one engine is the same in every process:
    both generators are seeded at its start, and the library is unloaded at its end.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ValueError("speak needs eSpeak NG: pip install espeakng-loader") from error
        self.library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        self.sample_rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 0)
        if self.sample_rate <= 0:
            raise ValueError(f"eSpeak NG did not start with the voices in {data}")
        # It has just seeded itself with the time; breathy voices use both generators.
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        self.chunks: list[bytes] = []
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )

        def receive(samples: Any, count: int, _: Any) -> int:
            if samples and count > 0:
                self.chunks.append(ctypes.string_at(samples, count * 2))
            return 0

        self.callback = kind(receive)  # kept, or it would be collected while C still calls it
        self.library.espeak_SetSynthCallback(self.callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)

    def variants(self) -> set[str]:
        from pathlib import Path

        import espeakng_loader

        folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        return {path.name for path in folder.iterdir()}

    def synthesize(self, text: str, voice: str, rate: int, pitch: int) -> tuple[np.ndarray, int]:
        """Samples (samples,) float32 and their rate in Hz.

        Args:
            voice: a language, or a language and a variant: "cmn+f3".
            rate: words per minute.
            pitch: 0 to 99.

        Raises:
            ValueError: there is no such voice, or eSpeak NG refused the text.
        """
        _, _, variant = voice.partition("+")
        # eSpeak NG does not report a variant that it does not have.
        if variant and variant not in self.variants():
            known = ", ".join(sorted(self.variants()))
            raise ValueError(f"eSpeak NG has no voice variant {variant!r}; it has {known}")
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"eSpeak NG has no voice {voice!r}")
        self.library.espeak_SetParameter(RATE, rate, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self.chunks.clear()
        encoded = text.encode()
        refused = self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8, None, None)
        samples = np.frombuffer(b"".join(self.chunks), dtype=np.int16)
        if refused or not len(samples):
            raise ValueError(f"eSpeak NG could not speak {text!r} with {voice!r}")
        return samples.astype(np.float32) / 32768, self.sample_rate
