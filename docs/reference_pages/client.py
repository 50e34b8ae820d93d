"""The page of the Python client."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from textwrap import indent
from typing import Any

from evalsvc.client import Client
from reference_pages import documents
from reference_pages.markdown import block

WIDTH = 100
"""Columns of a signature on one line."""

INTRODUCTION = """\
# Python client

`evalsvc.client.Client` needs `httpx2` and `pydantic`. A training job or a notebook uses it as a context manager."""


def page() -> str:
    """Return docs/reference/client.md."""
    constructor = indent(_declaration("__init__", Client.__init__), "    ")
    parts = [INTRODUCTION, "## Client", block("python check", f"class Client:\n{constructor}")]
    parts += [_text(Client), _text(Client.__init__)]
    for group in Client.__mro__:
        methods = _public_methods_of(group)
        if methods and group is not Client:
            parts += [f"## {group.__name__.removesuffix('Methods')} methods", _text(group)]
        for name, method in methods.items():
            parts += [f"### `{name}`", block("python check", _declaration(name, method)), _text(method)]
    return "\n\n".join([*parts, *documents.sections()]) + "\n"


def public_methods() -> dict[str, Callable[..., Any]]:
    """Return the client's public methods by name, in the order of the page."""
    return {name: method for group in Client.__mro__ for name, method in _public_methods_of(group).items()}


def _public_methods_of(group: type) -> dict[str, Callable[..., Any]]:
    """Return the public methods that a class defines, without those of its base classes."""
    return {name: member for name, member in vars(group).items() if name[0] != "_" and callable(member)}


def _declaration(name: str, function: Callable[..., Any]) -> str:
    """Return a signature as Python code, on a line for each parameter where one line is too long."""
    signature = inspect.signature(function)
    listed: list[str] = []
    for item in signature.parameters.values():
        if item.kind is item.KEYWORD_ONLY and "*" not in listed:
            listed.append("*")
        if item.name != "self":
            default = "" if item.default is item.empty else f" = {_literal(item.default)}"
            listed.append(f"{item.name}: {item.annotation}{default}")
    tail = f" -> {signature.return_annotation}: ..."
    line = f"def {name}({', '.join(['self', *listed])}){tail}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"def {name}(", *(f"    {one}," for one in ["self", *listed]), f"){tail}"])


def _literal(value: object) -> str:
    """Return a default as the formatter writes it, with double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _text(thing: object) -> str:
    """Return a docstring, with a list in the place of the section `Raises`."""
    text, _, raised = inspect.cleandoc(thing.__doc__ or "").partition("Raises")
    if not raised:
        return text.strip()
    errors = re.findall(r"^ {4}([\w, ]+): (.+(?:\n {5,}.+)*)", raised, re.MULTILINE)
    lines = [f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {what}" for names, what in errors]
    return f"{text.strip()}\n\nRaises{raised.split(':', 1)[0]}:\n\n" + "\n".join(lines)
