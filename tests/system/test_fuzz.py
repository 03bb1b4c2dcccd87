"""Files changed at random through every decoder: see tests/fuzz.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("inputs", "seed"), [(3_000, 1), pytest.param(100_000, 2, marks=pytest.mark.long)]
)
def test_no_file_makes_a_decoder_raise_hang_or_take_all_memory(
    root: Path, inputs: int, seed: int
) -> None:
    # In a process of its own: a library could also crash.
    completed = subprocess.run(
        [sys.executable, str(root / "tests" / "fuzz.py"), str(inputs), str(seed)],
        capture_output=True, text=True, timeout=7200,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stdout + completed.stderr[-3000:]
    assert "Traceback" not in completed.stderr
