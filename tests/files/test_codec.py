"""Dataclasses between stages: what comes out is what went in, and anything else is refused by its name."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import msgpack
import numpy as np
import pytest

from evalsvc.files.arrays import Array, pack_array, unpack_array
from evalsvc.files.codec import Codec, Unreadable, generic_arguments


@dataclass(frozen=True)
class Inner:
    value: float
    names: tuple[str, ...] = ()
    open: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampled:
    features: Array[np.float32]
    inner: Inner
    images: Sequence[bytes]
    error: float | None = None
    part: Literal["sampled"] = "sampled"


@dataclass(frozen=True)
class Counted:
    count: int
    part: Literal["counted"] = "counted"


@dataclass
class Thawed:
    count: int


SAMPLED = Sampled(
    np.arange(6, dtype=np.float32).reshape(2, 3), Inner(math.inf, ("a",), {"a": [1, 0.5]}), [b"\0\xff"], 0.1
)


@pytest.mark.parametrize("kind", [Sampled, Sampled | Counted])
def test_what_comes_out_is_what_went_in(kind: Any) -> None:
    codec: Codec[Any] = Codec(kind)
    found = codec.unpack(codec.pack(SAMPLED))
    assert np.array_equal(found.features, SAMPLED.features)
    assert found.features.dtype == np.float32
    assert (found.inner, found.images, found.error) == (SAMPLED.inner, SAMPLED.images, SAMPLED.error)


def test_a_json_document_is_what_json_would_give_back() -> None:
    """A tuple in the place of a list was refused when the plan was stored."""
    codec: Codec[Inner] = Codec(Inner)
    document = codec.to_json(Inner(0.5, ("a",), {"grid": (8, 8), "factor": 0.5}))
    assert document == json.loads(json.dumps(document))
    assert document == {"value": 0.5, "names": ["a"], "open": {"grid": [8, 8], "factor": 0.5}}
    assert codec.from_json(document) == Inner(0.5, ("a",), {"grid": [8, 8], "factor": 0.5})


def test_a_union_is_told_apart_by_its_part() -> None:
    codec: Codec[Sampled | Counted] = Codec(Sampled | Counted)
    assert codec.from_json(codec.to_json(Counted(3))) == Counted(3)
    with pytest.raises(Unreadable, match=r"no Sampled or Counted: .*does not match any of the expected tags"):
        codec.from_json({"count": 3, "part": "other"})


@pytest.mark.parametrize("value", [{"count": 1}, Inner(1.0), None, Counted(1.5), Counted("1")])  # type: ignore[arg-type]
def test_a_value_of_another_type_is_not_packed(value: Any) -> None:
    codec: Codec[Counted] = Codec(Counted)
    with pytest.raises(TypeError, match=r"the value is a \w+, not a Counted|does not match its annotation"):
        codec.pack(value)


ARRAYS: list[Any] = [
    5,
    {"dtype": "float32", "shape": [1]},
    {"dtype": "float32", "shape": [2**40], "data": b"1234"},
    {"dtype": "object", "shape": [1], "data": bytes(8)},
    {"dtype": "V1000000000000", "shape": [1], "data": bytes(8)},
]


def test_other_bytes_and_arrays_that_are_none_are_unreadable() -> None:
    others = [b"", b"\xc1", b"\x81\xa5count", *map(msgpack.packb, ({"count": "x"}, [1], {}))]
    arrays = [msgpack.packb({"features": array, "inner": {"value": 1.0}, "images": []}) for array in ARRAYS]
    for kind, contents in ((Counted, others), (Sampled, arrays)):
        for content in contents:
            with pytest.raises(Unreadable, match=f"no {kind.__name__}"):
                Codec(kind).unpack(content)


@pytest.mark.parametrize("kind", [dict, int, Thawed, Counted | Thawed, list[Counted]])
def test_nothing_but_frozen_dataclasses_travels(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"is no frozen dataclass; decorate it with `@dataclass\(frozen=True\)`"):
        Codec(kind)


One, Other = TypeVar("One"), TypeVar("Other")


class Base(Generic[One, Other]):
    pass


class Turned(Base[Other, One], Generic[One, Other]):
    pass


class Named(Turned[int, str]):
    pass


class Last(Named):
    pass


class Bare(Base):  # type: ignore[type-arg]
    pass


def test_the_arguments_of_a_generic_class_are_found_through_its_subclasses() -> None:
    assert generic_arguments(Last, Base) == generic_arguments(Named, Base) == (str, int)
    assert generic_arguments(Turned, Base) == (Other, One)
    assert generic_arguments(Bare, Base) == ()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", ">f4"])
def test_an_array_comes_out_as_it_went_in(dtype: str) -> None:
    """The bytes of a transposed or sliced array lie in another order than its numbers."""
    for shape in ((3, 4), (0, 64), (5,), ()):
        values: Any = np.asarray(np.random.default_rng(0).uniform(0, 200, shape)).astype(dtype)
        for view in (values, values.T, *([values[::-1], values[..., ::2]] if shape else [])):
            found = unpack_array(msgpack.unpackb(msgpack.packb(pack_array(view))))
            assert found.dtype == values.dtype.newbyteorder("=")
            assert found.shape == view.shape
            assert np.array_equal(found, view)
