"""What is told on the console: nothing that data says commands a terminal, and a console that is
closed, or was never there, changes neither the work nor the exit code."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from pipelines.contracts.shown import BLANK, HIDDEN, KEPT, tell, visible
from pipelines.store.leases import lock


def test_every_character_that_cannot_be_seen_has_a_sign() -> None:
    """By Unicode's categories: controls, formats, halves of characters, separators of lines."""
    hidden = {
        code
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and chr(code) not in KEPT + "\t\n"
    }
    assert set(HIDDEN) == hidden | set(map(ord, BLANK))
    assert visible("a\U000e0041\u3164") == "a⟨U+E0041⟩⟨U+3164⟩"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_escape_sequences_are_told_and_not_sent(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    tell("a\x1b]0;pwned\x07\x1b[2J\u202eb\udcff é\nnext", stream)
    sent = raw.getvalue().decode(encoding)
    assert not set(sent) & set("\x1b\x07\x9b\u202e") and sent.count("\n") == 2
    assert "pwned" in sent and "next" in sent and "202E" in sent.upper()


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"pipelines.{module}", *map(str, arguments)]


@pytest.mark.parametrize("closed", ["pipe", "descriptor"])
def test_exit_codes_without_a_console(tiny_job: Path, root: Path, closed: str) -> None:
    runs = tiny_job.parent / "runs"

    def code(*arguments: object) -> int:
        if closed == "descriptor":  # as of a daemon
            words = ["bash", "-c", '"$@" 2>&-', "bash", *command("run", *arguments)]
            return subprocess.run(words, cwd=root, stdout=subprocess.DEVNULL).returncode
        reading, writing = os.pipe()
        os.close(reading)
        try:
            return subprocess.run(command("run", *arguments), cwd=root, stderr=writing).returncode
        finally:
            os.close(writing)

    assert code(tiny_job, "--runs-dir", runs) == 0
    assert code(tiny_job, "--runs-dir", runs, "--only", "none") == 2
    with lock(runs / "job" / ".lock"):
        assert code(tiny_job, "--runs-dir", runs) == 75


@pytest.mark.parametrize("module", ["verify", "collect", "run"])
def test_a_reader_that_stops_changes_nothing(tiny_job: Path, root: Path, module: str) -> None:
    runs = tiny_job.parent / "runs"
    subprocess.run(command("run", tiny_job, "--runs-dir", runs), cwd=root, check=True)
    arguments = [tiny_job, "--runs-dir", runs, "--plan"] if module == "run" else [runs]
    process = subprocess.Popen(
        command(module, *arguments), cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 0 and errors == b"", errors


def test_what_rows_say_reaches_no_terminal(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(
        b"zh\ten\n" + b"\x1b]0;pwned\x07\x1b[2J\xe2\x80\xaeevil\t\n" * 3
    )
    job = tmp_path / "job.yaml"
    job.write_text(
        "stages:\n  rows: {use: ingest, source: a.tsv, columns: {text: zh, target: en}}\n"
    )
    words = command("run", job, "--runs-dir", tmp_path / "runs")
    completed = subprocess.run(words, cwd=root, capture_output=True)
    assert completed.returncode == 1 and b"evil" in completed.stderr
    assert b"\x1b" not in completed.stderr and "\u202e".encode() not in completed.stderr
