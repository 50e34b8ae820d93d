import math

import pytest
import sampling_reference as reference
import torch

from evalsvc.models import compiled
from evalsvc.sampling import SamplingParams
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
