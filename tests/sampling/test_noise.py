import math

import pytest
import sampling_reference as reference
import torch
from torch import Tensor

from evalsvc.sampling import noise

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
    """Standard Gumbel noise for every code at one position of each prompt."""
    return noise.gumbel_of(keys[:, None] + noise.counters(position, codes, keys.device))


def test_gumbel_is_the_double_logarithm() -> None:
    keys = keys_of("a", "b")
    expected = [[-math.log(-math.log(u)) for u in row] for row in noise.uniform(keys, 3, 100).tolist()]
    torch.testing.assert_close(gumbel(keys, 3, 100), torch.tensor(expected, dtype=torch.float64))


def test_the_ends_of_the_uniform_distribution_are_finite() -> None:
    for bits in (0, 2**52 - 1):
        u = torch.tensor([bits], dtype=torch.float64).add_(0.5).mul_(2.0**-52)
        assert 0 < float(u) < 1
        assert math.isfinite(float(u.log_().neg_().log_().neg_()))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Vectorised logarithms may treat the last elements of a tensor apart."""
    prompts = [str(index) for index in range(7)]
    together = gumbel(keys_of(*prompts), 5, 37)
    for index, prompt in enumerate(prompts):
        assert torch.equal(gumbel(keys_of(prompt), 5, 37), together[index : index + 1])
    assert torch.equal(gumbel(keys_of(*prompts), 5, 20), together[:, :20])


def test_single_codes_have_the_noise_of_the_whole_row() -> None:
    keys, codes = keys_of("a", "b", "c"), torch.tensor([0, 36, 5])
    whole = gumbel(keys, 1_023, 37)
    assert torch.equal(noise.gumbel_of(keys + noise.counters(1_023, 37, CPU)[codes]), whole[torch.arange(3), codes])


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


def test_every_bit_is_fair() -> None:
    words = (cube(prompts=8) * 2.0**52).long().flatten()
    for bit in range(52):
        ones = int(((words >> bit) & 1).sum())
        assert abs(ones - len(words) / 2) < 4.5 * math.sqrt(len(words)) / 2, bit


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


def test_the_winner_of_each_position_is_uniform_and_independent() -> None:
    """What sampling uses of the noise: which code has the largest."""
    winners = cube(prompts=64, positions=256, codes=16).argmax(-1)
    counts = torch.bincount(winners.flatten(), minlength=16).tolist()
    assert reference.chi_square_p(counts, [winners.numel() / 16] * 16) > 1e-4
    pairs = winners[:, :-1] * 16 + winners[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=256).tolist()
    assert reference.chi_square_p(counts, [pairs.numel() / 256] * 256) > 1e-4
