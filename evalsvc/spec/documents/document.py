"""The base class of documents. A document's example follows from the examples of its fields."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal, Union, dataclass_transform, get_args, get_origin, get_type_hints


def json_name(field: str) -> str:
    """Return the name of a field in JSON: `from_` is `from`, a reserved word of Python."""
    return field.rstrip("_")


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Document:
    """A JSON object with known fields. Subclasses become frozen dataclasses without a decorator.

    The docstring under a field is its description. A field with a default may be missing in answers of an older service
    and in documents that an older version stored. A field named like a reserved word of Python ends in `_`.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {
        "alias_generator": json_name,
        "use_attribute_docstrings": True,
        "json_schema_serialization_defaults_required": True,
    }

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


class Example:
    """The example of a field, with JSON schema keywords that the field's type lacks.

    `Annotated[int, Example(9, minimum=0)]`: if a type has several examples, the last one counts.
    """

    def __init__(self, value: object, **schema: object) -> None:
        self.value = value
        self.schema = schema

    def __get_pydantic_json_schema__(
        self, core_schema: object, handler: Callable[[object], dict[str, object]]
    ) -> dict[str, object]:
        """Add the example to the JSON schema that pydantic makes of the field."""
        return {**handler(core_schema), **self.schema, "examples": [self.value]}


def hints_of(kind: type[Document]) -> Mapping[str, object]:
    """Return the annotations of a document's fields by name, in the order of the fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def members_of(hint: object) -> Sequence[object]:
    """Return the members of a union; for any other type, the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]


def example_of(hint: object) -> object:
    """Return the example of a type. The example of a document consists of the examples of its fields.

    Raises:
        TypeError: a field has neither an `Example` nor a type that implies one.
    """
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        examples = [mark.value for mark in marks if isinstance(mark, Example)]
        return examples[-1] if examples else example_of(inner)
    first = members_of(hint)[0]
    if first is not hint:
        return example_of(first)
    if isinstance(hint, type) and issubclass(hint, Document):
        return {
            json_name(name): _example_of_field(hint, name, field_hint) for name, field_hint in hints_of(hint).items()
        }
    if get_origin(hint) is list:
        return [example_of(get_args(hint)[0])]
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if hint is bool:
        return False
    raise TypeError(f"{hint} implies no example; annotate the field: Annotated[…, Example(…)]")


def _example_of_field(kind: type[Document], name: str, hint: object) -> object:
    try:
        return example_of(hint)
    except TypeError as error:
        raise TypeError(f"{kind.__name__}.{name}: {error}") from None
