"""Arrays in the messages between workers and the service: bytes with dtype and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, TypeVar

import numpy
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

Scalar = TypeVar("Scalar", bound=numpy.generic)


def pack_array(values: NDArray[Any]) -> dict[str, Any]:
    """Return `{"dtype", "shape", "data"}`: the numbers of `values` unconverted, row by row, lowest byte first."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": little.tobytes()}


def unpack_array(packed: Mapping[str, Any]) -> NDArray[Any]:
    """Return the array that `pack_array` packed. The array is read-only, since its memory is the message's."""
    dtype = numpy.dtype(packed["dtype"]).newbyteorder("<")
    return numpy.frombuffer(packed["data"], dtype=dtype).reshape(packed["shape"])


Array: TypeAlias = Annotated[NDArray[Scalar], PlainValidator(unpack_array), PlainSerializer(pack_array)]
"""Type of a dataclass's field that holds an array, such as `Array[np.float32]`."""
