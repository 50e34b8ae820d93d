"""How tolerances of a model follow from its own rounding."""

import pytest
import torch
from miniature_run import pretrained

from evalsvc.models import Transformer, load_model
from evalsvc.verify.rounding import FACTOR, LEAST, Rounding, measure_rounding, on_cpu

SEQUENCES = [list(range(1, 60)), list(range(100, 120))]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(pretrained(5).path)


def test_tolerances_are_those_of_float32(model: Transformer) -> None:
    """Far below what a wrong weight or a product in bfloat16 does, and above zero."""
    found = measure_rounding(model, SEQUENCES)
    assert 1e-7 < found.logit < 1e-4
    assert 1e-7 < found.loss < 1e-4
    assert found.logit_tolerance == FACTOR * found.logit
    assert Rounding(0.0, 0.0).loss_tolerance == LEAST


def test_a_model_in_less_than_float32_does_not_widen_its_tolerance(model: Transformer) -> None:
    """What is measured is float32 on the CPU, whatever the model computes in."""
    narrow = load_model(pretrained(5).path, dtype="bfloat16")
    assert measure_rounding(narrow, SEQUENCES).logit < 2 * measure_rounding(model, SEQUENCES).logit


def test_the_copy_turns_by_the_same_frequencies(model: Transformer) -> None:
    """Those that a file saves, and those that training rounded."""
    turned = on_cpu(model, "float32")
    turned.use_frequencies(torch.linspace(0.1, 1, 12))
    assert on_cpu(turned, "float64").saved_inv_freq == turned.saved_inv_freq
    rounded = load_model(pretrained(5).path, rotary_inv_freq_dtype="bfloat16")
    assert on_cpu(rounded, "float64").positions.inv_freq.equal(rounded.positions.inv_freq)
