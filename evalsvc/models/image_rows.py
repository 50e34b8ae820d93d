"""Rows of image tokens as a file, with which a run may begin instead of random rows.

safetensors with the tensors `values` float32 [K, D], one row per code; `rows` int64 [K], the table row of each code;
and `trained` uint8 [K], 0 where a code never occurred in training and keeps the row of the checkpoint before.
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
from evalsvc.families.family import Family
from evalsvc.spec import catalog

TABLES = {"input": "tok_embeddings.weight", "output": "output.weight"}
"""Names of the tables in the Transformer."""


@dataclass(frozen=True)
class ImageRows:
    values: Tensor
    """Rows in the order of the codes, [K, D] float32."""
    rows: Tensor
    """Row of the table for each code, [K] int64."""
    trained: Tensor
    """Whether each code was trained, [K] bool."""
    table: str
    """Name of the table in a state dict."""
    table_rows: int
    """Number of rows of the whole table."""
    about: Mapping[str, str]
    """Origin of the rows: layout, temperature, choice of the rows' length, data, checkpoint."""

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        tensors = {"values": self.values, "rows": self.rows, "trained": self.trained.to(torch.uint8)}
        metadata = {"table": self.table, "table_rows": str(self.table_rows), **self.about}
        return _in_order(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata))


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with a sorted header: the library writes metadata in a different order each time."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def read_image_rows(path: str | Path) -> ImageRows:
    """Read a file of `ImageRows.to_bytes`.

    Raises:
        CheckpointMismatch: the file does not hold image rows.
        CheckpointError: as `read_weights`.
    """
    path = Path(path)
    weights = read_weights(path)
    tensors, about = weights.tensors, dict(weights.metadata)
    count = len(tensors["values"]) if "values" in tensors and tensors["values"].dim() == 2 else -1
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    table, table_rows = about.pop("table", None), str(about.pop("table_rows", ""))
    is_complete = set(tensors) == {"values", "rows", "trained"} and shapes["rows"] == shapes["trained"] == [count]
    if (
        not is_complete
        or table not in TABLES.values()
        or not table_rows.isdecimal()
        or not _are_rows(tensors, int(table_rows))
    ):
        raise CheckpointMismatch(
            f"{path} holds {shapes} and the table {table!r}; image rows are values [K, D], rows [K] and trained [K], "
            "as the task `alignment` writes them"
        )
    shown = {key: str(value) for key, value in about.items()}
    return ImageRows(
        tensors["values"].float(), tensors["rows"].long(), tensors["trained"].bool(), str(table), int(table_rows), shown
    )


def _are_rows(tensors: Mapping[str, Tensor], table_rows: int) -> bool:
    """Return whether all values are finite and all rows are in the table."""
    rows = tensors["rows"]
    return bool(tensors["values"].isfinite().all() and (rows >= 0).all() and (rows < table_rows).all())


def _tables(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tables of a state dict by the Transformer's names, whatever its family calls them."""
    families: list[Family] = [catalog.load("families", name) for name in catalog.names("families")]
    names = {family.embedding: TABLES["input"] for family in families}
    names |= {family.head: TABLES["output"] for family in families}
    return {names[name]: tensor for name, tensor in tensors.items() if name in names}


@torch.no_grad()
def put_image_rows(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Write the rows in the file `path` into the table of a state dict, in place and in the table's dtype.

    The state dict has the names of any family. Wrappers' prefixes (`module.`, …) are ignored. A table that is saved
    under two names is written under both. Raises CheckpointMismatch where the state dict has no such table, or a table
    of another shape.
    """
    given = read_image_rows(path)
    tensors = strip_prefixes(state_dict.items(), Path("the state dict"))
    tables = _tables(tensors)
    if given.table not in tables:
        raise CheckpointMismatch(
            f"the state dict has no {given.table}, the table of {path}; give the state dict of the whole model"
        )
    table, width = tables[given.table], given.values.shape[1]
    if list(table.shape) != [given.table_rows, width] or bool(
        (given.rows >= len(table)).any() or (given.rows < 0).any()
    ):
        raise CheckpointMismatch(
            f"{given.table} is {list(table.shape)}, {path} is for a table {[given.table_rows, width]}; "
            "widen the model with the layout that the rows were learned with"
        )
    others = [other for name, other in tables.items() if name != given.table]
    same = [other for other in others if other.shape == table.shape and torch.equal(other, table)]
    for copy in (table, *same):
        copy[given.rows] = given.values.to(copy)
