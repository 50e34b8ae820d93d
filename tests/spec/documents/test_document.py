"""Documents: every one has an example, which follows from its fields, and is what its own reader reads."""

from typing import Annotated, Literal

import pytest
from pydantic import TypeAdapter

from evalsvc.spec import documents
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.document import Example, example_of
from evalsvc.spec.documents.reading import content_of, read

KINDS = [kind for kind in vars(documents).values() if isinstance(kind, type) and kind is not Document]


class Leaf(Document):
    from_: Literal["here", "there"]
    """Where it is from."""


class Tree(Document):
    """A tree."""

    leaves: list[Leaf]
    height: Annotated[int, Example(3, minimum=0), Example(4)]
    """Its height in metres."""
    crown: Leaf | None
    owner: Annotated[Leaf | None, Example(None)] = None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_example_is_a_document(kind: type[Document]) -> None:
    example = example_of(kind)
    assert content_of(read(kind, example)) == example
    TypeAdapter(kind).validate_python(example, by_alias=True)


def test_an_example_follows_from_the_fields() -> None:
    leaf = {"from": "here"}
    assert example_of(Tree) == {"leaves": [leaf], "height": 4, "crown": leaf, "owner": None}


def test_a_schema_follows_from_the_fields() -> None:
    schema = TypeAdapter(Tree).json_schema(mode="serialization")
    assert schema["required"] == ["leaves", "height", "crown", "owner"], "an answer always has its fields"
    height = {"type": "integer", "minimum": 0, "examples": [4], "description": "Its height in metres."}
    assert height.items() <= schema["properties"]["height"].items()
    assert list(schema["$defs"]["Leaf"]["properties"]) == ["from"]


def test_a_field_without_an_example_is_named() -> None:
    class Bare(Document):
        number: int

    with pytest.raises(TypeError, match=r"Bare.number: <class 'int'> implies no example; annotate the field"):
        example_of(Bare)
