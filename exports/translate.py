"""Translates with exported graphs alone: `python -m exports.translate GRAPHS < in.txt > out.txt`.

One line in, one line out, in the same order. GRAPHS is the folder of an export's result, which
includes the preprocessing; neither the pipeline nor PyTorch is needed. A line that cannot be
translated becomes an empty line and is reported on stderr; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TextIO

from exports.decoding.beam_search import BeamSearch
from exports.decoding.constraints import Constraints
from exports.decoding.sampling import Sampling
from exports.decoding.session import ProviderError
from exports.decoding.several import Drawing
from exports.decoding.translator import Translator
from exports.description import DESCRIPTION

LINES = 20_000
"""Lines read at a time: large batches of similar length, in bounded memory."""


def translate_lines(
    translator: Translator,
    source: BinaryIO,
    output: TextIO,
    task: str | None,
    wishes: Mapping[str, str],
    strength: float,
) -> tuple[int, int]:
    """Translates a stream, some lines at a time. Returns the number of lines, and how many of them
    became empty because they are not UTF-8 or longer than the model takes."""
    total, refused = 0, 0

    def refuse(index: int, reason: str) -> str:
        nonlocal refused
        refused += 1
        print(f"exports.translate: line {total + index + 1} {reason}; left empty", file=sys.stderr)
        return ""

    def read(index: int, line: bytes) -> str:
        try:
            return line.rstrip(b"\n").decode("utf-8")
        except UnicodeDecodeError as error:
            return refuse(index, f"is not UTF-8 at byte {error.start + 1}")

    while lines := list(itertools.islice(source, LINES)):
        texts = [read(index, line) for index, line in enumerate(lines)]
        for index, text in enumerate(translator.translate(texts, task, wishes, strength)):
            if text is None:
                most = translator.stepper.max_length
                text = refuse(index, f"is longer than the model takes ({most} positions)")
            output.write(f"{text}\n")
        output.flush()
        total += len(lines)
    return total, refused


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(prog="python -m exports.translate", description=__doc__)
    command.add_argument("graphs", type=Path, help="folder with encoder.onnx and step.onnx")
    command.add_argument("--task", help="which task, where the model has several")
    command.add_argument("--beam", type=int, default=1, help="beam size; 1 is greedy")
    command.add_argument("--length-penalty", type=float, default=1.0)
    command.add_argument("--coverage", type=float, default=0.0, help="coverage penalty's weight")
    command.add_argument("--minimum", type=int, default=0, help="minimum tokens of an output")
    command.add_argument("--maximum", type=int, help="maximum tokens; default: 2 × source + 10")
    command.add_argument("--no-repeat", type=int, default=0, help="no n-gram of this size twice")
    command.add_argument(
        "--draws", type=int, help="draw so many outputs, and write the one most like all of them"
    )
    command.add_argument("--temperature", type=float, default=0.5, help="of --draws")
    command.add_argument(
        "--wish",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="what outputs should be, style=formal for instance; may be said several times",
    )
    command.add_argument("--strength", type=float, default=1.0, help="of --wish; 0 is none")
    command.add_argument("--provider", choices=["cpu", "cuda", "tensorrt"], action="append")
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    command.add_argument("--batch-tokens", type=int, default=2048)
    options = command.parse_args(arguments)
    # As in any filter: the reader of the output may stop before its end.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if options.coverage and options.beam == 1:
        command.error("--coverage chooses among hypotheses: say --beam too")
    if options.draws is not None and (options.draws < 2 or options.temperature <= 0):
        command.error("--draws must be 2 or more, with a --temperature above 0")
    wishes = dict(wish.split("=", 1) for wish in options.wish if "=" in wish)
    if len(wishes) < len(options.wish) or not 0 <= options.strength < math.inf:
        command.error("--wish is NAME=VALUE, each name once, with a --strength of 0 or more")
    if options.draws and options.beam > 1:
        command.error("--draws does not search: leave --beam out")
    if not (options.graphs / DESCRIPTION).is_file():
        command.error(f"{options.graphs} has no {DESCRIPTION}: name the folder that export made")
    try:
        translator = Translator(
            options.graphs,
            tuple(options.provider or ["cpu"]),
            options.threads,
            options.batch_tokens,
            BeamSearch(options.beam, options.length_penalty, coverage=options.coverage),
            Constraints(options.minimum, options.no_repeat),
            maximum=options.maximum,
            drawing=Drawing(options.draws, Sampling(options.temperature))
            if options.draws
            else None,
        )
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        total, refused = translate_lines(
            translator, sys.stdin.buffer, sys.stdout, options.task, wishes, options.strength
        )
    except (ProviderError, ValueError) as error:
        print(f"exports.translate: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # each library that loads a part of the folder has its own
        what = f"{type(error).__name__}: {error}"
        print(f"exports.translate: {options.graphs} cannot be used: {what}", file=sys.stderr)
        return 1
    if refused:
        print(f"exports.translate: left {refused:,} of {total:,} lines empty", file=sys.stderr)
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
