"""Queries of pages and panels: known parameters with bounded values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self, get_origin
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, ValidationError

from evalsvc.errors import InvalidRequest, UnknownName


class Query(BaseModel):
    """Parameters of an address. Unknown parameters are refused, so every address is one that a page can make."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Read parameters as an address has them. Empty values, as forms send them, are the default."""
        repeated = {
            field.alias or name: get_origin(field.annotation) is tuple for name, field in cls.model_fields.items()
        }
        values: dict[str, str | list[str]] = {}
        for name, value in pairs:
            if name not in repeated:
                raise InvalidRequest(UnknownName.among("parameter", name, repeated).message)
            if not value:
                continue
            if not repeated[name]:
                if name in values:
                    raise InvalidRequest(f"the parameter {name!r} is given twice; give it once")
                values[name] = value
            else:
                known = values.setdefault(name, [])
                assert isinstance(known, list)
                known.append(value)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidRequest(f"{where}: {first['msg']}, found {str(first['input'])[:80]!r}") from None

    def to_query(self) -> str:
        """Return the query string of the address, with the parameters that differ from their defaults."""
        given = self.model_dump(exclude_defaults=True, by_alias=True)
        pairs = [
            (name, value)
            for name, values in given.items()
            for value in (values if isinstance(values, list | tuple) else [values])
        ]
        return urlencode(pairs)
