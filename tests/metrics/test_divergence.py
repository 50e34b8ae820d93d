import math

import pytest
import torch
from torch import Tensor

from evalsvc.metrics.token_loss import divergences


def logits(seed: int, rows: int, scale: float = 3.0, n: int = 40) -> Tensor:
    return scale * torch.randn(n, rows, generator=torch.Generator().manual_seed(seed))


def slow_kl(p: Tensor, q: Tensor) -> Tensor:
    """The definition, position by position in float64; `p` and `q` are distributions over the same ids."""
    return torch.tensor(
        [
            sum(a * math.log(a / b) for a, b in zip(row_p, row_q, strict=True))
            for row_p, row_q in zip(p.tolist(), q.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("text", [range(12), range(5, 17), range(20)])
def test_equals_the_definition_over_all_rows(text: range) -> None:
    base, other = logits(0, 20), logits(1, 20)
    found = divergences(base, other, text, text, same_rows=True)
    p, q = base.double().softmax(1), other.double().softmax(1)
    torch.testing.assert_close(found.kl, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    inside = slice(text.start, text.stop)
    p, q = base.double()[:, inside].softmax(1), other.double()[:, inside].softmax(1)
    torch.testing.assert_close(found.kl_within, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    assert found.agree.tolist() == [int(a) == int(b) for a, b in zip(base.argmax(1), other.argmax(1), strict=True)]


def test_equals_the_definition_over_text_where_the_rows_differ() -> None:
    """A base before it was widened, behind a text block that begins elsewhere; it has two rows more of padding."""
    base, other = logits(2, 14), logits(3, 30)
    found = divergences(base, other, range(14), range(10, 22), same_rows=False)
    p, q = base.double()[:, :12].softmax(1), other.double().softmax(1)[:, 10:22]
    torch.testing.assert_close(found.kl, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.kl_within, slow_kl(p, q / q.sum(1, True)), rtol=1e-5, atol=1e-6)
    expected = [int(a) + 10 == int(b) for a, b in zip(base[:, :12].argmax(1), other.argmax(1), strict=True)]
    assert found.agree.tolist() == expected


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


def test_nan_comes_through() -> None:
    base = torch.zeros(2, 4)
    other = torch.tensor([[0.0, torch.nan, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    found = divergences(base, other, range(2), range(2), same_rows=True)
    assert found.kl.isnan().tolist() == found.kl_within.isnan().tolist() == [True, False]
