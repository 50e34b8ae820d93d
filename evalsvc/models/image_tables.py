"""Input rows and head of image ids that are apart from those of text, as in Janus.

The last rows of the model's two tables are those of image ids. An MLP computes the input rows from narrow embeddings,
once, when the model is loaded. The head has a layer of its own before its rows, and biases.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.errors import InvalidRequest
from evalsvc.models.packing import product
from evalsvc.spec.model_config import ImageTables


class ImageRows(nn.Module):
    """Parameters of the input rows."""

    def __init__(self, tables: ImageTables, hidden_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(tables.rows, tables.width))
        widths = (tables.width, *[hidden_dim] * tables.depth)
        self.layers = nn.ModuleList(nn.Linear(width, outputs) for width, outputs in pairwise(widths))

    def forward(self) -> Tensor:  # [rows, D]
        first, *others = self.layers
        rows: Tensor = first(self.table)
        for layer in others:
            rows = layer(functional.gelu(rows))
        return rows


class ImageHead(nn.Module):
    """Parameters of the head, except for the rows of its output, with the logits of text and image ids."""

    def __init__(self, tables: ImageTables, hidden_dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_dim, hidden_dim)
        self.bias = nn.Parameter(torch.zeros(tables.rows))

    def forward(self, hidden: Tensor) -> Tensor:  # [N, D] → [N, D]
        return functional.gelu(product(hidden, self.inner.weight, self.inner.bias))

    def logits(self, hidden: Tensor, table: Tensor, rows: Tensor | slice | None) -> Tensor:  # [N, D], [V, D] → [N, R]
        """Return the logits of all ids or of `rows`, each by its own head."""
        first = len(table) - len(self.bias)
        if isinstance(rows, Tensor):
            weight, bias = table[rows], self.bias[(rows - first).clamp(min=0)]
            return torch.where(rows < first, product(hidden, weight, None), product(self(hidden), weight, bias))
        start, stop, _ = slice(0, len(table)).indices(len(table)) if rows is None else rows.indices(len(table))
        parts = []
        if start < first:
            parts.append(product(hidden, table[start : min(stop, first)], None))
        if stop > first:
            image = slice(max(start, first), stop)
            bias = self.bias[image.start - first : image.stop - first]
            parts.append(product(self(hidden), table[image], bias))
        return torch.cat(parts, dim=-1)

    def biases_of(self, image_ids: range | tuple[int, ...], vocab_size: int) -> Tensor:  # [codes]
        """Return the biases of rows to draw from. Raises InvalidRequest if a row is one of text."""
        first = vocab_size - len(self.bias)
        if min(image_ids) < first or max(image_ids) >= vocab_size:
            raise InvalidRequest(
                f"the layout's image rows begin at {min(image_ids):,}, and this model has a head of its own for the "
                f"{len(self.bias):,} rows from {first:,} on; give these rows as the layout's image block"
            )
        return self.bias[torch.tensor(image_ids, device=self.bias.device) - first]
