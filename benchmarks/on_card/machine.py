"""What card this is, its rates, and that float32 is float32 on it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from side_by_side import machine
from torch.nn import functional

from evalsvc.precision import full_precision
from on_card.kit import GIB, Kit, Row, at_most, figure, holds
from on_card.rates import bandwidth, product_rate

ASKED = {
    "driver_version": "driver",
    "clocks.sm": "clock_sm_mhz",
    "clocks.max.sm": "clock_sm_most_mhz",
    "clocks.mem": "clock_memory_mhz",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
}
"""What nvidia-smi is asked, and under which name the answer is kept."""
PATIENCE = 20.0
"""Seconds for nvidia-smi."""
FLOAT32_ERROR = 5e-6
"""Of a product of 512 terms or a convolution of 576 in float32, relative; with TF32's 10 bits it is above 1e-4."""


@dataclass(frozen=True)
class Card:
    """What figures are of."""

    name: str
    torch: str
    cuda: str | None
    python: str
    memory_gib: float
    cards: int
    processor: str
    settings: dict[str, str]
    """What nvidia-smi says of driver, clocks, power and temperature; empty without it."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def read_card(device: torch.device) -> Card:
    """Return what `device` is, with the clocks of now."""
    on_card = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_card else None
    return Card(
        name=properties.name if properties else "CPU",
        torch=str(torch.__version__),
        cuda=torch.version.cuda if on_card else None,
        python=platform.python_version(),
        memory_gib=round(properties.total_memory / GIB, 1) if properties else 0.0,
        cards=torch.cuda.device_count() if on_card else 0,
        processor=machine(),
        settings=_ask_driver(device) if on_card else {},
    )


def _ask_driver(device: torch.device) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        lines = done.stdout.splitlines()
        answers = lines[min(device.index or 0, len(lines) - 1)].split(",")
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return {name: answer.strip() for name, answer in zip(ASKED.values(), answers, strict=False)}


def run(kit: Kit) -> Iterator[Row]:
    """Assert that TF32 is off, then measure what figures are held against."""
    yield from _exact(kit)
    yield figure("copy, bytes read and written" if kit.on_card else "read", bandwidth(kit.device) / 1e9, "GB/s")
    for dtype in (torch.bfloat16, torch.float32):
        rate = product_rate(kit.device, dtype) / 1e12
        yield figure(f"matrix product in {str(dtype).removeprefix('torch.')}", rate, "TFLOP/s")


def _exact(kit: Kit) -> Iterator[Row]:
    """Compare a product and a convolution in float32 with float64, where TF32 would show."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    image, kernel = torch.randn(2, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    with full_precision(kit.device), torch.inference_mode():
        product = left.to(kit.device) @ kit.touched(right).to(kit.device)
        convolved = functional.conv2d(image.to(kit.device), kernel.to(kit.device))
    yield at_most("product in float32 against float64", _error(product, left.double() @ right.double()), FLOAT32_ERROR)
    exact = functional.conv2d(image.double(), kernel.double())
    yield at_most("convolution in float32 against float64", _error(convolved, exact), FLOAT32_ERROR)
    if kit.on_card:
        yield holds("cuDNN's attention is off", not torch.backends.cuda.cudnn_sdp_enabled())


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the L2 norm of the difference over that of `exact`."""
    return float((found.double().cpu() - exact).norm() / exact.norm())
