"""The documents that the client returns, as tables of their fields."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Literal, get_args, get_origin

from pydantic import TypeAdapter

from evalsvc.spec import documents
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.document import hints_of, json_name, members_of
from reference_pages.markdown import anchor, code, codes, sentence, table

INTRODUCTION = """\
## Documents

The client returns dataclasses of `evalsvc.spec.documents`, one for each JSON document of [REST](rest.md). A field whose
name ends in `_` has the name without it in JSON. `evalsvc.spec.documents.reading.content_of` returns a document as a
`dict`."""

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
        properties = TypeAdapter(kind).json_schema(mode="serialization")["properties"]
        rows = [
            (code(name), _words(hint), sentence(properties[json_name(name)].get("description", "")))
            for name, hint in hints_of(kind).items()
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
            waiting += hints_of(hint).values()
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
    members = members_of(hint)
    return " or ".join(map(_words, members)) if len(members) > 1 else WORDS[hint]
