"""Documents from JSON and back, without a package outside the standard library: the client needs none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from evalsvc.spec.documents.document import Document, hints_of, json_name, members_of

D = TypeVar("D", bound=Document)

Reader = Callable[[object], object]

_PLAIN: dict[object, frozenset[type]] = {
    str: frozenset([str]),
    int: frozenset([int]),
    bool: frozenset([bool]),
    float: frozenset([float, int]),
    type(None): frozenset([type(None)]),
}
"""The types of Python that a value of a scalar type may have after `json.loads`."""

_NAMES: dict[object, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

MAX_SHOWN = 80
"""Characters of a value in a message."""


def read(kind: type[D], content: object) -> D:
    """Return the document that `content`, as `json.loads` returns it, holds.

    Every field is checked. Fields that the type does not have, as those of a newer version, are left out.

    Raises:
        ValueError: a field without a default is missing, or has a value of another type; the message names the field.
    """
    hint: object = kind  # mypy takes the class for one of its objects, and not hashable
    document = _reader_of(hint)(content)
    assert isinstance(document, kind)
    return document


def content_of(document: Document) -> dict[str, object]:
    """Return what `read` reads: the document as plain dictionaries and lists, for JSON."""
    kind: object = type(document)
    nested = _nested(kind)
    return {json_name(name): _plain(value) if name in nested else value for name, value in vars(document).items()}


def value_of(kind: type[Document], field: str, content: object) -> object:
    """Return the value of a document's field that `content`, JSON or documents, holds.

    Fields that hold no documents are not checked.

    Raises:
        ValueError: the content is no such document; the message names the field.
    """
    hints: object = kind
    return _inside(field, _reader_of(hints_of(kind)[field]), content) if field in _nested(hints) else content


def _plain(value: object) -> object:
    if isinstance(value, Document):
        return content_of(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


@cache
def _nested(kind: Any) -> Collection[str]:
    """Return the fields that may hold documents; the others, as columns of numbers, are passed on as they are."""
    return {name for name, hint in hints_of(kind).items() if _holds_document(hint)}


def _holds_document(hint: object) -> bool:
    is_document = isinstance(hint, type) and issubclass(hint, Document)
    return is_document or (get_origin(hint) is not Literal and any(map(_holds_document, get_args(hint))))


@cache
def _reader_of(hint: object) -> Reader:
    if get_origin(hint) is Annotated:
        return _reader_of(get_args(hint)[0])
    if hint in (Any, object):
        return lambda content: content
    if hint in _PLAIN or get_origin(hint) is Literal:
        return _scalar_reader(hint)
    if isinstance(hint, type) and issubclass(hint, Document):
        return _document_reader(hint)
    if get_origin(hint) is list:
        return _list_reader(get_args(hint)[0])
    if get_origin(hint) is dict:
        return _dict_reader(get_args(hint)[1])
    members = members_of(hint)
    if len(members) == 1:
        raise TypeError(f"a document has no fields of type {hint}")
    return _union_reader(members)


def _scalar_reader(hint: object) -> Reader:
    kinds, words = _PLAIN.get(hint, frozenset()), get_args(hint)
    wanted = " or ".join(map(repr, words)) or _NAMES.get(hint, "null")

    def read_scalar(content: object) -> object:
        if type(content) not in kinds and (not words or content not in words):
            raise ValueError(f"{wanted} is expected, found {_shown(content)}")
        return content

    return read_scalar


def _list_reader(member: object) -> Reader:
    read_member, plain, is_open = _reader_of(member), _plain_types(member), member in (Any, object)

    def read_list(content: object) -> object:
        if not isinstance(content, list):
            raise ValueError(f"a list is expected, found {_shown(content)}")
        # Columns have a million numbers.
        return content if is_open or plain >= set(map(type, content)) else [read_member(item) for item in content]

    return read_list


def _plain_types(hint: object) -> frozenset[type]:
    """Return the types of Python that need no look at the value."""
    if get_origin(hint) is Annotated:
        return _plain_types(get_args(hint)[0])
    return frozenset().union(*(_PLAIN.get(member, frozenset()) for member in members_of(hint)))


def _dict_reader(member: object) -> Reader:
    read_member = _reader_of(member)

    def read_dict(content: object) -> object:
        if not isinstance(content, dict):
            raise ValueError(f"an object is expected, found {_shown(content)}")
        return {key: _inside(key, read_member, value) for key, value in content.items()}

    return read_dict


def _union_reader(members: Collection[object]) -> Reader:
    readers = [_reader_of(member) for member in members]

    def read_union(content: object) -> object:
        problems = []
        for read_member in readers:
            try:
                return read_member(content)
            except ValueError as problem:
                problems.append(str(problem))
        raise ValueError("; or ".join(problems))

    return read_union


def _document_reader(kind: type[Document]) -> Reader:
    # A document may hold documents of its own type, so readers of fields are made when the first one is read.
    required = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}

    def read_document(content: object) -> object:
        if isinstance(content, kind):
            return content
        if not isinstance(content, dict):
            raise ValueError(f"an object is expected, found {_shown(content)}")
        values = {}
        for name, hint in hints_of(kind).items():
            key = json_name(name)
            if key in content:
                values[name] = _inside(key, _reader_of(hint), content[key])
            elif name in required:
                raise ValueError(f"{key} is missing")
        return kind(**values)

    return read_document


def _inside(key: str, reader: Reader, content: object) -> object:
    try:
        return reader(content)
    except ValueError as problem:
        raise ValueError(f"{key}: {problem}") from None


def _shown(content: object) -> str:
    text = repr(content)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
