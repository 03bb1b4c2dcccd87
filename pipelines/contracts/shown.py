"""Text from data as people may see it: on pages, where a control character can hide, reorder or
break what stands around it."""

from __future__ import annotations

from typing import Any

HIDDEN = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **{
        code: f"\u27e8U+{code:04X}\u27e9"
        for code in (
            *range(0x80, 0xA0),  # C1 control characters
            *range(0x200B, 0x2010),  # without width, and marks of direction
            *range(0x2028, 0x202F),  # line and paragraph separators, changes of direction
            *range(0x2060, 0x2070),  # without width, isolates of direction
            0x061C,
            0xFEFF,
        )
        if code not in (0x200C, 0x200D)  # which Persian, Hindi and emoji need
    },
    **{code: f"\u27e8U+{code:04X}\u27e9" for code in range(0xD800, 0xE000)},  # half a character
}
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
