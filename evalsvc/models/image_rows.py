"""Rows of image tokens as a file: what a run may begin with instead of random ones.

safetensors with the tensors `values` float32 [K, D], one row a code, `rows` int64 [K], which row of the table each of
them is, and `trained` uint8 [K], 0 where a code was never seen and its row is that of the checkpoint before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from evalsvc.checkpoints.weights import read_weights, strip_prefixes
from evalsvc.errors import CheckpointMismatch

TABLES = {"input": "tok_embeddings.weight", "output": "output.weight"}
"""Names of the tables in a state dict."""


@dataclass(frozen=True)
class ImageRows:
    values: Tensor
    """[K, D] float32, in the order of the codes."""
    rows: Tensor
    """[K] int64: the row of the table that each is."""
    trained: Tensor
    """[K] bool"""
    table: str
    """The table's name in a state dict."""
    table_rows: int
    """Of the whole table."""
    about: Mapping[str, str]
    """Where they come from: layout, temperature, how their length was chosen, data, checkpoint."""

    def to_bytes(self) -> bytes:
        """The file."""
        tensors = {"values": self.values, "rows": self.rows, "trained": self.trained.to(torch.uint8)}
        metadata = {"table": self.table, "table_rows": str(self.table_rows), **self.about}
        return _in_order(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata))


def _in_order(content: bytes) -> bytes:
    """A safetensors file whose header is sorted: the library writes metadata in another order each time."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def read_image_rows(path: str | Path) -> ImageRows:
    """Read a file of `ImageRows.to_bytes`. Raises CheckpointMismatch for another file, and as `read_weights`."""
    path = Path(path)
    weights = read_weights(path)
    found, about = weights.tensors, dict(weights.metadata)
    count = len(found["values"]) if "values" in found and found["values"].dim() == 2 else -1
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    table, table_rows = about.pop("table", None), str(about.pop("table_rows", ""))
    whole = set(found) == {"values", "rows", "trained"} and shapes["rows"] == shapes["trained"] == [count]
    if not whole or table not in TABLES.values() or not table_rows.isdecimal() or not _are_rows(found, int(table_rows)):
        raise CheckpointMismatch(
            f"{path} holds {shapes} and the table {table!r}; image rows are values [K, D], rows [K] and trained [K], "
            "as the task `alignment` writes them"
        )
    shown = {key: str(value) for key, value in about.items()}
    return ImageRows(
        found["values"].float(), found["rows"].long(), found["trained"].bool(), str(table), int(table_rows), shown
    )


def _are_rows(tensors: Mapping[str, Tensor], table_rows: int) -> bool:
    """Whether each value is a number and each row is in the table."""
    rows = tensors["rows"]
    return bool(tensors["values"].isfinite().all() and (rows >= 0).all() and (rows < table_rows).all())


@torch.no_grad()
def put_image_rows(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Write the rows in the file `path` into the table of an open_lm state dict, in place and in the table's dtype.

    Wrappers' prefixes (`module.`, …) do not matter. A table that is saved under two names is written under both. Raises
    CheckpointMismatch where the state dict has no such table, or one of another shape.
    """
    given = read_image_rows(path)
    tensors = strip_prefixes(state_dict.items(), Path("the state dict"))
    if given.table not in tensors:
        raise CheckpointMismatch(f"the state dict has no {given.table}, which {path} is for; give open_lm's state dict")
    table, width = tensors[given.table], given.values.shape[1]
    if list(table.shape) != [given.table_rows, width] or bool(
        (given.rows >= len(table)).any() or (given.rows < 0).any()
    ):
        raise CheckpointMismatch(
            f"{given.table} is {list(table.shape)}, {path} is for a table {[given.table_rows, width]}; "
            "widen the model with the layout that the rows were learned with"
        )
    others = [tensors[name] for name in TABLES.values() if name != given.table and name in tensors]
    same = [other for other in others if other.shape == table.shape and torch.equal(other, table)]
    for one in (table, *same):
        one[given.rows] = given.values.to(one)
