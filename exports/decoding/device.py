"""ONNX Runtime on a device, as a `Stepper`: memory and cache stay where they are computed.

Graphs are called with their inputs and outputs bound to the device, so that nothing but tokens and
their probabilities comes back; greedily only once in several steps, each of which takes the tokens
of the one before from the device. Histories stand in memory that was set aside for them: a step
reads one piece and writes the other. Graphs of 16 bits are stepped so on the CPU too, for not all
of their types are NumPy's. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from exports.decoding.history import continued, with_step
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

CHOSEN: dict[str, type[np.generic]] = {BEST: np.int64, VALUES: np.float32, NORMALIZER: np.float32}
"""What a greedy step gives, and its types."""
BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16, which NumPy does not know."""
LEAST_POSITIONS = 32
"""For how many positions of a history memory is set aside at first."""


class Room:
    """Memory for one history, twice. What grew out of a piece is kept until the history is gone:
    the device may yet have to read it."""

    def __init__(self, kind: Any, device: str) -> None:
        """
        Args:
            kind: type of the elements, as a binding takes it.
        """
        self.kind, self.device = kind, device
        self.pieces: list[onnxruntime.OrtValue | None] = [None, None]
        self.outgrown: list[onnxruntime.OrtValue | None] = []
        self.turn = 0

    def other(self, shape: Sequence[int], axis: int) -> int:
        """Where to write the next history of this shape: not where the last one stands.

        Args:
            axis: that of positions, for which memory doubles when they outgrow it.
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
        place: int = piece.data_ptr()
        return place


class History(onnxruntime.OrtValue):  # type: ignore[misc]
    """A history and the room that it stands in."""

    def __init__(self, value: onnxruntime.OrtValue, room: Room) -> None:
        super().__init__(value._get_c_value())
        self.room = room


def open_stepper(
    folder: Path, providers: Sequence[Provider] = ("cpu",), threads: int = 0
) -> SessionStepper:
    """The stepper that fits the graphs of a folder and the first of the providers that loads.

    Raises:
        exports.decoding.session.ProviderError: no provider loaded, with the reason for each.
    """
    floats = describe(folder).floats
    _, provider = open_session(folder / KEEP, providers, threads)
    if provider == "cpu" and floats == "float32":
        return SessionStepper(folder, (provider,), threads)
    return DeviceStepper(folder, (provider,), threads)


class DeviceStepper(SessionStepper):
    """Steps the graphs of one folder on one device, in one thread: what is taken over from step to
    step is in the order of the thread's stream."""

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
        # Where a history's positions are counted, the batch before all else.
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
        # All bits of a zero are zero, in every type. It is copied when it is first read.
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
        """A call of a graph, with outputs to be made on the device: histories that follow others
        in the room of those, with as many positions as may be seen or as many rows as are kept."""
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
            place = past.room.other(shape, axis)
            binding.bind_output(name, self.device, 0, self.kind, shape, place)
        return binding

    def outputs(
        self,
        binding: onnxruntime.IOBinding,
        feeds: Mapping[str, onnxruntime.OrtValue],
        outputs: Sequence[str],
    ) -> list[onnxruntime.OrtValue]:
        """What a call gave, of the outputs that were bound first."""
        found = []
        for name, value in zip(outputs, binding.get_outputs(), strict=False):
            past = feeds.get(name.removeprefix(GROWN))
            found.append(History(value, past.room) if isinstance(past, History) else value)
        return found

    def advance(
        self, state: SessionState, tokens: np.ndarray, position: int, steps: int
    ) -> tuple[np.ndarray, np.ndarray, SessionState]:
        rows = len(tokens)
        # One piece of memory for each output of all steps, so that it is fetched once.
        pieces = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                [steps, rows, 1], kind, self.device, 0
            )
            for name, kind in CHOSEN.items()
        }

        def part(name: str, step: int) -> tuple[Any, ...]:
            """Where a step's output stands, as a binding takes it."""
            kind = CHOSEN[name]
            place = pieces[name].data_ptr() + step * rows * np.dtype(kind).itemsize
            return self.device, 0, kind, [rows, 1], place

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
            # The host waits for the last step alone; until then it must keep what is read.
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
        kept = dict(zip(names, values, strict=True))
        return SessionState(
            {name: kept[name] for name in state.memory},
            {name: kept[name] for name in state.cache},
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
