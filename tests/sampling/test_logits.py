"""From logits to codes, and the noise that decides."""

import math

import pytest
import sampling_reference as reference
import torch
from torch import Tensor

from evalsvc.models import compiled
from evalsvc.sampling import SamplingParams, noise
from evalsvc.sampling.logits import draw, guide, keep_top_k, keep_top_p, race, warp
from evalsvc.sampling.noise import counters, stream_keys

INF = float("inf")


def random_logits(rows: int = 8, codes: int = 50) -> torch.Tensor:
    return 2 * torch.randn(rows, codes, generator=torch.Generator().manual_seed(0))


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


def test_guidance() -> None:
    conditional, unconditional = random_logits().chunk(2)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional)


def test_equal_logits_share_their_fate() -> None:
    """In half precision many logits are equal; which of them survive must not depend on how a device sorts."""
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    assert keep_top_k(logits, 2).tolist() == [[1, 2, 1, -INF, 1]]
    assert keep_top_p(logits, 0.5).tolist() == [[1, 2, 1, -INF, 1]]


def test_the_nucleus_ends_where_the_sum_reaches_top_p() -> None:
    logits = torch.tensor([[math.log(0.5), math.log(0.25), math.log(0.125), math.log(0.125)]], dtype=torch.float64)
    assert [int(keep_top_p(logits, p).isfinite().sum()) for p in (1e-9, 0.49, 0.51, 0.74, 0.76)] == [1, 1, 2, 2, 4]


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_a_nucleus_is_found_without_sorting_all_codes(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat rows have a nucleus larger than what is tried first, peaked ones a smaller; a batch may have both."""
    logits = spread * random_logits(rows=6, codes=3_000)
    logits[0] *= 4
    expected = keep_top_p(logits, 0.9)
    monkeypatch.setattr("evalsvc.sampling.logits.NUCLEUS", 100)
    assert torch.equal(keep_top_p(logits, 0.9), expected)


def test_temperature_0_takes_the_likeliest_code() -> None:
    logits = random_logits()
    keys = stream_keys(0, [str(row) for row in range(8)], torch.device("cpu"))
    codes, finite = draw(logits, SamplingParams(temperature=0), keys, 0)
    assert torch.equal(codes, logits.argmax(-1))
    assert bool(finite.all())


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
    keys = stream_keys(0, [str(row) for row in range(4 if params.guided else 8)], torch.device("cpu"))
    codes, finite = draw(logits, params, keys, 0)
    assert finite.tolist() == [row != 2 for row in range(len(keys))]
    assert bool(((codes >= 0) & (codes < 50)).all())


@pytest.mark.usefixtures("compiler")
def test_compiling_the_noise_moves_its_last_bit_at_most() -> None:
    """torch 2.13 compiled an `arange` whose products wrap around to other numbers."""
    logits = random_logits(rows=16, codes=3_000)
    keys = stream_keys(0, [str(row) for row in range(16)], torch.device("cpu"))
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
    keys = stream_keys(0, [str(row) for row in range(2_000)], torch.device("cpu"))
    before, after = (draw(table, SamplingParams(), keys, 0)[0] for table in (logits, moved))
    assert float((before != after).double().mean()) < 0.015


# noise


CPU = torch.device("cpu")


def keys_of(*prompt_ids: str, seed: int = 0) -> Tensor:
    return noise.stream_keys(seed, prompt_ids, CPU)


def test_uniform_equals_the_reference_bit_for_bit() -> None:
    prompts = ["0", "1", "139:77034", "é", ""]
    for seed in (0, 1, 2**63 - 1):
        for position in (0, 1, 1_023, 2**30):
            found = noise.uniform(keys_of(*prompts, seed=seed), position, 37)
            expected = [[reference.uniform(seed, prompt, position, code) for code in range(37)] for prompt in prompts]
            assert found.tolist() == expected


def test_a_stream_is_published_splitmix64() -> None:
    """The first outputs of the published generator for the state 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = noise.uniform(torch.tensor([1234567]), 0, 4)
    assert found.tolist() == [[((bits >> 12) + 0.5) / 2**52 for bits in published]]


def gumbel(keys: Tensor, position: int, codes: int) -> Tensor:  # [B, codes] float64
    return noise.gumbel_of(keys[:, None] + noise.counters(position, codes, keys.device))


def test_gumbel_is_the_double_logarithm_and_a_row_does_not_depend_on_its_neighbours() -> None:
    """Vectorised logarithms may treat the last elements of a tensor apart."""
    prompts = [str(index) for index in range(7)]
    together = gumbel(keys_of(*prompts), 5, 37)
    expected = [[-math.log(-math.log(u)) for u in row] for row in noise.uniform(keys_of(*prompts), 5, 37).tolist()]
    torch.testing.assert_close(together, torch.tensor(expected, dtype=torch.float64))
    for index, prompt in enumerate(prompts):
        assert torch.equal(gumbel(keys_of(prompt), 5, 37), together[index : index + 1])
    assert torch.equal(gumbel(keys_of(*prompts), 5, 20), together[:, :20])


def cube(seed: int = 0, prompts: int = 24, positions: int = 24, codes: int = 1_024) -> Tensor:
    """[prompts, positions, codes] of uniform noise, for prompts named as rows of a list are."""
    keys = keys_of(*[str(index) for index in range(prompts)], seed=seed)
    return torch.stack([noise.uniform(keys, position, codes) for position in range(positions)], dim=1)


def test_uniformity() -> None:
    values = cube().flatten()
    counts = torch.histc(values, bins=1_024, min=0, max=1).tolist()
    assert reference.chi_square_p(counts, [len(values) / 1_024] * 1_024) > 1e-4
    gap = values.sort().values - (torch.arange(len(values)) + 0.5) / len(values)
    assert float(gap.abs().max()) * math.sqrt(len(values)) < 2.23  # Kolmogorov–Smirnov at 1e-4


@pytest.mark.parametrize("axis", ["prompt", "position", "code", "seed"])
def test_neighbours_on_every_axis_are_independent(axis: str) -> None:
    values = cube()
    if axis == "seed":
        first, second = values, cube(seed=1)
    else:
        dim = ("prompt", "position", "code").index(axis)
        size = values.shape[dim] - 1
        first, second = values.narrow(dim, 0, size), values.narrow(dim, 1, size)
    first, second = first.flatten(), second.flatten()
    correlation = float(torch.corrcoef(torch.stack((first, second)))[0, 1])
    assert abs(correlation) * math.sqrt(len(first)) < 4.5
    cells = (first * 32).long() * 32 + (second * 32).long()
    counts = torch.bincount(cells, minlength=1_024).tolist()
    assert reference.chi_square_p(counts, [len(first) / 1_024] * 1_024) > 1e-4
