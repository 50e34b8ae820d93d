"""Text of others for people to read: control characters are shown, never obeyed by a terminal."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, begins a line, turns the direction of writing, or is half a character."""

LINES = "\n\t"
"""Control characters that a text of several lines may hold."""


def visible(text: str, keep: str = LINES) -> str:
    """Return a text with every control character written out, such as `\\x1b`, but for those in `keep`."""
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), text)


def visible_line(text: str) -> str:
    """Return a text as one line."""
    return visible(text, keep="")


def check_visible(text: str) -> str:
    """Return a name or unit that has no control character.

    Raises:
        ValueError: names the character and its place.
    """
    if (found := CONTROL.search(text)) is not None:
        raise ValueError(
            f"'{visible_line(text)[:160]}' has the control character {_written(found[0])} at position {found.start()}; "
            "leave it out"
        )
    return text


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
