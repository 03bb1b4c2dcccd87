from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from pipelines.running import events
from pipelines.running.events import Events


def test_plain_lines_and_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PLAIN_INTERVAL", 0.0)
    stream = io.StringIO()
    log = Events(tmp_path / "e.jsonl", stream)
    log.stage = "train"
    with log.meter("trains", 3, "steps") as meter:
        for _ in range(3):
            meter.advance(1, "loss 1.0")
    log.close()
    assert "train trains: 3/3 steps" in stream.getvalue()
    assert "loss 1.0" in stream.getvalue()
    recorded = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert recorded[0]["event"] == "started"
    assert recorded[-1]["event"] == "finished" and recorded[-1]["done"] == 3
    assert all(line["stage"] == "train" and line["time"] for line in recorded)


def test_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Events(None, stream).meter("reads", 10, "rows") as meter:
        meter.reach(10)
    assert "10/10" in stream.getvalue() and "rows" in stream.getvalue()
