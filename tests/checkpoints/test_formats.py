"""Headers of safetensors files that lie: refused before anything maps the file."""

from pathlib import Path
from typing import Any

import pytest
from hostile_files import entry, safetensors

from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import NotACheckpoint


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{" + b" " * 26_000_000, "claims a safetensors header of 26,000,001 bytes, too many for a model"),
        ({"a": entry(0, 32)}, "its tensors end at byte"),
        ({"a": entry(0, 16), "b": entry(8, 16)}, "is damaged"),
        ({"a": entry(-16, 0, [4])}, "is damaged"),
        ({"a": entry(0, 16, [2**63, 2])}, "is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, NaN]}}', "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1e999]}}', "damaged"),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
            b'"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
            "damaged",
        ),
        (b"{" + b'"a":{' * 100_000, "damaged safetensors header"),
        (b'{"a": [1, 2]}', "damaged safetensors header"),
    ],
)
def test_headers(tmp_path: Path, header: Any, words: str) -> None:
    safetensors(tmp_path / "x", header)
    with pytest.raises(NotACheckpoint) as caught:
        read_weights(tmp_path / "x")
    assert str(tmp_path / "x") in caught.value.message
    assert words in caught.value.message
