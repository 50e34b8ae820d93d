"""Conversion of documents from JSON and back. The standard library suffices, so the client needs no other package."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
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
"""Python types of each scalar JSON type after `json.loads`."""

_NAMES: dict[object, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

_FORMS: dict[type[Document], _Form] = {}

MAX_SHOWN = 80
"""Characters of a value that a message quotes."""


def read(kind: type[D], content: object) -> D:
    """Return the document that `content`, the result of `json.loads`, holds.

    Every field is checked. Unknown fields, such as those of a newer version, are ignored.

    Raises:
        ValueError: a field without a default is missing, or has a value of another type; the message names the field.
    """
    hint: object = kind  # mypy infers an instance instead of the class, which is not hashable
    document = _reader_of(hint)(content)
    assert isinstance(document, kind)
    return document


def content_of(document: Document) -> dict[str, object]:
    """Convert a document to plain dictionaries and lists, as `read` reads them."""
    form = _form_of(type(document))
    content = (
        dict(vars(document)) if form.has_plain_names else dict(zip(form.keys, vars(document).values(), strict=True))
    )
    for key in form.nested:
        content[key] = _plain(content[key])
    return content


def filled(kind: type[D], attribute: Callable[[str], object], given: Mapping[str, object]) -> D:
    """Return a document with the fields in `given`, and with all other fields from `attribute`, called with their
    names.

    Fields that hold documents are checked unless they are given.

    Raises:
        ValueError: a field holds no such document; the message names the field.
    """
    values = dict(given)
    form = _form_of(kind)
    for field in form.fields:
        if field.name not in given:
            value = attribute(field.name)
            values[field.name] = field.read(value) if field.key in form.nested else value
    return kind(**values)


def _plain(value: object) -> object:
    if isinstance(value, Document):
        return content_of(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class _Field:
    """A field of a document, with what follows from its type."""

    name: str
    key: str
    """Name of the field in JSON."""
    reader: Reader
    is_required: bool

    def read(self, content: object) -> object:
        return _named(self.key, self.reader, content)


@dataclass(frozen=True)
class _Form:
    """The fields of a type of document."""

    fields: Sequence[_Field]
    keys: Sequence[str]
    has_plain_names: bool
    """Whether all fields have the same names in JSON."""
    nested: Sequence[str]
    """Keys of fields that may hold documents. Values of other fields, such as columns of numbers, are not copied."""


def _form_of(kind: type[Document]) -> _Form:
    if kind not in _FORMS:
        hints = hints_of(kind)
        required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
        form_fields = [
            _Field(name, json_name(name), _reader_of(hint), name in required) for name, hint in hints.items()
        ]
        keys = [field.key for field in form_fields]
        nested = [json_name(name) for name, hint in hints.items() if _holds_document(hint)]
        _FORMS[kind] = _Form(form_fields, keys, keys == list(hints), nested)
    return _FORMS[kind]


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
        # Columns can hold a million numbers, so skip the check of every item.
        return content if is_open or plain >= set(map(type, content)) else [read_member(item) for item in content]

    return read_list


def _plain_types(hint: object) -> frozenset[type]:
    """Return the Python types whose values need no conversion."""
    if get_origin(hint) is Annotated:
        return _plain_types(get_args(hint)[0])
    return frozenset().union(*(_PLAIN.get(member, frozenset()) for member in members_of(hint)))


def _dict_reader(member: object) -> Reader:
    read_member = _reader_of(member)

    def read_dict(content: object) -> object:
        if not isinstance(content, dict):
            raise ValueError(f"an object is expected, found {_shown(content)}")
        return {key: _named(key, read_member, value) for key, value in content.items()}

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
    def read_document(content: object) -> object:
        if isinstance(content, kind):
            return content
        if not isinstance(content, dict):
            raise ValueError(f"an object is expected, found {_shown(content)}")
        values = {}
        for field in _form_of(kind).fields:
            if field.key in content:
                values[field.name] = field.read(content[field.key])
            elif field.is_required:
                raise ValueError(f"{field.key} is missing")
        return kind(**values)

    return read_document


def _named(key: str, reader: Reader, content: object) -> object:
    """Read a part of a document. Prefix the message of a ValueError with the name of the part."""
    try:
        return reader(content)
    except ValueError as problem:
        raise ValueError(f"{key}: {problem}") from None


def _shown(content: object) -> str:
    text = repr(content)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
