"""Losses of tokens, and divergences of next-token distributions, against their definitions."""

import math

import pytest
import torch
from torch import Tensor

from evalsvc.metrics.token_loss import TokenLosses, chunk_rows, divergences, token_losses

BLOCKS = [
    (range(12), range(12, 20)),
    (range(12), range(15, 20)),
    (range(8, 20), range(8)),
    (range(5, 11), range(13, 19)),
    (range(12), None),
    (range(20), None),
]


def slow(logits: Tensor, targets: Tensor, text: range, image: range | None) -> TokenLosses:
    """The definition, on all logits at once, in float64."""
    log_probabilities = logits.double().log_softmax(1)
    nll = -log_probabilities.gather(1, targets[:, None])[:, 0]
    within = torch.full_like(nll, torch.nan)
    mass = torch.full_like(nll, -torch.inf)
    for block in (text, image):
        for row, target in enumerate(targets.tolist()):
            if block is not None and target in block:
                inside = logits[row, list(block)].double().log_softmax(0)
                within[row] = -inside[block.index(target)]
    if image is not None:
        mass = log_probabilities[:, list(image)].logsumexp(1)
    return TokenLosses(nll, within, mass)


@pytest.mark.parametrize(("text", "image"), BLOCKS)
@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_equals_the_definition(text: range, image: range | None, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 6, generator=generator)
    weight = 3 * torch.randn(20, 6, generator=generator)
    targets = torch.randint(20, (50,), generator=generator)
    found = token_losses(hidden, targets, lambda some: some @ weight.T, text, image, chunk)
    expected = slow(hidden @ weight.T, targets, text, image)
    torch.testing.assert_close(found.nll.double(), expected.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.within.double(), expected.within, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(found.image_log_mass.double(), expected.image_log_mass, rtol=1e-5, atol=1e-5)


def test_a_block_far_below_the_other_keeps_its_loss() -> None:
    """exp underflows at -104: with one maximum for all ids, the loss within the image ids would be infinite."""
    logits = torch.tensor([[0.0, 1.0, -300.0, -301.0]])
    found = token_losses(torch.zeros(1, 1), torch.tensor([3]), lambda some: logits, range(2), range(2, 4), 1)
    expected = slow(logits, torch.tensor([3]), range(2), range(2, 4))
    torch.testing.assert_close(found.within, expected.within.float())
    torch.testing.assert_close(found.nll, expected.nll.float())
    torch.testing.assert_close(found.image_log_mass, expected.image_log_mass.float())


def test_the_head_never_sees_more_than_a_chunk() -> None:
    """1,152 positions of 66,823 logits are 308 MB a sequence; a batch of them is what the memory cannot hold."""
    seen = []

    def head(some: Tensor) -> Tensor:
        seen.append(len(some))
        return some @ torch.ones(4, 3).T

    token_losses(torch.ones(10, 3), torch.zeros(10, dtype=torch.int64), head, range(4), None, 4)
    assert seen == [4, 4, 2]


def test_nan_comes_through() -> None:
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 2.0, 1.0]])
    found = token_losses(torch.zeros(2, 1), torch.tensor([0, 0]), lambda some: logits, range(2), range(2, 3), 2)
    assert found.nll.isnan().tolist() == [True, False]


def test_chunk_rows() -> None:
    assert chunk_rows(66_823) == 251
    assert chunk_rows(1 << 30) == 1


def logits(seed: int, rows: int, scale: float = 3.0, n: int = 40) -> Tensor:
    return scale * torch.randn(n, rows, generator=torch.Generator().manual_seed(seed))


def slow_kl(p: Tensor, q: Tensor) -> Tensor:
    """The definition, in float64; `p` and `q` are distributions over the same ids."""
    return (p * (p / q).log()).sum(1)


@pytest.mark.parametrize("text", [range(12), range(5, 17), range(20)])
def test_equals_the_definition_over_all_rows(text: range) -> None:
    base, other = logits(0, 20), logits(1, 20)
    found = divergences(base, other, text, text, same_rows=True)
    p, q = base.double().softmax(1), other.double().softmax(1)
    torch.testing.assert_close(found.kl, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    inside = slice(text.start, text.stop)
    p, q = base.double()[:, inside].softmax(1), other.double()[:, inside].softmax(1)
    torch.testing.assert_close(found.kl_within, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    assert found.agree.tolist() == (base.argmax(1) == other.argmax(1)).tolist()


def test_equals_the_definition_over_text_where_the_rows_differ() -> None:
    """A base before it was widened, behind a text block that begins elsewhere; it has two rows more of padding."""
    base, other = logits(2, 14), logits(3, 30)
    found = divergences(base, other, range(14), range(10, 22), same_rows=False)
    p, q = base.double()[:, :12].softmax(1), other.double().softmax(1)[:, 10:22]
    torch.testing.assert_close(found.kl, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.kl_within, slow_kl(p, q / q.sum(1, True)), rtol=1e-5, atol=1e-6)
    assert found.agree.tolist() == (base[:, :12].argmax(1) + 10 == other.argmax(1)).tolist()


def test_image_rows_that_the_base_never_expects_are_as_good_as_none() -> None:
    """Step 0 of a widened run and the model it was made from must be the same base."""
    text, other = logits(4, 12), logits(5, 20)
    widened = torch.cat((text, torch.full((40, 8), -1e4)), dim=1)
    one = divergences(text, other, range(12), range(12), same_rows=False)
    two = divergences(widened, other, range(12), range(12), same_rows=True)
    torch.testing.assert_close(one.kl, two.kl, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.kl_within, two.kl_within, rtol=1e-6, atol=1e-6)
    assert one.agree.tolist() == two.agree.tolist()


def test_a_model_is_not_away_from_itself() -> None:
    """Exactly: the base of a run is a point of its own curve."""
    same = logits(6, 20)
    found = divergences(same, same.clone(), range(12), range(12), same_rows=True)
    assert found.kl.tolist() == found.kl_within.tolist() == [0.0] * 40
    assert bool(found.agree.all())


def test_small_divergences_are_not_lost_in_rounding() -> None:
    """Neighbouring checkpoints: with logits changed by 0.01 in 50,000 rows KL is about 5e-5."""
    base = logits(7, 50_000, n=4)
    other = base + logits(8, 50_000, scale=0.01, n=4)
    found = divergences(base, other, range(50_000), range(50_000), same_rows=True)
    log_p, log_q = base.double().log_softmax(1), other.double().log_softmax(1)
    torch.testing.assert_close(found.kl, (log_p.exp() * (log_p - log_q)).sum(1), rtol=0, atol=1e-6)


def test_ids_that_are_impossible_to_the_base_weigh_nothing() -> None:
    """0 · (-inf) is NaN."""
    base = torch.tensor([[0.0, -torch.inf, 0.0]])
    found = divergences(base, torch.tensor([[0.0, 1.0, 0.0]]), range(3), range(3), same_rows=True)
    assert found.kl.item() == pytest.approx(math.log((2 + math.e) / 2))


def test_nan_comes_through_a_divergence() -> None:
    base = torch.zeros(2, 4)
    other = torch.tensor([[0.0, torch.nan, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    found = divergences(base, other, range(2), range(2), same_rows=True)
    assert found.kl.isnan().tolist() == found.kl_within.isnan().tolist() == [True, False]
