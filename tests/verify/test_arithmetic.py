"""Products in float32, and noise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from evalsvc.verify import arithmetic
from evalsvc.verify.agreement import Finding
from evalsvc.verify.arithmetic import verify_noise, verify_products
from evalsvc.verify.golden_files import Golden

Wrong = Callable[[list[Finding]], list[str]]


def test_products_in_float32_agree(one_thread: None, wrong: Wrong) -> None:
    assert wrong(list(verify_products(Golden("cpu")))) == []


def test_products_in_fewer_bits_differ(one_thread: None, monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    """A library that computes float32 products in bfloat16 must not pass."""

    @contextmanager
    def half(device: torch.device) -> Iterator[None]:
        with torch.autocast(device.type, torch.bfloat16):
            yield

    monkeypatch.setattr(arithmetic, "full_precision", half)
    assert wrong(list(verify_products(Golden("cpu")))) == ["float32 matrix product", "float32 convolution"]


def test_the_tolerance_lies_far_below_tf32() -> None:
    """TF32 keeps 10 bits of a factor: a card that rounds so differs by more than ten times the tolerance."""
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(256, arithmetic.INNER, generator=random) for _ in range(2))
    rounded = [(factor.view(torch.int32) & ~0x1FFF).view(torch.float32) for factor in (first, second)]
    difference = (rounded[0] @ rounded[1].T - first @ second.T).abs().max()
    assert float(difference) > 10 * arithmetic.FULL


def test_the_last_bit_of_the_noise_counts(
    copied: Golden, nudge: Callable[[str, str, float], None], wrong: Wrong
) -> None:
    assert wrong(list(verify_noise(copied))) == []
    nudge("sampling", "uniform", 2**-53)
    assert wrong(list(verify_noise(copied))) == ["noise of 128 codes"]
