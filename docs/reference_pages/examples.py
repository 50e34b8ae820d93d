"""Examples of JSON schemas, put together from the examples of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def example_of(schema: Schema, definitions: Schema) -> Any:
    """Return an example of a schema; `definitions` has the schemas that references name.

    Raises:
        ValueError: a part has no example, and its type implies none.
    """
    if "$ref" in schema:
        return example_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    match schema:
        case {"examples": [*_, example]} | {"const": example} | {"enum": [example, *_]}:
            return example
        case {"anyOf": [first, *_]} | {"oneOf": [first, *_]}:
            return example_of(first, definitions)
        case {"properties": properties}:
            return {name: example_of(part, definitions) for name, part in properties.items()}
        case {"type": "array", "items": items}:
            return [example_of(items, definitions)]
        case {"type": "boolean"}:
            return False
    raise ValueError(f"{schema} implies no example; annotate the field: Annotated[…, Field(examples=[…])]")
