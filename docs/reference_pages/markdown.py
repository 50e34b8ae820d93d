"""Markdown that every page uses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

NONE = "–"
"""A cell with nothing to say."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; `rows` have a cell for each column of `head`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines)


def block(info: str, text: str) -> str:
    """Return a code block; `info` is its language and how a test holds it, such as `text output`."""
    return f"```{info}\n{text}\n```"


def json_block(info: str, value: Any) -> str:
    """Return a code block with a JSON document."""
    return block(info, json.dumps(value, indent=2, ensure_ascii=False))


def code(text: object) -> str:
    """Return inline code."""
    return f"`{text}`"


def codes(names: Iterable[object]) -> str:
    """Return a list of names as inline code."""
    return ", ".join(map(code, names))


def sentence(text: str) -> str:
    """Return a text with a full stop at its end."""
    text = text.strip()
    return text if not text or text[-1] in ".!?:" else f"{text}."


def bounded(kind: str, least: float | None, most: float | None, *, is_open: bool = False) -> str:
    """Return a type with its bounds; `is_open`: the least value itself is not allowed."""
    if least is not None and most is not None and not is_open:
        return f"{kind}, {least:.15g} to {most:.15g}"
    bounds = [f"{'>' if is_open else '≥'} {least:.15g}"] if least is not None else []
    bounds += [f"≤ {most:.15g}"] if most is not None else []
    return " ".join([kind, " and ".join(bounds)]).rstrip()


def prose(text: str) -> str:
    """Return a plain text as Markdown: stars and angle brackets outside of inline code are shown as they are."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def anchor(heading: str) -> str:
    """Return a link to a heading of the same page, by the anchor that forges and site builders give it."""
    return "#" + re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))


def _escaped(text: str) -> str:
    return text.replace("*", r"\*").replace("<", "&lt;")


def _cell(text: str) -> str:
    return prose(re.sub(r"\s+", " ", text).strip()).replace("|", r"\|") or NONE
