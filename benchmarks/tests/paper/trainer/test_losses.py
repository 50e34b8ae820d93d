"""The training's loss: by the forward pass of evaluations, and in parts by kind of token."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_families import MODELS, ROWS, write_ours
from tiny_trainings import replay, tiny_recipe
from torch import Tensor
from torch.nn import functional
from trainer.losses import KINDS, Kinds, next_token_loss
from trainer.sequences import IGNORED, Batch, open_batches

from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout, parse_layout, text_only

pytestmark = pytest.mark.usefixtures("one_thread")


def random_batch(rows: int) -> Batch:
    """Three sequences, the second of which ends early."""
    ids = torch.randint(rows, (3, 12), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, dims=1)
    targets[1, 7:] = IGNORED
    return Batch(ids, targets, slice(2, 3))


def gradients(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_the_training_computes_what_evaluations_compute(tmp_path: Path, name: str) -> None:
    """Gradients flow through the only forward pass that there is, in every family."""
    model = write_ours(name, tmp_path)
    batch = random_batch(ROWS)
    with torch.inference_mode():
        logits = model(batch.ids)
        plain = functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
    model.requires_grad_(True)
    loss = next_token_loss(model, batch, Kinds(text_only(ROWS), "cpu")).total
    assert loss.item() == pytest.approx(float(plain), abs=1e-5)
    trained = gradients(model, loss)
    all_logits = model(batch.ids).flatten(0, 1)
    expected = gradients(model, functional.cross_entropy(all_logits, batch.targets.flatten(), ignore_index=IGNORED))
    assert trained.keys() == expected.keys() == {parameter for parameter, _ in model.named_parameters()}
    for parameter, gradient in expected.items():
        assert torch.allclose(trained[parameter], gradient, atol=1e-6), parameter


@pytest.mark.parametrize("name", ["llama-3", "gpt_neox", "gemma"])
def test_gradients_are_the_slope_of_the_loss(tmp_path: Path, name: str) -> None:
    """Along a random direction over all parameters. Weights are float64, and logits float32 as always."""
    model = write_ours(name, tmp_path).double().requires_grad_(True)
    batch, kinds = random_batch(ROWS), Kinds(text_only(ROWS), "cpu")
    slopes = gradients(model, next_token_loss(model, batch, kinds).total)
    generator = torch.Generator().manual_seed(1)
    direction = {key: torch.randn(slope.shape, generator=generator, dtype=slope.dtype) for key, slope in slopes.items()}

    def moved(distance: float) -> float:
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter += distance * direction[key]
            loss = next_token_loss(model, batch, kinds).total
            for key, parameter in model.named_parameters():
                parameter -= distance * direction[key]
        return loss.item()

    slope = sum(float((slopes[key] * direction[key]).sum()) for key in slopes)
    assert (moved(1e-4) - moved(-1e-4)) / 2e-4 == pytest.approx(slope, rel=5e-3)


@pytest.fixture
def layout(tmp_path: Path) -> VocabularyLayout:
    recipe = tiny_recipe(tmp_path)
    layout = parse_layout(str(recipe.layout))
    assert layout.rows is not None
    return layout.resolve(layout.rows)


def test_the_loss_is_the_mean_of_its_parts_weighted_by_their_tokens(tmp_path: Path, layout: VocabularyLayout) -> None:
    recipe = replace(tiny_recipe(tmp_path), replay=replay(tmp_path, 0.5), batch=8)
    from trainer.starting import starting_model

    model = starting_model(recipe).model.requires_grad_(True)
    batch = open_batches(recipe, layout).draw(0)
    loss = next_token_loss(model, batch, Kinds(layout, "cpu"))
    assert set(loss.parts) == set(KINDS)
    weighted = sum(part.loss * part.tokens for part in loss.parts.values()) / loss.tokens
    assert weighted == pytest.approx(loss.total.item(), abs=1e-6)
    assert loss.tokens == int((batch.targets != IGNORED).sum())
    assert loss.parts["image"].tokens == 4 * 4, "four images of four codes"
    assert loss.parts["replay"].tokens == 4 * 8, "four windows of eight predicted tokens"


def test_kinds_are_those_of_the_layout(layout: VocabularyLayout) -> None:
    targets = torch.tensor([[0, 19, 20, 27, 28, 34, IGNORED], [5, 5, 5, 5, 5, 5, 5]])
    batch = Batch(targets, targets, slice(1, 2))
    kinds = Kinds(layout, "cpu").of(batch)
    assert [KINDS[kind] for kind in kinds[0, :6]] == ["text", "text", "image", "image", "special", "special"]
    assert {KINDS[kind] for kind in kinds[1]} == {"replay"}
