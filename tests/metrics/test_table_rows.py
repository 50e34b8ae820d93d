"""Rows of tables: cold rows, borders, nearest rows and shared directions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evalsvc.metrics import table_rows
from evalsvc.metrics.table_rows import (
    SHORTEST_BLOCK,
    RowStatistics,
    change_points,
    cold_rows,
    nearest_rows,
    row_statistics,
    subspace_overlap,
)
from evalsvc.miniature import ROOT
from evalsvc.models import load_model


def random_table(rows: int, width: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)


def pushed(rows: Tensor) -> Tensor:
    """What softmax and decay make of rows that are never a target: their beginnings fade, one direction stays."""
    return 0.1 * rows + 4 * torch.ones(rows.shape[1]) / math.sqrt(rows.shape[1])


def best_cut(features: Tensor) -> tuple[int, float]:
    """The slow reference: the place of the first cut, and its gain, from torch's own variances."""

    def cost(part: Tensor) -> float:
        return float((len(part) * part.var(0, correction=0).clamp_min(1e-6).log()).sum()) / 2

    cuts = range(SHORTEST_BLOCK, len(features) - SHORTEST_BLOCK + 1)
    gains = {cut: cost(features) - cost(features[:cut]) - cost(features[cut:]) for cut in cuts}
    row = max(gains, key=lambda cut: gains[cut])
    return row, gains[row]


def test_first_cut_is_that_of_the_slow_search() -> None:
    features = torch.cat((random_table(40, 2), random_table(60, 2, seed=1) + 2)).double()
    found = change_points(features)[0]
    row, gain = best_cut(features)
    assert (found.row, found.gain) == (row, pytest.approx(gain))


def test_blocks_of_other_mean_or_spread_are_cut_apart() -> None:
    """Special tokens are few, and a block may differ in nothing but how its norms scatter."""
    parts = [random_table(300, 2), 3 + random_table(7, 2, seed=1), 0.2 * random_table(200, 2, seed=2)]
    assert sorted(border.row for border in change_points(torch.cat(parts))) == [300, 307]


@pytest.mark.parametrize("seed", range(20))
def test_random_tables_have_neither_borders_nor_cold_rows(seed: int) -> None:
    """Evidence that is found in noise is worse than none."""
    found = row_statistics(random_table(500, seed=seed), random_table(500, seed=100 + seed))
    assert (found.cold, found.borders) == ((), ())


def test_cold_rows_are_those_that_were_only_pushed() -> None:
    table = random_table(400)
    cold = [3, 50, 51, 52, 399]
    table[cold] = pushed(table[cold])
    assert cold_rows(table) == cold
    few = random_table(400)
    few[[3, 50]] = pushed(few[[3, 50]])
    assert cold_rows(few) == [], "two rows that lie together are no sign"


def test_equal_rows_are_not_worth_any_cut() -> None:
    """New rows may be set to one vector: their variance is 0, and its logarithm would be infinite."""
    found = change_points(torch.cat((torch.ones(50, 2), torch.full((50, 2), 2.0))))
    assert [border.row for border in found] == [50]
    assert all(math.isfinite(border.gain) for border in found)


@pytest.mark.parametrize("run", ["pretrained", "random-init"])
def test_trained_run_shows_its_blocks(run: str) -> None:
    """Text to 511, image to 575, then special tokens; the first of a sequence and the pad are never targets."""
    found = statistics_of(ROOT / f"runs/{run}/checkpoints/epoch_5.pt")
    assert {512, 576} <= {border.row for border in found.borders}
    assert [row for row in found.cold if row >= 512] == [576, 582]
    before = statistics_of(ROOT / "runs/random-init/checkpoints/epoch_0.pt")
    assert (before.cold, before.borders) == ((), ()), "before training nothing is to be seen"


def statistics_of(path: Path) -> RowStatistics:
    model = load_model(path)
    return row_statistics(model.tok_embeddings.weight.detach(), model.output.weight.detach())


def rows(seed: int, count: int, width: int = 8, offset: float = 3.0) -> Tensor:
    """In a narrow cone, as embedding tables are."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + offset


def slow_cosines(queries: Tensor, table: Tensor, centred: bool) -> np.ndarray:
    one, other = queries.double().numpy(), table.double().numpy()
    if centred:
        one, other = one - one.mean(0), other - other.mean(0)
    return (one @ other.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("chunk", [1, 4 * 40 * 3, 1 << 20])
def test_equals_all_cosines_at_once(centred: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "CHUNK_BYTES", chunk)
    queries, table = rows(0, 17), rows(1, 40)
    expected = slow_cosines(queries, table, centred)
    found = nearest_rows(queries, table, 4, centred)
    order = np.argsort(-expected, axis=1)[:, :4]
    assert found.rows.tolist() == order.tolist()
    np.testing.assert_allclose(found.cosines.numpy(), np.take_along_axis(expected, order, 1), atol=2e-6)
    queries, table = queries.bfloat16(), table.bfloat16()
    wide = nearest_rows(queries.float(), table.float(), 3, centred)
    assert nearest_rows(queries, table, 3, centred).rows.tolist() == wide.rows.tolist(), "narrow dtypes are widened"


def test_centring_takes_the_cone_away() -> None:
    """In a cone every row is near to every other, and the nearest ones are those nearest to its middle."""
    queries, table = rows(2, 30, offset=20), rows(3, 50, offset=20)
    raw, centred = (nearest_rows(queries, table, 1, way) for way in (False, True))
    assert float(raw.cosines.min()) > 0.99
    assert float(centred.cosines.max()) < 0.99
    assert len(set(raw.rows.flatten().tolist())) < len(set(centred.rows.flatten().tolist()))


def test_rows_of_zeros_are_near_to_nothing() -> None:
    """Rows that were never trained are zero in some tables, and 0 / 0 would be nearest to everything."""
    table = rows(4, 10)
    table[3] = 0
    found = nearest_rows(-table, table, 10, centred=False)
    assert found.cosines.isfinite().all()
    assert found.rows[0, 0] == 3
    assert nearest_rows(table[3:4], table, 2, centred=False).cosines.tolist() == [[0, 0]]


def test_the_overlap_is_the_variance_within_the_leading_directions() -> None:
    generator = torch.Generator().manual_seed(7)
    spread = torch.tensor([5.0, 4.0, 3.0, 1.0, 1.0, 0.5])
    table = torch.randn(500, 6, generator=generator) * spread + 2
    queries = torch.randn(80, 6, generator=generator)
    found = subspace_overlap(queries, table)
    _, directions = np.linalg.eigh(np.cov(table.double().numpy().T, bias=True))
    assert found.directions == 2  # 25 of 52.25 is less than half, 41 is more
    offsets = queries.double().numpy() - queries.double().numpy().mean(0)
    expected = (offsets @ directions[:, -2:]) ** 2
    np.testing.assert_allclose(found.inside.numpy(), expected.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.whole.numpy(), (offsets**2).sum(1), rtol=1e-5)
    share = float(found.inside.sum() / found.whole.sum())
    assert share == pytest.approx(2 / 6, abs=0.1)
