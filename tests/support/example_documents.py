"""Documents of the REST interface for tests: the example of a type, with fields changed."""

from dataclasses import replace
from typing import TypeVar

from evalsvc.spec.documents import Document
from evalsvc.spec.documents.document import example_of
from evalsvc.spec.documents.reading import read

D = TypeVar("D", bound=Document)


def example(kind: type[D], **fields: object) -> D:
    """Return the example of a document with these fields in place of its own."""
    content = example_of(kind)
    return replace(read(kind, content), **fields)
