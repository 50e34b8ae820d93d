import pytest
import torch
from torch import Tensor

from evalsvc.metrics.token_loss import TokenLosses, chunk_rows, token_losses

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
