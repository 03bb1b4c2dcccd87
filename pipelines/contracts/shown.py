"""Text from data as people may see it: on pages and on the console, where a control character can
hide, reorder or break what stands around it, or command the terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import suppress
from typing import Any, TextIO

KEPT = "\u200c\u200d"
"""Format characters that Persian, Hindi and emoji need."""
BLANK = "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5"
"""Letters and signs that leave nothing, or only a space, to be seen."""


def _sign(code: int) -> str | None:
    """What is shown for a character; None for the character itself."""
    character = chr(code)
    if code < 0x20 and character not in "\t\n":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if (hidden or character in BLANK) and character not in KEPT + "\t\n":
        return f"\u27e8U+{code:04X}\u27e9"
    return None


PLACES = (
    *(range(0x3400), range(0xD800, 0xE000), range(0xFE00, 0x10000), range(0x11000, 0x14000)),
    *(range(0x1BC00, 0x1BD00), range(0x1D100, 0x1D200), range(0xE0000, 0xE0100)),
)
"""Where Unicode has such characters: to look at all of it takes a quarter of a second."""
HIDDEN = {code: sign for place in PLACES for code in place if (sign := _sign(code)) is not None}
"""What cannot be seen, and what is shown for it."""


def visible(text: str) -> str:
    """Text with a visible sign for everything that cannot be seen."""
    return text.translate(HIDDEN)


def all_visible(value: Any) -> Any:
    """A JSON value with all its text visible, the names in it included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(name)): all_visible(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [all_visible(item) for item in value]
    return value


def tell(line: str, stream: TextIO | None = None) -> None:
    """Prints a line that may have text from data in it; to standard output if no stream is given.

    A console that was closed, as that of `| head`, or that there never was, is no reason to stop.
    """
    stream = stream if stream is not None else sys.stdout
    if stream is None:
        return  # pythonw and daemons have none
    shown = visible(line)
    encoding = stream.encoding or "utf-8"
    try:
        print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        # What is still in the buffer would raise once more when Python ends.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    except (OSError, ValueError):
        pass


def complain(line: str) -> None:
    """Tells an error, on standard error if there is one."""
    if sys.stderr is not None:
        tell(line, sys.stderr)
