"""Rows of tables: cold, near, and along shared directions; and CLIP's loss, against loops, torch and scipy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test as scipy_permutation_test
from torch import Tensor
from torch.nn import functional

from evalsvc.metrics import table_rows
from evalsvc.metrics.contrastive import (
    MAX_SCALE,
    clip_loss,
    excess_similarity,
    fit_scale,
    hits_at,
    mean_off_diagonal,
    permutation_test,
)
from evalsvc.metrics.table_rows import (
    SHORTEST_BLOCK,
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


def test_first_cut_is_that_of_the_slow_search() -> None:
    features = torch.cat((random_table(40, 2), random_table(60, 2, seed=1) + 2)).double()

    def cost(part: Tensor) -> float:
        return float((len(part) * part.var(0, correction=0).clamp_min(1e-6).log()).sum()) / 2

    cuts = range(SHORTEST_BLOCK, len(features) - SHORTEST_BLOCK + 1)
    gains = {cut: cost(features) - cost(features[:cut]) - cost(features[cut:]) for cut in cuts}
    row = max(gains, key=lambda cut: gains[cut])
    found = change_points(features)[0]
    assert (found.row, found.gain) == (row, pytest.approx(gains[row]))
    # New rows may be set to one vector: their variance is 0, and its logarithm would be infinite.
    [border] = change_points(torch.cat((torch.ones(50, 2), torch.full((50, 2), 2.0))))
    assert border.row == 50
    assert math.isfinite(border.gain)


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


@pytest.mark.parametrize("run", ["pretrained", "random-init"])
def test_trained_run_shows_its_blocks(run: str) -> None:
    """Text to 511, image to 575, then special tokens; the first of a sequence and the pad are never targets."""
    models = [
        load_model(ROOT / f"runs/{name}.pt")
        for name in (f"{run}/checkpoints/epoch_5", "random-init/checkpoints/epoch_0")
    ]
    found, before = (
        row_statistics(model.tok_embeddings.weight.detach(), model.output.weight.detach()) for model in models
    )
    assert {512, 576} <= {border.row for border in found.borders}
    assert [row for row in found.cold if row >= 512] == [576, 582]
    assert (before.cold, before.borders) == ((), ()), "before training nothing is to be seen"


def rows(seed: int, count: int, width: int = 8, offset: float = 3.0) -> Tensor:
    """In a narrow cone, as embedding tables are."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("chunk", [1, 4 * 40 * 3, 1 << 20])
def test_equals_all_cosines_at_once(centred: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "CHUNK_BYTES", chunk)
    queries, table = rows(0, 17), rows(1, 40)
    one, other = (side.double().numpy() - centred * side.double().numpy().mean(0) for side in (queries, table))
    expected = (one @ other.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)
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
    table = rows(4, 10)
    table[3] = 0  # as rows that were never trained are in some tables: 0 / 0 would be nearest to everything
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


def cosines(seed: int, batch: int = 12, signal: float = 0.5) -> Tensor:
    """Of images and texts that have something in common with their own."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    images = signal * texts + torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    return functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T


@pytest.mark.parametrize("scale", [0.0, 1.0, 14.3, 100.0])
def test_the_loss_is_clips(scale: float) -> None:
    similarity = cosines(0)
    targets = torch.arange(12)
    both = [functional.cross_entropy(scale * way, targets) for way in (similarity, similarity.T)]
    assert float(clip_loss(similarity, scale).mean()) == pytest.approx(float(sum(both)) / 2, rel=1e-12)


@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_its_parts_are_what_a_pair_does_to_it_as_itself_and_as_a_candidate(scale: float) -> None:
    """Derivatives by how often each pair comes in the sample, of the loss less that of one which knows nothing.

    An error from each pair's own loss alone leaves out that a sample's other pairs are the candidates.
    """
    similarity = cosines(1)
    weights = torch.ones(12, dtype=torch.float64, requires_grad=True)
    shares = weights / weights.sum()
    ways = [((scale * way).exp() @ shares).log() for way in (similarity, similarity.T)]
    (shares * ((ways[0] + ways[1]) / 2 - scale * similarity.diagonal())).sum().backward()
    parts = clip_loss(similarity, scale)
    torch.testing.assert_close((parts - parts.mean()) / 12, weights.grad)


def test_parts_of_the_cosines_are_their_slopes_too() -> None:
    similarity = cosines(2, batch=400)
    diagonal, rest = similarity.diagonal().mean(), (similarity.sum() - similarity.diagonal().sum()) / (400 * 399)
    excess, off = excess_similarity(similarity), mean_off_diagonal(similarity)
    assert float(excess.mean()) == pytest.approx(float(diagonal - rest), rel=1e-10)
    assert float(off.mean()) == pytest.approx(float(rest), rel=1e-10)

    def without(pair: int) -> tuple[float, float]:
        kept = [row for row in range(400) if row != pair]
        left = similarity[kept][:, kept]
        return float(excess_similarity(left).mean()), float(mean_off_diagonal(left).mean())

    for pair in range(0, 400, 57):
        for parts, value in zip((excess, off), without(pair), strict=True):
            jackknife = 400 * float(parts.mean()) - 399 * value
            assert jackknife == pytest.approx(float(parts[pair]), abs=0.01)


@pytest.mark.parametrize("signal", [0.2, 0.6, 1.5])
def test_the_fitted_scale_is_the_best(signal: float) -> None:
    some = [cosines(seed, 20, signal) for seed in (3, 4)]

    def loss(scale: float) -> float:
        return sum(float(clip_loss(one, scale).mean()) for one in some)

    best = fit_scale(some)
    grid = min(np.linspace(0, MAX_SCALE, 2001), key=loss)
    assert best == pytest.approx(grid, abs=0.05)
    assert loss(best) <= loss(float(grid)) + 1e-12
    # Where pairs are no more alike than others, the loss of another scale than zero would be above ln B.
    assert fit_scale([-cosines(5)]) == fit_scale([torch.full((4, 4), 0.9, dtype=torch.float64)]) == 0
    assert fit_scale([torch.eye(3, dtype=torch.float64)]) == MAX_SCALE
    assert clip_loss(-cosines(5), 0.0).tolist() == pytest.approx([math.log(12)] * 12)


def slow_hits(scores: Tensor, right: Tensor, k: int, shuffles: int = 4000) -> list[float]:
    """How often one of the first k is right when candidates of equal scores are shuffled."""
    generator = np.random.default_rng(0)
    found = np.zeros(len(scores))
    for _ in range(shuffles):
        order = np.lexsort((generator.random(scores.shape), -scores.numpy()))[:, :k]
        found += np.take_along_axis(right.numpy(), order, 1).any(1)
    return list(found / shuffles)


@pytest.mark.parametrize("k", [1, 3, 7, 30])
def test_hits_count_ties_as_shuffling_them_would(k: int) -> None:
    """A table that gives everything one score is no better than chance, whichever way a sort puts equal ones."""
    generator = torch.Generator().manual_seed(6)
    scores = torch.randint(4, (15, 9), generator=generator).double()
    right = torch.rand(15, 9, generator=generator) < 0.25
    right[:, 0] |= ~right.any(1)
    assert hits_at(scores, right, k).tolist() == pytest.approx(slow_hits(scores, right, k), abs=0.03)
    similarity = cosines(7, batch=9)
    alone = right[:9].gather(1, similarity.topk(min(k, 9)).indices).any(1).double()
    assert hits_at(similarity, right[:9], k).tolist() == alone.tolist(), "without ties a hit is a hit"


def test_the_permutation_test_is_scipys() -> None:
    """With every permutation of six texts, as scipy goes through them; and with thousands at random."""
    similarity = cosines(8, batch=6, signal=0.3)

    def mean_of(order: Sequence[int]) -> float:
        return float(similarity[torch.arange(6), torch.tensor(order).long()].mean())

    exact = scipy_permutation_test(
        (np.arange(6),), mean_of, permutation_type="pairings", n_resamples=np.inf, alternative="greater"
    )
    found = permutation_test([similarity], 4000, seed=0)
    assert 0.02 < exact.pvalue < 0.98
    error = math.sqrt(exact.pvalue * (1 - exact.pvalue) / 4000)
    assert found.p == pytest.approx(exact.pvalue, abs=3 * error + 1 / 4001)
    assert found.mean == pytest.approx(float(similarity.mean()), abs=4 * found.deviation / math.sqrt(4000))
    assert found.deviation == pytest.approx(np.std(exact.null_distribution), rel=0.1)


def test_a_permutation_counts_itself() -> None:
    """p is never zero, the same seed gives the same, and pairs that beat every permutation get 1 / (1 + N)."""
    similarity = torch.eye(40, dtype=torch.float64)
    assert permutation_test([similarity], 99, seed=1).p == 1 / 100
    assert permutation_test([-similarity], 99, seed=1).p == 1
    weak = [cosines(9, 20, 0.1), cosines(10, 20, 0.1)]
    assert permutation_test(weak, 99, seed=1) == permutation_test(weak, 99, seed=1)
    # Sums in another order differ in the last bit, and half of all permutations that change nothing seemed lower.
    assert permutation_test([cosines(11, 30)[:, :1].expand(30, 30).clone()], 199, seed=0).p == 1
