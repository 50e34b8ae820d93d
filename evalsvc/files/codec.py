"""Frozen dataclasses as MessagePack and as JSON, which carry the result of a stage to the next stage's machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import msgpack
from pydantic import Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

Value = TypeVar("Value")

PART = "part"
"""Field that distinguishes the members of a union: a `Literal` with a default."""


class Unreadable(ValueError):
    """The bytes or the document are no value of the expected type."""


class Codec(Generic[Value]):
    """Converter for values of one frozen dataclass, or of a union of several, with all their fields. Bytes stay bytes,
    arrays are fields of the type `files.arrays.Array`, and NaN and infinities keep their values."""

    def __init__(self, kind: Any) -> None:
        self.members: Sequence[type] = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        for member in self.members:
            if not (is_dataclass(member) and member.__dataclass_params__.frozen):  # type: ignore[union-attr]
                raise TypeError(f"{member!r} is no frozen dataclass; decorate it with `@dataclass(frozen=True)`")
        has_part = [PART in {field.name for field in fields(member)} for member in self.members]
        is_told_apart = len(self.members) > 1 and all(has_part)
        self._adapter: TypeAdapter[Value] = TypeAdapter(
            Annotated[kind, Field(discriminator=PART)] if is_told_apart else kind
        )

    @property
    def name(self) -> str:
        return " or ".join(member.__name__ for member in self.members)

    def pack(self, value: Value) -> bytes:
        packed: bytes = msgpack.packb(self._plain(value, "python"))
        return packed

    def unpack(self, content: bytes) -> Value:
        """Return the value that `pack` was given; arrays share the message's memory. Raises Unreadable."""
        try:
            return self._adapter.validate_python(msgpack.unpackb(content, strict_map_key=False))
        except ValidationError as error:
            raise self._unreadable(error) from None
        # MessagePack raises ValueError and UnpackException; a malformed array raises any of these.
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise Unreadable(f"no {self.name}: {error}") from None

    def to_json(self, value: Value) -> dict[str, JsonValue]:
        return self._plain(value, "json")

    def from_json(self, document: Mapping[str, JsonValue]) -> Value:
        try:
            return self._adapter.validate_python(document)
        except ValidationError as error:
            raise self._unreadable(error) from None

    def _plain(self, value: Value, mode: Literal["python", "json"]) -> dict[str, JsonValue]:
        if type(value) not in self.members:
            raise TypeError(f"the value is a {type(value).__name__}, not a {self.name}")
        try:
            document: dict[str, JsonValue] = self._adapter.dump_python(value, mode=mode, warnings="error")
        except PydanticSerializationError as error:
            # The first line of the message only says that there were warnings.
            reason = str(error).partition("\n")[2].strip()
            raise TypeError(f"a field's value does not match its annotation: {reason or error}") from None
        return document

    def _unreadable(self, error: ValidationError) -> Unreadable:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return Unreadable(f"no {self.name}: {where}: {first['msg']}")


def generic_arguments(cls: type, generic: type) -> tuple[object, ...]:
    """Return a subclass's arguments for the type variables of a generic base class; empty without arguments."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if origin is generic:
            return get_args(base)
        if isinstance(origin, type) and issubclass(origin, generic):
            named = dict(zip(getattr(origin, "__parameters__", ()), get_args(base), strict=False))
            return tuple(named.get(argument, argument) for argument in generic_arguments(origin, generic))
    return ()
