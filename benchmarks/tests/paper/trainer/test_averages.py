"""Moving averages of the weights."""

import pytest
import torch
from trainer.averages import Averages


def test_averages_follow_their_formula() -> None:
    """Against the formula in float64, one step after the other."""
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(5, 3, generator=generator), "b": torch.randn(4, generator=generator)}
    decays = (0.5, 0.9, 0.9999)
    averages = Averages(decays, weights)
    expected = {decay: {name: weight.double() for name, weight in weights.items()} for decay in decays}
    for _ in range(50):
        for name in weights:
            weights[name] += torch.randn(weights[name].shape, generator=generator) / 10
            for decay in decays:
                expected[decay][name] = decay * expected[decay][name] + (1 - decay) * weights[name].double()
        averages.update(weights)
    for decay in decays:
        for name, value in expected[decay].items():
            assert torch.allclose(averages.by_decay[decay][name].double(), value, atol=1e-6, rtol=0)


def test_the_start_is_not_shared_with_the_model() -> None:
    weights = {"w": torch.zeros(3)}
    averages = Averages((0.9,), weights)
    weights["w"] += 1
    assert not averages.by_decay[0.9]["w"].any()
    averages.update(weights)
    assert averages.by_decay[0.9]["w"].tolist() == pytest.approx([0.1] * 3)


def test_weights_that_do_not_move_have_equal_averages() -> None:
    """To the bit, after any number of steps."""
    weights = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    averages = Averages((0.3, 0.999), weights)
    for _ in range(20):
        averages.update(weights)
    assert all(torch.equal(tensors["w"], weights["w"]) for tensors in averages.by_decay.values())


def test_averages_of_half_precision_are_float32() -> None:
    averages = Averages((0.9,), {"w": torch.ones(2, dtype=torch.bfloat16)})
    assert averages.by_decay[0.9]["w"].dtype == torch.float32
