"""Training image rows: what is learned, what stays, and that it is the same again."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from trainer.aligned_rows import AlignedRows, AlignmentRecipe, align, put_rows, write_rows

from evalsvc.errors import CheckpointMismatch, NonFinite, NotACheckpoint
from evalsvc.tasks.alignment.pair_measures import Tables, TokenPairs, similarities

TRAINING = AlignmentRecipe(steps=60, batch=48, rate=0.05, seed=0)


def tables(scale: float = 1.0) -> Tables:
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(count, 16, generator=generator) for count in (20, 12))
    return Tables(scale * text, image, known=18)


def pairs(count: int, seed: int = 0) -> TokenPairs:
    """Code c stands for the word c; code 11 never comes."""
    generator = torch.Generator().manual_seed(seed)
    words = [torch.randint(11, (3,), generator=generator).tolist() for _ in range(count)]
    return TokenPairs(tuple(range(count)), tuple(words), tuple(words))


def train(
    own: Tables | None = None, training: AlignmentRecipe = TRAINING, some: TokenPairs | None = None
) -> AlignedRows:
    return align(own or tables(), some or pairs(150), training)


def test_what_captions_say_is_learned_from_pairs() -> None:
    """Held out, so it is no memory of the pairs."""
    found, other = train(), pairs(60, seed=9)
    assert found.losses[0] > 3
    assert sum(found.losses[-5:]) / 5 < 1
    assert len(found.losses) == len(found.scales) - 1 == 60
    one = similarities(found.tables, other)
    hits = one.right.gather(1, one.pairs.argmax(1, keepdim=True))
    assert float(hits.double().mean()) > 0.8
    before = similarities(tables(), other)
    assert float(before.right.gather(1, before.pairs.argmax(1, keepdim=True)).double().mean()) < 0.2


def slow_rows(own: Tables, some: TokenPairs, training: AlignmentRecipe) -> tuple[Tensor, float, list[float]]:
    """By hand: gradients of the loss written as a loop over pairs, Adam as in its paper; full batches."""
    unit = own.text[:18].square().mean().sqrt()
    rows, log_scale = own.image[:11] / unit, torch.tensor(math.log(1 / 0.07))
    moments = [[torch.zeros_like(one), torch.zeros_like(one)] for one in (rows, log_scale)]
    texts = functional.normalize(torch.stack([own.text[list(text)].mean(0) for text in some.texts]), dim=1)
    losses = []
    for step in range(1, training.steps + 1):
        rows, log_scale = rows.detach().requires_grad_(), log_scale.detach().requires_grad_()
        images = functional.normalize(torch.stack([rows[list(codes)].mean(0) for codes in some.codes]), dim=1)
        logits = log_scale.exp() * images @ texts.T
        loss = sum(
            (logits[i].logsumexp(0) + logits[:, i].logsumexp(0)) / 2 - logits[i, i] for i in range(len(some))
        ) / len(some)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, (rows, log_scale))
        moved = []
        for value, gradient, (first, second) in zip((rows, log_scale), gradients, moments, strict=True):
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            moved.append((value - training.rate * change).detach())
        rows, log_scale = moved[0], moved[1].clamp(max=math.log(100))
    return rows, float(log_scale.exp()), losses


def test_it_is_adam_on_clips_loss() -> None:
    some, training = pairs(24), AlignmentRecipe(steps=12, rate=0.05)
    # Of all pairs there is one batch, in whichever order.
    found, (rows, scale, losses) = train(some=some, training=training), slow_rows(tables(), some, training)
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert found.scales[-1] == pytest.approx(scale, rel=1e-4)
    factor = float(tables().text[:18].square().sum(1).mean().sqrt() / rows.square().sum(1).mean().sqrt())
    torch.testing.assert_close(found.tables.image[:11], rows * factor, rtol=1e-3, atol=1e-3)


def test_nothing_else_moves_and_rows_are_as_long_as_text() -> None:
    own = tables(scale=0.02)
    text, image = own.text.clone(), own.image.clone()
    found = train(own)
    assert torch.equal(own.text, text)
    assert torch.equal(found.tables.text, text)
    assert torch.equal(own.image, image)
    assert torch.equal(found.tables.image[11], image[11])  # it is in no pair
    lengths = [float(rows.square().sum(1).mean().sqrt()) for rows in (found.tables.image[:11], text[:18])]
    assert lengths[0] == pytest.approx(lengths[1])


def test_the_size_of_the_table_does_not_matter() -> None:
    """A rate for rows of length one would not move rows of length 50, and blow up rows of 0.02."""
    own = [replace(tables(scale), image=tables().image * scale) for scale in (0.02, 50.0)]
    small, large = (train(one, replace(TRAINING, steps=15)) for one in own)
    assert small.losses == pytest.approx(large.losses, rel=1e-3)


def test_the_same_seed_gives_the_same_rows() -> None:
    short = replace(TRAINING, steps=15)
    one, two, other = train(training=short), train(training=short), train(training=replace(short, seed=1))
    assert torch.equal(one.tables.image, two.tables.image)
    assert one.losses == two.losses != other.losses


def test_a_loss_that_is_no_number_names_its_step() -> None:
    own = tables()
    own.image[3] = torch.inf
    with pytest.raises(NonFinite, match="loss is nan at step 0"):
        train(own)


def test_rows_are_put_where_the_file_says(tmp_path: Path) -> None:
    """A code's row is where the layout's map puts it; all other rows stay."""
    values, path = torch.arange(12.0).view(3, 4), tmp_path / "rows.safetensors"
    write_rows(path, values, [9, 7, 8])
    table = torch.randn(12, 4)
    before = table.clone()
    put_rows(table, path)
    assert torch.equal(table[[9, 7, 8]], values)
    others = [0, 1, 2, 3, 4, 5, 6, 10, 11]
    assert torch.equal(table[others], before[others])


@pytest.mark.parametrize("shape", [(9, 4), (12, 5)])
def test_a_table_that_they_do_not_fit_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "rows.safetensors"
    write_rows(path, torch.zeros(3, 4), [9, 7, 8])
    with pytest.raises(CheckpointMismatch, match="give rows that were aligned for this layout"):
        put_rows(torch.zeros(shape), path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    save_file({"tok_embeddings.weight": torch.zeros(3, 4)}, path)
    with pytest.raises(CheckpointMismatch, match=r"holds .*tok_embeddings"):
        put_rows(torch.zeros(12, 4), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(NotACheckpoint, match="is cut off"):
        put_rows(torch.zeros(12, 4), path)
