"""Tiles of the vocabulary against all logits at once."""

import pytest
import torch
from torch import Tensor

from evalsvc.scoring import head
from evalsvc.scoring.head import target_columns
from evalsvc.spec.layout import ImageBlock, TextBlock, VocabularyLayout

ROWS = 30
LAYOUT = VocabularyLayout(
    text=TextBlock(offset=8, size=12), image=ImageBlock(offset=0, size=6), special={"doc": 22, "pad": 23}
).resolve(ROWS)


def slow_columns(logits: Tensor, ids: Tensor) -> Tensor:
    """The definition, in float64."""
    text = torch.full_like(logits, -torch.inf)
    text[:, 8:20] = logits[:, 8:20]
    columns = []
    for some in (logits, text):
        columns += [some.log_softmax(1).gather(1, ids[:, None])[:, 0], some.argmax(1) != ids]
    return torch.stack([column.double() for column in (*columns, logits.softmax(1)[:, :6].sum(1))], dim=1)


@pytest.mark.parametrize("tile", [1, 5, 1000])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_equals_all_logits_at_once(tile: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers, so that many are equally likely: across tiles too the first counts as the likeliest."""
    monkeypatch.setattr(head, "LEAST_COLUMNS", tile)
    monkeypatch.setattr(head, "CPU_TILE_BYTES", 0)
    torch.manual_seed(0)
    logits = (spread * torch.randn(50, ROWS)).round()
    at = torch.arange(50).repeat_interleave(ROWS)
    ids = torch.arange(ROWS).repeat(50)
    seen: list[int] = []

    def of_rows(hidden: Tensor, rows: slice) -> Tensor:
        assert len(hidden) == 50
        seen.extend(range(ROWS)[rows])
        return logits[:, rows].clone()

    found = target_columns(torch.zeros(50, 4), of_rows, at, ids, LAYOUT)
    expected = slow_columns(logits.double()[at], ids)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert seen == list(range(ROWS)), "every id is computed once"
    assert (found[:, 1] == 0).sum() == (found[:, 3] == 0).sum() == 50
