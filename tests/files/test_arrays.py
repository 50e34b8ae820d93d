from typing import Any

import msgpack
import numpy as np
import pytest

from evalsvc.files.arrays import pack_array, unpack_array


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", ">f4"])
@pytest.mark.parametrize("shape", [(3, 4), (0, 64), (5,), ()])
def test_what_comes_out_is_what_went_in(dtype: str, shape: tuple[int, ...]) -> None:
    values: Any = np.random.default_rng(0).uniform(0, 200, shape)
    values = np.asarray(values).astype(dtype)
    found = unpack_array(msgpack.unpackb(msgpack.packb(pack_array(values))))
    assert found.dtype == values.dtype.newbyteorder("=")
    assert found.shape == shape
    assert np.array_equal(found, values)


def test_views_are_packed_row_by_row() -> None:
    """The bytes of a transposed or sliced array lie in another order than its numbers."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (values.T, values[:, ::2], values[::-1]):
        assert np.array_equal(unpack_array(pack_array(view)), view)
