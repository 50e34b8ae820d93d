"""The page of the REST interface, from the OpenAPI document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from evalsvc.api.app import create_app
from evalsvc.api.routes.prometheus import FAMILIES
from evalsvc.config import Settings
from reference_pages.examples import Schema, example_of
from reference_pages.markdown import NONE, anchor, block, bounded, code, codes, json_block, sentence, table

INTRODUCTION = """\
# REST

A running service shows the same routes with a form to try them at `/docs`, and the OpenAPI document at `/openapi.json`.
Requests and answers are JSON unless a route says otherwise.

*Scope* is the scope that a token needs on a service with tokens; a route without a scope is open to everyone. Every
error is a problem document with a stable [code](errors.md)."""

LARGEST = 2**31 - 1
"""Larger bounds are those of a database's numbers, and are not shown."""

NAMES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}

METRICS = """\
## Metrics of the service

`GET /metrics` shows these metrics in Prometheus' text format. Shards are counted in the database, so those counts go on
after a restart and after runs were deleted."""


def page() -> str:
    """Return docs/reference/rest.md."""
    document = create_app(Settings()).openapi()
    return "\n\n".join(_parts(document)) + "\n"


def _parts(document: Schema) -> Iterator[str]:
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    schemas = document["components"]["schemas"]
    yield INTRODUCTION
    yield table(
        ("route", "scope", "what"), [(_link(name), _scope(one), sentence(one["summary"])) for name, one in operations]
    )
    shared = _shared_statuses([operation for _, operation in operations])
    yield "## Common statuses"
    yield "Most routes can also answer with these statuses. A route's own table has the statuses that differ."
    yield table(("status", "what"), shared)
    shown: dict[str, str] = {}
    for tag in dict.fromkeys(operation["tags"][0] for _, operation in operations):
        yield f"## {tag.capitalize()}"
        for name, operation in operations:
            if operation["tags"][0] == tag:
                yield from _request(name, operation, schemas)
                yield from _statuses(operation, dict(shared))
                yield from _answer(name, operation["responses"], schemas, shown)
    yield METRICS
    yield table(("metric", "type", "labels", "what"), _metrics())


def _request(name: str, operation: Schema, schemas: Schema) -> Iterator[str]:
    yield f"### `{name}`"
    yield sentence(operation["summary"])
    if operation.get("description"):
        yield operation["description"]
    yield f"Scope: {_scope(operation)}."
    if operation.get("parameters"):
        yield table(("parameter", "in", "type", "default", "what"), map(_parameter, operation["parameters"]))
    if body := operation.get("requestBody"):
        yield from _body(body["content"], schemas)


def _statuses(operation: Schema, shared: Mapping[str, str]) -> Iterator[str]:
    own = [
        (status, sentence(answer["description"]))
        for status, answer in sorted(operation["responses"].items())
        if shared.get(status) != sentence(answer["description"])
    ]
    yield table(("status", "what"), own)


def _body(content: Schema, schemas: Schema) -> Iterator[str]:
    yield "Request body: " + " or ".join(map(code, content)) + "."
    [media, *_] = [content[kind] for kind in content if kind == "application/json"] or content.values()
    schema = _resolved(media["schema"], schemas)
    if schema.get("format") == "binary":
        return
    yield from _objects(schema, schemas)
    examples = [media["example"]] if "example" in media else schema.get("examples", [])
    for example in examples[:1]:
        yield json_block("json check", example)


def _objects(schema: Schema, schemas: Schema, title: str = "") -> Iterator[str]:
    """Yield a table of an object's fields, and of the fields of objects in them."""
    if title:
        yield f"Fields of {title}:"
    required = schema.get("required", [])
    rows = [
        (code(name), _kind(one, schemas), _default(one, name in required), _what(one))
        for name, one in schema.get("properties", {}).items()
    ]
    yield table(("field", "type", "default", "what"), rows)
    for name, one in schema.get("properties", {}).items():
        for member in _alternatives(one, schemas):
            nested = _resolved(member.get("items", member), schemas)
            if "properties" in nested:
                yield from _objects(nested, schemas, f"`{name}`" if "items" not in member else f"each of `{name}`")


def _answer(name: str, responses: Schema, schemas: Schema, shown: dict[str, str]) -> Iterator[str]:
    """Yield an example of an answer; `shown` has the route of each example on the page."""
    media = [
        (kind, media)
        for status, answer in sorted(responses.items())
        for kind, media in answer.get("content", {}).items()
        if status.startswith("2")
    ]
    for kind, one in media:
        example = one["example"] if "example" in one else example_of(one["schema"], schemas)
        yield from _once(f"Example of an answer, `{kind}`:", _example(example), name, shown)
        return


def _once(title: str, text: str, name: str, shown: dict[str, str]) -> Iterator[str]:
    """Yield a text with its title, or a link to the route that has the same text."""
    first = shown.setdefault(text, name)
    yield from (title, text) if first == name else (f"The answer is that of {_link(first)}.",)


def _example(value: Any) -> str:
    return block("text output", value.rstrip("\n")) if isinstance(value, str) else json_block("json output", value)


def _shared_statuses(operations: list[Schema]) -> list[tuple[str, str]]:
    """Return the statuses that more than half of the routes share, with what they mean."""
    pairs = Counter(
        (status, sentence(answer["description"]))
        for operation in operations
        for status, answer in operation["responses"].items()
        if not status.startswith("2")
    )
    half = len(operations) / 2
    writes = sum("requestBody" in operation for operation in operations)
    return sorted(pair for pair, number in pairs.items() if number > half or (pair[0] == "413" and number == writes))


def _parameter(parameter: Schema) -> tuple[str, str, str, str, str]:
    schema = parameter["schema"]
    what = sentence(parameter.get("description") or schema.get("description", ""))
    return (
        code(parameter["name"]),
        parameter["in"],
        _kind(schema, {}),
        _default(schema, parameter.get("required", False)),
        what,
    )


def _kind(schema: Schema, schemas: Schema) -> str:
    """Return a type in words."""
    kinds = [_plain_kind(one, schemas) for one in _alternatives(schema, schemas)]
    return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null")) or "anything"


def _plain_kind(schema: Schema, schemas: Schema) -> str:
    if "enum" in schema:
        return codes(schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    kind = schema.get("type", "object")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}), schemas)}"
    least, most = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if most is not None and most >= LARGEST:
        most = None
    return bounded(NAMES.get(kind, kind), least, most, is_open="exclusiveMinimum" in schema)


def _alternatives(schema: Schema, schemas: Schema) -> list[Schema]:
    return [_resolved(one, schemas) for one in schema.get("anyOf", schema.get("oneOf", [schema]))]


def _resolved(schema: Schema, schemas: Schema) -> Schema:
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _default(schema: Schema, is_required: bool) -> str:
    if is_required:
        return "required"
    default = schema.get("default")
    if default in (None, "", [], {}):
        return NONE
    return code(str(default).lower() if isinstance(default, bool) else default)


def _what(schema: Schema) -> str:
    return sentence(schema.get("description", ""))


def _scope(operation: Schema) -> str:
    scope = operation.get("x-scope")
    return code(scope) if scope else NONE


def _link(name: str) -> str:
    return f"[{code(name)}]({anchor(name)})"


def _metrics() -> Iterator[tuple[str, str, str, str]]:
    for name, family in FAMILIES.items():
        shown = f"{name}_total" if family.kind == "counter" else name
        yield code(shown), family.kind, codes(family.labels) or NONE, family.help
