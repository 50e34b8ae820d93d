from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evalsvc.precision import TF32Conv2d, allow_tf32, full_precision, use_full_float32

CPU = torch.device("cpu")
BACKENDS = torch.backends
SWITCHES = (
    BACKENDS.cudnn.conv,  # type: ignore[attr-defined]
    BACKENDS.cuda.matmul,
    BACKENDS.mkldnn.conv,  # type: ignore[attr-defined]
    BACKENDS.mkldnn.matmul,  # type: ignore[attr-defined]
)


@pytest.fixture(autouse=True)
def _lower_precision() -> Iterator[None]:
    """A process that allows less, by the old names and by the new ones."""
    use_full_float32()  # releases of torch that warn of the old names do so once, and are silenced there
    torch.set_float32_matmul_precision("high")
    BACKENDS.cudnn.allow_tf32 = True
    for switch in SWITCHES:
        switch.fp32_precision = "tf32" if switch in SWITCHES[:2] else "bf16"
    BACKENDS.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    BACKENDS.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    BACKENDS.cuda.enable_cudnn_sdp(True)
    yield
    use_full_float32()


def precisions() -> set[str]:
    return {switch.fp32_precision for switch in SWITCHES}


def test_a_thread_that_ends_first_does_not_lower_the_precision_of_another() -> None:
    """Decoding and features run in threads of their own; the first to end once brought TF32 back for the other."""
    first, second = full_precision(CPU), full_precision(CPU)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert other.submit(precisions).result() == {"ieee"}
        other.submit(second.__exit__, None, None, None).result()
    assert precisions() == {"ieee"}


def test_the_old_names_can_be_read() -> None:
    """torch raises where old and new names disagree, and its compiler reads the old ones."""
    for _ in range(2):
        with full_precision(CPU):
            assert not BACKENDS.cudnn.allow_tf32
            assert not BACKENDS.cuda.matmul.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"


def test_half_precision_adds_in_float32_and_autocast_is_off_inside() -> None:
    use_full_float32()
    assert not BACKENDS.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert not BACKENDS.cuda.matmul.allow_fp16_reduced_precision_reduction
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(CPU):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


class Convolutions(TorchDispatchMode):
    """Records whether each convolution may be multiplied in TF32."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._convolution.default:
            self.allowed.append(args[-1])
        return func(*args, **(kwargs or {}))


def test_one_network_uses_tf32_and_no_switch_of_the_process() -> None:
    use_full_float32()
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, stride=2, bias=False), nn.Linear(8, 2))
    lower, x = deepcopy(exact), torch.randn(2, 3, 16, 16)
    allow_tf32(lower)
    with Convolutions() as calls, torch.no_grad(), full_precision(CPU):
        found = lower(x)
        assert calls.allowed == [True, True]
        assert precisions() == {"ieee"}
        torch.testing.assert_close(exact(x), found, rtol=0, atol=1e-6)
    assert [type(part) for part in lower] == [TF32Conv2d, TF32Conv2d, nn.Linear]
    assert lower.state_dict().keys() == exact.state_dict().keys()
