"""Parts of a model that are trained: all others do not move by a bit."""

from pathlib import Path

import pytest
import torch
from tiny_trainings import tiny_recipe
from trainer.parts import NUMBERS, tune
from trainer.recipe import Tuned
from trainer.starting import starting_model
from trainer.training import Training

pytestmark = pytest.mark.usefixtures("one_thread")

TABLES = {"tok_embeddings.weight", "output.weight"}
NORMS = {
    f"{norm}.{kind}"
    for norm in ("norm", *(f"layers.{layer}.{part}_norm" for layer in range(2) for part in ("attention", "ffn")))
    for kind in ("weight", "bias")
}
FEED_FORWARD = {f"layers.{layer}.feed_forward.{part}.weight" for layer in range(2) for part in ("w12", "w3")}
FIRST = {f"layers.0.{part}.weight" for part in ("attention.in_proj", "attention.out_proj", "feed_forward.w12")}
EXPECTED: dict[str, set[str]] = {
    "1": TABLES,
    "2": TABLES | NORMS,
    "3": TABLES | NORMS | FIRST | {"layers.0.feed_forward.w3.weight"},
    "4": TABLES | NORMS | FEED_FORWARD,
}


@pytest.mark.parametrize("number", EXPECTED)
def test_parts_are_those_of_figure_6(tmp_path: Path, number: str) -> None:
    model = starting_model(tiny_recipe(tmp_path)).model
    assert set(tune(model, NUMBERS[number])) == EXPECTED[number]
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == EXPECTED[number]


@pytest.mark.parametrize("tuned", NUMBERS.values())
def test_frozen_parts_do_not_move_and_tuned_ones_do(tmp_path: Path, tuned: Tuned) -> None:
    training = Training(tiny_recipe(tmp_path / "data", tuned=tuned, ema=[0.5]), tmp_path, "cpu")
    before = {name: parameter.detach().clone() for name, parameter in training.start.model.named_parameters()}
    for _ in range(3):
        training.advance()
    after = dict(training.start.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(training.tuned)
    assert set(training.averages.by_decay[0.5]) == moved
    if tuned == "all":
        assert moved == set(before)
