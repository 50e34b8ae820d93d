"""The base class of documents."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from pydantic import BaseModel, ConfigDict, ValidationError

from evalsvc.spec.bounds import shortened

MAX_FINDINGS = 8
"""Maximum number of wrong fields that a message lists."""


def json_name(field: str) -> str:
    """Return the name of a field in JSON: `from_` is `from`, a reserved word of Python."""
    return field.rstrip("_")


class Document(BaseModel):
    """A JSON object with known fields.

    The docstring under a field is its description. A field with a default may be missing in answers of an older service
    and in documents that an older version stored. Unknown fields, such as those of a newer version, are ignored. A
    field named like a reserved word of Python, or like a method of pydantic, ends in `_`.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        alias_generator=json_name,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
        ser_json_inf_nan="strings",
    )

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return html_table(*((name, shortened(value)) for name, value in self))


def html_table(*rows: Iterable[object]) -> str:
    """Return rows as a table for notebooks, with the text escaped."""
    cells = (
        "".join(f"<td>{escape(f'{cell:.5g}' if isinstance(cell, float) else str(cell))}</td>" for cell in row)
        for row in rows
    )
    return f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>"


def validation_message(error: ValidationError, *, quoting: bool = True) -> str:
    """Return pydantic's first findings on one line: `field: what is wrong, found …; …`.

    Without `quoting`, the message holds no values.
    """
    lines = []
    findings = error.errors(include_url=False)
    for item in findings[:MAX_FINDINGS]:
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        silent = not quoting or item["type"] in ("missing", "value_error")
        value = "" if silent else f", found {shortened(item['input'])}"
        lines.append(f"{field}: {message[:1].lower()}{message[1:]}{value}" if field else message)
    if len(findings) > MAX_FINDINGS:
        lines.append(f"and {len(findings) - MAX_FINDINGS:,} more")
    return "; ".join(lines)
