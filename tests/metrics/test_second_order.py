import numpy as np
import pytest

from evalsvc.metrics.second_order import LEAST, pair_variance, without_surplus


def test_pair_variance_equals_centring_entry_by_entry() -> None:
    """The U-centred matrix, as printed."""
    random = np.random.default_rng(0)
    gram = random.normal(size=(11, 11))
    gram += gram.T + np.add.outer(*[random.normal(size=11)] * 2)
    np.fill_diagonal(gram, 0)
    n, rows = 11, gram.sum(1)
    total, squares = 0.0, 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                centred = gram[i, j] - rows[i] / (n - 2) - rows[j] / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
                total += centred**2
                squares += gram[i, j] ** 2
    assert pair_variance(rows, squares) == pytest.approx(total / (n * (n - 3)), rel=1e-12)


def test_three_items_have_no_pair_variance() -> None:
    assert pair_variance(np.zeros(3), 1.0) == 0


def test_shares_lose_the_surplus_and_keep_their_mean() -> None:
    shares = np.random.default_rng(0).normal(3, 2, 500)
    variance = shares.var(ddof=1) / 500
    for surplus in (0.0, 0.3 * variance, 0.9 * variance):
        found = without_surplus(shares, surplus)
        assert found.mean() == pytest.approx(shares.mean(), rel=1e-12)
        assert found.var(ddof=1) / 500 == pytest.approx(max(variance - surplus, LEAST * variance), rel=1e-9)
    assert (without_surplus(np.ones(3), 1.0) == 1).all()
    assert (without_surplus(np.ones(1), 1.0) == 1).all()
