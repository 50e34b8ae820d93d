"""Documents of the REST interface for tests: the example of a type, with fields changed."""

from typing import TypeVar

from reference_pages.examples import example_of

from evalsvc.spec.documents import Document

D = TypeVar("D", bound=Document)


def example(kind: type[D], **fields: object) -> D:
    schema = kind.model_json_schema(mode="serialization")
    return kind.model_validate(example_of(schema, schema.get("$defs", {}))).model_copy(update=fields)
