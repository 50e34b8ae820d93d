"""From logits to codes, and the noise that decides."""

import math

import pytest
import sampling_reference as reference
import torch
from torch import Tensor

from evalsvc.models import compiled
from evalsvc.sampling import SamplingParams, noise
from evalsvc.sampling.logits import draw, keep_top_k, keep_top_p, race, warp
from evalsvc.sampling.noise import counters

INF = float("inf")


def random_logits(rows: int = 8, codes: int = 50) -> torch.Tensor:
    return 2 * torch.randn(rows, codes, generator=torch.Generator().manual_seed(0))


def keys_of(*prompt_ids: str, seed: int = 0) -> Tensor:
    return noise.stream_keys(seed, prompt_ids, torch.device("cpu"))


def row_keys(rows: int, seed: int = 0) -> Tensor:
    """Of prompts that are named as rows of a list are."""
    return keys_of(*map(str, range(rows)), seed=seed)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=5),
        SamplingParams(top_k=500),
        SamplingParams(top_p=0.6),
        SamplingParams(top_p=0.01),
        SamplingParams(temperature=1.3, top_k=20, top_p=0.9),
    ],
    ids=str,
)
def test_warped_logits_have_the_defined_distribution(params: SamplingParams) -> None:
    logits = random_logits()
    expected = [reference.probabilities(row, None, params) for row in logits.tolist()]
    torch.testing.assert_close(warp(logits, params).softmax(-1), torch.tensor(expected))


def test_equal_logits_share_their_fate() -> None:
    """In half precision many logits are equal; which of them survive must not depend on how a device sorts."""
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    assert keep_top_k(logits, 2).tolist() == [[1, 2, 1, -INF, 1]]
    assert keep_top_p(logits, 0.5).tolist() == [[1, 2, 1, -INF, 1]]
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()  # the sum reaches top_p
    assert [int(keep_top_p(logits, p).isfinite().sum()) for p in (1e-9, 0.49, 0.51, 0.74, 0.76)] == [1, 1, 2, 2, 4]


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_a_nucleus_is_found_without_sorting_all_codes(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat rows have a nucleus larger than what is tried first, peaked ones a smaller; a batch may have both."""
    logits = spread * random_logits(rows=6, codes=3_000)
    logits[0] *= 4
    expected = keep_top_p(logits, 0.9)
    monkeypatch.setattr("evalsvc.sampling.logits.NUCLEUS", 100)
    assert torch.equal(keep_top_p(logits, 0.9), expected)


@pytest.mark.parametrize("value", [float("nan"), INF])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.5),
        SamplingParams(guidance_scale=2),
    ],
    ids=str,
)
def test_what_is_not_finite_shows_in_its_own_row(value: float, params: SamplingParams) -> None:
    logits = random_logits(rows=8)
    logits[2, 7] = value
    keys = row_keys(4 if params.guided else 8)
    codes, finite = draw(logits, params, keys, 0)
    assert finite.tolist() == [row != 2 for row in range(len(keys))]
    assert bool(((codes >= 0) & (codes < 50)).all())


@pytest.mark.usefixtures("compiler")
def test_compiling_the_noise_moves_its_last_bit_at_most() -> None:
    """torch 2.13 compiled an `arange` whose products wrap around to other numbers."""
    logits = random_logits(rows=16, codes=3_000)
    keys = row_keys(16)
    with torch.inference_mode():
        for position in (0, 1, 1_023):
            counts = counters(position, 3_000, keys.device)
            (found, codes), (expected, same) = compiled(race)(logits, keys, counts), race(logits, keys, counts)
            assert torch.equal(codes, same)
            torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


def test_near_logits_draw_mostly_equal_codes() -> None:
    """Two neighbouring checkpoints: the noise couples their draws, which an inverse distribution function would not."""
    logits = random_logits(rows=1, codes=1_000).expand(2_000, -1)
    moved = logits + 0.01 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    before, after = (draw(table, SamplingParams(), row_keys(2_000), 0)[0] for table in (logits, moved))
    assert float((before != after).double().mean()) < 0.015


# noise


def test_uniform_equals_the_reference_and_published_splitmix64_bit_for_bit() -> None:
    """The first outputs of the published generator for the state 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = noise.uniform(torch.tensor([1234567]), 0, 4)
    assert found.tolist() == [[((bits >> 12) + 0.5) / 2**52 for bits in published]]
    prompts = ["0", "1", "139:77034", "é", ""]
    for seed in (0, 1, 2**63 - 1):
        for position in (0, 1, 1_023, 2**30):
            found = noise.uniform(keys_of(*prompts, seed=seed), position, 37)
            expected = [[reference.uniform(seed, prompt, position, code) for code in range(37)] for prompt in prompts]
            assert found.tolist() == expected


def gumbel(keys: Tensor, position: int, codes: int) -> Tensor:  # [B, codes] float64
    return noise.gumbel_of(keys[:, None] + noise.counters(position, codes, keys.device))


def test_gumbel_is_the_double_logarithm_and_a_row_does_not_depend_on_its_neighbours() -> None:
    """Vectorised logarithms may treat the last elements of a tensor apart."""
    keys = row_keys(7)
    together = gumbel(keys, 5, 37)
    expected = [[-math.log(-math.log(u)) for u in row] for row in noise.uniform(keys, 5, 37).tolist()]
    torch.testing.assert_close(together, torch.tensor(expected, dtype=torch.float64))
    for row in range(7):
        assert torch.equal(gumbel(keys[row : row + 1], 5, 37), together[row : row + 1])
    assert torch.equal(gumbel(keys, 5, 20), together[:, :20])


def cube(seed: int = 0) -> Tensor:  # [prompts, positions, codes]
    return torch.stack([noise.uniform(row_keys(24, seed), position, 1_024) for position in range(24)], dim=1)


def test_uniformity() -> None:
    values = cube().flatten()
    counts = torch.histc(values, bins=1_024, min=0, max=1).tolist()
    assert reference.chi_square_p(counts, [len(values) / 1_024] * 1_024) > 1e-4
    gap = values.sort().values - (torch.arange(len(values)) + 0.5) / len(values)
    assert float(gap.abs().max()) * math.sqrt(len(values)) < 2.23  # Kolmogorov–Smirnov at 1e-4


@pytest.mark.parametrize("axis", ["prompt", "position", "code", "seed"])
def test_neighbours_on_every_axis_are_independent(axis: str) -> None:
    values = cube()
    first, second = values, cube(seed=1)
    if axis != "seed":
        dim = ("prompt", "position", "code").index(axis)
        first, second = (values.narrow(dim, start, values.shape[dim] - 1) for start in (0, 1))
    first, second = first.flatten(), second.flatten()
    correlation = float(torch.corrcoef(torch.stack((first, second)))[0, 1])
    assert abs(correlation) * math.sqrt(len(first)) < 4.5
    cells = (first * 32).long() * 32 + (second * 32).long()
    counts = torch.bincount(cells, minlength=1_024).tolist()
    assert reference.chi_square_p(counts, [len(first) / 1_024] * 1_024) > 1e-4
