"""The documents that the client returns, as tables of their fields."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from evalsvc.spec import documents
from evalsvc.spec.documents import Document
from reference_pages.markdown import anchor, code, codes, sentence, table

INTRODUCTION = """\
## Documents

The client returns pydantic models of `evalsvc.spec.documents`, one for each JSON document of [REST](rest.md). A field
whose name ends in `_` has the name without it in JSON. `document.model_dump()` returns a document as a `dict`."""

WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    object: "anything",
    type(None): "None",
}


def sections() -> Iterator[str]:
    """Yield the part of the client's page on documents."""
    yield INTRODUCTION
    for kind in _kinds():
        yield f"### Document `{kind.__name__}`"
        yield inspect.cleandoc(kind.__doc__ or "")
        rows = [
            (code(name), _words(field.annotation), sentence(field.description or ""))
            for name, field in kind.model_fields.items()
        ]
        yield table(("field", "type", "what"), rows)


def _kinds() -> list[type[Document]]:
    """Return the documents of the package and those inside them, by name."""
    found: dict[str, type[Document]] = {}
    waiting: list[object] = [kind for kind in vars(documents).values() if kind is not Document]
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if isinstance(hint, type) and issubclass(hint, Document) and hint.__name__ not in found:
            found[hint.__name__] = hint
            waiting += [field.annotation for field in hint.model_fields.values()]
    return [found[name] for name in sorted(found)]


def _words(hint: object) -> str:
    """Return a type in words."""
    if get_origin(hint) is Annotated:
        return _words(get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, Document):
        return f"[{code(hint.__name__)}]({anchor(f'Document {code(hint.__name__)}')})"
    if get_origin(hint) is list:
        return f"list of {_words(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"dict of {_words(get_args(hint)[1])}"
    if get_origin(hint) is Literal:
        return codes(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    return WORDS[hint]
