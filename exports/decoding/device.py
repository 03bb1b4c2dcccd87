"""ONNX Runtime on a device, as a `Stepper`: memory and cache stay where they are computed.

Graphs are called with their inputs and outputs bound to the device, so only tokens and their
probabilities are copied back. In greedy decoding this happens once every few steps: each step reads
the tokens of the previous one on the device. Histories have preallocated memory: a step reads one
buffer and writes the other. 16-bit graphs run this way on the CPU too, because NumPy lacks some of
their types. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from exports.decoding.hypotheses import continued, with_step
from exports.decoding.session import Provider, SessionState, SessionStepper, describe, open_session
from exports.decoding.stepper import STRIDE, Source
from exports.description import (
    BEST,
    GROWN,
    KEEP,
    NORMALIZER,
    REORDER,
    ROWS,
    SEEN,
    TOKENS,
    VALUES,
)
from model import stored_files
from pipelines.internals.onnx_runtime import Alias

CHOSEN: dict[str, type[np.generic]] = {BEST: np.int64, VALUES: np.float32, NORMALIZER: np.float32}
"""Outputs of a greedy step, and their types."""
BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16, which NumPy does not know."""
LEAST_POSITIONS = 32
"""Number of positions of a history for which memory is allocated at first."""


class Room:
    """Two buffers for one history. Outgrown buffers are kept until the history is released, because
    the device may still have to read them."""

    def __init__(self, kind: Any, device: str) -> None:
        """
        Args:
            kind: element type, as an I/O binding expects it.
        """
        self.kind, self.device = kind, device
        self.pieces: list[onnxruntime.OrtValue | None] = [None, None]
        self.outgrown: list[onnxruntime.OrtValue | None] = []
        self.turn = 0

    def other(self, shape: Sequence[int], axis: int) -> int:
        """Address for the next history of this shape, in the buffer that the last one does not use.

        Args:
            axis: axis of positions; memory along it doubles when it is outgrown.
        """
        self.turn = 1 - self.turn
        piece = self.pieces[self.turn]
        if piece is None or math.prod(piece.shape()) < math.prod(shape):
            self.outgrown.append(piece)
            roomy = list(shape)
            roomy[axis] = max(LEAST_POSITIONS, 1 << (shape[axis] - 1).bit_length())
            piece = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                roomy, self.kind, self.device, 0
            )
            self.pieces[self.turn] = piece
        address: int = piece.data_ptr()
        return address


class History(Alias):
    """A history and the buffers that hold it."""

    def __init__(self, value: onnxruntime.OrtValue, room: Room) -> None:
        super().__init__(value)
        self.room = room


def open_stepper(
    folder: Path, providers: Sequence[Provider] = ("cpu",), threads: int = 0
) -> SessionStepper:
    """The stepper that fits the graphs of a folder and the first of the providers that loads.

    Raises:
        exports.decoding.session.ProviderError: no provider loaded, with the reason for each.
        ValueError: the folder is not as it was stored.
    """
    stored_files.check(folder, KEEP)
    floats = describe(folder).floats
    _, provider = open_session(folder / KEEP, providers, threads)
    if provider == "cpu" and floats == "float32":
        return SessionStepper(folder, (provider,), threads)
    return DeviceStepper(folder, (provider,), threads)


class DeviceStepper(SessionStepper):
    """Steps the graphs of one folder on one device, in one thread: the thread's stream keeps the
    values that pass from step to step in order."""

    stride = STRIDE

    def __init__(
        self, folder: Path, providers: Sequence[Provider] = ("cpu",), threads: int = 0
    ) -> None:
        """As `SessionStepper`."""
        super().__init__(folder, providers, threads)
        self.device = "cpu" if self.provider == "cpu" else "cuda"
        self.keeper, _ = open_session(folder / KEEP, (self.provider,), threads)
        self.carried = [name for name in self.cache if name not in self.histories]
        if self.carried:
            self.reorderer, _ = open_session(folder / REORDER, (self.provider,), threads)
        # Axis of a history's positions; the batch is the first axis.
        self.axes = {name: 1 + self.cache[name].index(0) for name in self.histories}
        self.kind = BFLOAT16 if self.floats == "bfloat16" else np.dtype(self.floats).type
        self.ahead = onnxruntime.RunOptions()
        self.ahead.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def start(self, source: Source, noise: np.ndarray | None = None) -> SessionState:
        state = super().start(source, noise)
        for name in self.histories:
            state.cache[name] = History(state.cache[name], Room(self.kind, self.device))
        return state

    def value(self, array: np.ndarray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)

    def zeros(self, shape: Sequence[int]) -> onnxruntime.OrtValue:
        if self.floats != "bfloat16":
            return super().zeros(shape)
        # All bits of a zero are zero, in every type. The value is copied when it is first read.
        bits = np.zeros(shape, dtype=np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)

    def compute(
        self,
        session: onnxruntime.InferenceSession,
        feeds: dict[str, onnxruntime.OrtValue],
        outputs: Sequence[str],
    ) -> list[onnxruntime.OrtValue]:
        binding = self.bound(session, feeds, outputs)
        session.run_with_iobinding(binding)
        return self.outputs(binding, feeds, outputs)

    def bound(
        self,
        session: onnxruntime.InferenceSession,
        feeds: dict[str, onnxruntime.OrtValue],
        outputs: Sequence[str],
    ) -> onnxruntime.IOBinding:
        """Binds a call of a graph, with outputs allocated on the device. A history that continues
        another uses its buffers, with as many positions as `SEEN` has or as many rows as `ROWS`."""
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            before = name.removeprefix(GROWN)
            past = feeds.get(before)
            if not isinstance(past, History):
                binding.bind_output(name, self.device, 0)
                continue
            shape, axis = past.shape(), self.axes[before]
            if ROWS in feeds:
                (shape[0],) = feeds[ROWS].shape()
            else:
                shape[axis] = feeds[SEEN].shape()[2]
            address = past.room.other(shape, axis)
            binding.bind_output(name, self.device, 0, self.kind, shape, address)
        return binding

    def outputs(
        self,
        binding: onnxruntime.IOBinding,
        feeds: Mapping[str, onnxruntime.OrtValue],
        outputs: Sequence[str],
    ) -> list[onnxruntime.OrtValue]:
        """Results of a call, for the outputs that were bound first."""
        results = []
        for name, value in zip(outputs, binding.get_outputs(), strict=False):
            past = feeds.get(name.removeprefix(GROWN))
            results.append(History(value, past.room) if isinstance(past, History) else value)
        return results

    def advance(
        self, state: SessionState, tokens: np.ndarray, position: int, steps: int
    ) -> tuple[np.ndarray, np.ndarray, SessionState]:
        rows = len(tokens)
        # One buffer per output for all steps, so that it is fetched once.
        pieces = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                [steps, rows, 1], kind, self.device, 0
            )
            for name, kind in CHOSEN.items()
        }

        def part(name: str, step: int) -> tuple[Any, ...]:
            """Location of a step's output, as an I/O binding expects it."""
            kind = CHOSEN[name]
            address = pieces[name].data_ptr() + step * rows * np.dtype(kind).itemsize
            return self.device, 0, kind, [rows, 1], address

        last, alive = self.value(tokens[:, None]), []
        for step in range(steps):
            seen = with_step(state.seen)
            feeds = self.feeds(state, position + step, 1, seen)
            binding = self.bound(self.decoder, feeds, self.grown)
            if step == 0:
                binding.bind_ortvalue_input(TOKENS, last)
            else:
                binding.bind_input(TOKENS, *part(BEST, step - 1))
            for name in pieces:
                binding.bind_output(name, *part(name, step))
            # The host waits only for the last step; until then it must keep the inputs alive.
            alive.append(feeds)
            if step + 1 < steps:
                self.decoder.run_with_iobinding(binding, self.ahead)
            else:
                self.decoder.run_with_iobinding(binding)
            cache = dict(zip(self.cache, self.outputs(binding, feeds, self.grown), strict=True))
            state = SessionState(state.memory, cache, seen)
        best, values, normalizer = (pieces[name].numpy()[:, :, 0].T for name in pieces)
        return best, values.astype(np.float64) - normalizer, state

    def keep(self, state: SessionState, rows: np.ndarray) -> SessionState:
        feeds = {**state.memory, **state.cache}
        names = list(feeds)
        feeds[ROWS] = self.value(rows)
        values = self.compute(self.keeper, feeds, [GROWN + name for name in names])
        selected = dict(zip(names, values, strict=True))
        return SessionState(
            {name: selected[name] for name in state.memory},
            {name: selected[name] for name in state.cache},
            state.seen[rows],
        )

    def reorder(self, state: SessionState, parents: np.ndarray) -> SessionState:
        cache = dict(state.cache)
        if self.carried:
            feeds = {name: cache[name] for name in self.carried}
            before = state.seen.shape[1]
            feeds[ROWS] = self.value(parents + before * np.arange(len(parents))[:, None])
            values = self.compute(self.reorderer, feeds, [GROWN + name for name in self.carried])
            cache.update(zip(self.carried, values, strict=True))
        return SessionState(state.memory, cache, continued(state.seen, parents))
