"""What a failure is called on the console: a sentence. The traceback is in events.jsonl."""

from __future__ import annotations

import errno
import re

TRACEBACK = "Traceback (most recent call last):"
WHERE = re.compile(r"\s*\[while running '.*?'\](?=\s*$)", re.DOTALL)
"""What Beam adds to the message of an error in a step."""
TYPE = re.compile(r"(?:\w+\.)*(\w+): ")
SPEAKING = {
    "ValueError", "RuntimeError", "OSError", "PlanError", "AccountingError", "SourceError",
    "StageTimeoutError", "WorkerDiedError", "ProcessDiedError",
}  # fmt: skip
"""Errors whose message is a sentence of ours: their type would tell a person nothing more."""
FULL = "No space left on device", "os error 28", "disk is full", "Disk quota exceeded"
"""How the operating system, Rust's libraries, SQLite and quotas say that there is no room."""


def sentence(error: BaseException) -> str:
    """What went wrong, without a traceback, also where Beam has put one into the message of an
    error that came from a worker process."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    name = type(error).__name__
    if TRACEBACK in text:
        lines = text.rpartition(TRACEBACK)[2].strip("\n").split("\n")
        own = [number for number, line in enumerate(lines) if line and not line[0].isspace()]
        text = "\n".join(lines[own[0] :]) if own else text.splitlines()[-1]
        match = TYPE.match(text)
        name, text = (match[1], text[match.end() :]) if match else (text.strip() or name, "")
    text = WHERE.sub("", text).strip()
    if not text:
        return name
    return text if name in SPEAKING else f"{name}: {text}"


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(seen) for sign in FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
