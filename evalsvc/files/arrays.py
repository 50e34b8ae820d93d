"""Arrays in the messages between workers and the service: their bytes, with dtype and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy


def pack_array(values: numpy.ndarray[Any, Any]) -> dict[str, Any]:
    """`{"dtype", "shape", "data"}`: the numbers of `values` as they are, row by row, lowest byte first."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": little.tobytes()}


def unpack_array(packed: Mapping[str, Any]) -> numpy.ndarray[Any, Any]:
    """What `pack_array` was given. It is read-only: it lies in the message's own memory."""
    import numpy  # here: the service passes packed arrays on without it

    dtype = numpy.dtype(packed["dtype"]).newbyteorder("<")
    return numpy.frombuffer(packed["data"], dtype=dtype).reshape(packed["shape"])
