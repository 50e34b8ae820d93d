"""Nearest rows and shared directions, against numpy on everything at once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evalsvc.metrics import table_rows
from evalsvc.metrics.table_rows import nearest_rows, subspace_overlap


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


def test_narrow_dtypes_are_widened_first() -> None:
    queries, table = rows(5, 6).bfloat16(), rows(6, 9).bfloat16()
    found, expected = nearest_rows(queries, table, 3, True), nearest_rows(queries.float(), table.float(), 3, True)
    assert found.rows.tolist() == expected.rows.tolist()


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
