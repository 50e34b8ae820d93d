"""Arrays in the messages between workers and the service: their bytes, with dtype and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, TypeVar

import numpy
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

Scalar = TypeVar("Scalar", bound=numpy.generic)


def pack_array(values: NDArray[Any]) -> dict[str, Any]:
    """`{"dtype", "shape", "data"}`: the numbers of `values` as they are, row by row, lowest byte first."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": little.tobytes()}


def unpack_array(packed: Mapping[str, Any]) -> NDArray[Any]:
    """What `pack_array` was given. It is read-only: it lies in the message's own memory."""
    dtype = numpy.dtype(packed["dtype"]).newbyteorder("<")
    return numpy.frombuffer(packed["data"], dtype=dtype).reshape(packed["shape"])


Array: TypeAlias = Annotated[NDArray[Scalar], PlainValidator(unpack_array), PlainSerializer(pack_array)]
"""Type of a dataclass's field that holds an array, such as `Array[np.float32]`."""
