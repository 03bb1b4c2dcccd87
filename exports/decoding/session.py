"""ONNX Runtime on the CPU as a `Stepper`. `exports.decoding.device` is for the other cases.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from pydantic import ValidationError

from exports.decoding.hypotheses import continued, nothing_seen, with_step
from exports.decoding.stepper import Best, Source, wished
from exports.description import (
    BEST,
    COUNT,
    DESCRIPTION,
    ENCODER,
    FEW,
    FORMAT,
    GROWN,
    LOGITS,
    NORMALIZER,
    POSITION,
    SEEN,
    STEP,
    TELLING,
    TOKENS,
    VALUES,
    WISHING,
    Description,
)
from model import stored_files
from model.names import ATTENTION, LATENT, MET, PRIOR_DEVIATION, PRIOR_MEAN, WISH
from model.wishes import Wishes
from pipelines.internals.onnx_runtime import NotSupportedError, array_of, compute, value_of

Provider = Literal["tensorrt", "cuda", "cpu"]
PROVIDERS: dict[str, list[str]] = {
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
    "cuda": ["CUDAExecutionProvider"],
    "cpu": ["CPUExecutionProvider"],
}
"""TensorRT runs the operators that it supports, CUDA the others."""
WARNING, FATAL = 2, 4
"""Severities of ONNX Runtime's log. Its own default, which it does not tell, is WARNING."""


class ProviderError(RuntimeError):
    """None of the requested execution providers could be loaded."""


@dataclass
class SessionState:
    memory: dict[str, onnxruntime.OrtValue]
    cache: dict[str, onnxruntime.OrtValue]
    seen: np.ndarray
    told: dict[str, onnxruntime.OrtValue] = field(default_factory=dict)
    """What the last step returned besides tokens and cache."""


class SessionStepper:
    """Steps the graphs of one folder. Cheap to share within a process, not across processes."""

    stride = 1

    def __init__(
        self, folder: Path, providers: Sequence[Provider] = ("cpu",), threads: int = 0
    ) -> None:
        """
        Args:
            providers: in order of preference; the first that really loads is used.
            threads: native threads of each session; 0 leaves the number to ONNX Runtime.

        Raises:
            ProviderError: none of `providers` loaded, with the reason for each.
            ValueError: the folder is not as it was stored.
        """
        stored_files.check(folder)
        description = describe(folder)
        self.encoded = description.encoded
        self.memory = description.memory
        self.latent = description.latent
        self.cache = description.cache
        self.histories = set(description.histories)
        self.attentive = description.attentive
        self.wishes = Wishes(description.wishes)
        self.judging = description.format == WISHING
        self.max_length = description.max_length
        self.vocabulary = description.vocabulary
        self.blocks = description.blocks
        self.floats = description.floats
        self.encoder, self.provider = open_session(folder / ENCODER, providers, threads)
        self.decoder, _ = open_session(folder / STEP, (self.provider,), threads)
        # The exporter drops inputs that a model does not use, for example the position.
        self.source = _taken(self.encoder, description.source)
        self.given = _taken(
            self.decoder, [TOKENS, POSITION, SEEN, COUNT, FEW, *self.memory, *self.cache]
        )
        self.grown = [GROWN + name for name in self.cache]
        self.telling = [ATTENTION] * self.attentive + [MET] * self.judging

    def start(self, source: Source, noise: np.ndarray | None = None) -> SessionState:
        batch = len(next(iter(source.values())))
        wish = wished(source, batch, self.wishes)
        feeds = {name: self.value(source[name]) for name in self.source}
        values = dict(
            zip(self.encoded, self.compute(self.encoder, feeds, self.encoded), strict=True)
        )
        if self.latent:
            latent = values[PRIOR_MEAN].numpy()
            if noise is not None:
                latent = latent + values[PRIOR_DEVIATION].numpy() * noise.astype(np.float32)
            values[LATENT] = self.value(latent)
        if self.wishes:
            values[WISH] = self.value(wish.copy())  # `keep` moves rows in place
        empty = {name: self.zeros((batch, *shape)) for name, shape in self.cache.items()}
        memory = {name: values[name] for name in self.memory if name in self.given}
        return SessionState(memory, empty, nothing_seen(batch))

    def value(self, array: np.ndarray) -> onnxruntime.OrtValue:
        """The array as a value on the device of the graphs."""
        return value_of(array)

    def zeros(self, shape: Sequence[int]) -> onnxruntime.OrtValue:
        """Zeros of the type of the cache."""
        return self.value(np.zeros(shape, dtype=self.floats))

    def compute(
        self,
        session: onnxruntime.InferenceSession,
        feeds: dict[str, onnxruntime.OrtValue],
        outputs: Sequence[str],
    ) -> list[onnxruntime.OrtValue]:
        """Outputs of a graph, left where they were computed."""
        return compute(session, feeds, outputs)

    def feeds(
        self, state: SessionState, position: int, count: int, seen: np.ndarray
    ) -> dict[str, onnxruntime.OrtValue]:
        """Inputs of the step graph besides tokens."""
        values_of = {
            POSITION: value_of(np.array(position, dtype=np.int64)),
            SEEN: value_of(seen),
            COUNT: value_of(np.array([count], dtype=np.int64)),
            FEW: value_of(np.array([min(count, self.blocks)], dtype=np.int64)),
            **state.memory,
            **state.cache,
        }
        return {name: values_of[name] for name in self.given if name != TOKENS}

    def _run(
        self,
        state: SessionState,
        tokens: np.ndarray,
        position: int,
        count: int,
        outputs: list[str],
    ) -> tuple[list[np.ndarray], SessionState]:
        seen = with_step(state.seen)
        feeds = {TOKENS: value_of(tokens), **self.feeds(state, position, count, seen)}
        values = self.compute(self.decoder, feeds, [*outputs, *self.telling, *self.grown])
        wanted = [value.numpy() for value in values[: len(outputs)]]
        rest = values[len(outputs) :]
        told = dict(zip(self.telling, rest, strict=False))
        cache = dict(zip(self.cache, rest[len(told) :], strict=True))
        return wanted, SessionState(state.memory, cache, seen, told)

    def step(
        self, state: SessionState, tokens: np.ndarray, position: int
    ) -> tuple[np.ndarray, SessionState]:
        (logits,), state = self._run(state, tokens, position, 1, [LOGITS])
        return logits.reshape(*tokens.shape, self.vocabulary), state

    def best(
        self, state: SessionState, tokens: np.ndarray, position: int, count: int
    ) -> tuple[Best, SessionState]:
        count = min(count, self.vocabulary)
        outputs = [BEST, VALUES, NORMALIZER]
        (best, values, normalizer), state = self._run(state, tokens, position, count, outputs)
        shape = (*tokens.shape, count)
        gains = values.astype(np.float64) - normalizer
        return Best(best.reshape(shape), gains.reshape(shape)), state

    def advance(
        self, state: SessionState, tokens: np.ndarray, position: int, steps: int
    ) -> tuple[np.ndarray, np.ndarray, SessionState]:
        decoded = np.empty((len(tokens), steps), dtype=np.int64)
        gains = np.empty((len(tokens), steps))
        last = tokens[:, None]
        for step in range(steps):
            best, state = self.best(state, last, position + step, 1)
            last = best.tokens[:, 0]
            decoded[:, step], gains[:, step] = last[:, 0], best.gains[:, 0, 0]
        return decoded, gains, state

    def told(self, state: SessionState, name: str) -> np.ndarray:
        told: np.ndarray = state.told[name].numpy()
        return told

    def keep(self, state: SessionState, rows: np.ndarray) -> SessionState:
        count = len(rows)
        gaps = np.flatnonzero(rows != np.arange(count))
        moves = list(zip(gaps.tolist(), rows[gaps].tolist(), strict=True))

        def kept(array: np.ndarray) -> np.ndarray:
            for gap, row in moves:  # in ONNX Runtime's own memory; all at once would copy twice
                array[gap] = array[row]
            return array[:count]

        return SessionState(
            {name: value_of(kept(array_of(value))) for name, value in state.memory.items()},
            {name: value_of(kept(array_of(value))) for name, value in state.cache.items()},
            kept(state.seen),
        )

    def reorder(self, state: SessionState, parents: np.ndarray) -> SessionState:
        cache = {
            name: value if name in self.histories else value_of(continued(value.numpy(), parents))
            for name, value in state.cache.items()
        }
        return SessionState(state.memory, cache, continued(state.seen, parents))


def describe(folder: Path) -> Description:
    """Inputs and outputs of the graphs of a folder. Raises `ValueError` for another format, or if
    the description is damaged."""
    try:
        written = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / DESCRIPTION} is damaged: {error}") from error
    if not isinstance(written, dict) or written.get("format") not in (FORMAT, WISHING, TELLING):
        raise ValueError(f"{folder} was exported by another version of this code: export it again")
    try:
        return Description.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{folder / DESCRIPTION} is damaged: {where}: {first['msg']}") from error


def _taken(session: onnxruntime.InferenceSession, names: Iterable[str]) -> list[str]:
    """The names that are inputs of a session's graph."""
    inputs = {value.name for value in session.get_inputs()}
    return [name for name in names if name in inputs]


def _preload_cuda() -> None:
    """Finds CUDA's libraries where pip installed them. Missing ones show when a provider loads."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def open_session(
    path: Path, providers: Sequence[Provider], threads: int = 0
) -> tuple[onnxruntime.InferenceSession, Provider]:
    """A session on the first provider that loads.

    ONNX Runtime itself falls back to the CPU without an error if CUDA does not load, so the loaded
    provider is compared with the requested one.
    """
    refusals = []
    for provider in providers:
        wanted = PROVIDERS[provider]
        if wanted[0] not in onnxruntime.get_available_providers():
            refusals.append(f"{provider}: this build of ONNX Runtime has no {wanted[0]}")
            continue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # A thread that spins while it waits takes a core from the other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads else "1")
        if provider != "cpu":
            _preload_cuda()
        # ProviderError reports what does not load; ONNX Runtime must not write to stderr.
        onnxruntime.set_default_logger_severity(FATAL)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except NotSupportedError as error:  # bf16 on the CPU
            refusals.append(f"{provider}: {error}")
            continue
        except Exception as error:  # ONNX Runtime has a class for every status code
            raise ValueError(f"{path} cannot be loaded on {provider}: {error}") from error
        finally:
            onnxruntime.set_default_logger_severity(WARNING)
        loaded = session.get_providers()
        if loaded[0] == wanted[0]:
            return session, provider
        refusals.append(f"{provider}: ONNX Runtime loaded {loaded[0]} instead")
    raise ProviderError(
        f"no execution provider of {', '.join(providers)} could be used ({'; '.join(refusals)}); "
        "install what it needs, or add cpu to providers:"
    )
