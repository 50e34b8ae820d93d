"""Foreign text for display: control characters are written out, so that a terminal does not obey them."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, begin a line, change the direction of writing, or are half a character."""

LINES = "\n\t"
"""Control characters that a text of several lines may hold."""


def visible(text: str, keep: str = LINES) -> str:
    """Return a text with every control character written out, such as `\\x1b`, except those in `keep`."""
    return CONTROL.sub(lambda match: match[0] if match[0] in keep else _written(match[0]), text)


def visible_line(text: str) -> str:
    """Return a text as one line."""
    return visible(text, keep="")


def check_visible(text: str) -> str:
    """Return a name or unit unchanged if it has no control character."""
    if (match := CONTROL.search(text)) is not None:
        raise ValueError(
            f"'{visible_line(text)[:160]}' has the control character {_written(match[0])} at position {match.start()}; "
            "remove it"
        )
    return text


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
