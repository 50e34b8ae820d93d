"""The image decoder against diffusers' VQModel with the same weights: seconds an image, decoding and encoding.

diffusers runs as it comes and with channels last in memory, which is its best on a CPU. Sides take turns in one
process, one image at a time: on CPUs a batch is no faster. Before anything is timed, images and codes are compared.
The ceiling is what a direct 3x3 convolution manages here and now, given the operations of the network written plainly;
ours needs fewer.

    python benchmarks/decoding.py [--quick]

Prints a card (shapes, bytes, operations), a table, and as last line one JSON document; `ratios` are diffusers' time
over ours, above 1 when ours is faster.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import VQModel
from on_card.twins import build_movqgan
from side_by_side import interleaved, machine, medians, print_last_line, ratios, seconds
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from vq_model import build_vq_model

from evalsvc.decoders import ImageDecoder, pixel_error
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.movqgan import MoVQGAN

DIFFERENCE = 1e-4
"""Of pixels on [-1, 1] and beyond; random weights reach ±6."""
EQUAL_CODES = 0.998
"""The codes come from sums in another order, and two entries can be equally near."""
Side = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    config: Mapping[str, Any]
    side: int
    """Rows and columns of codes."""
    repetitions: int

    def codes(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.config["n_embed"], (1, self.side**2), generator=generator)

    def pixels(self) -> Tensor:
        side = self.side * 8
        return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _small() -> dict[str, Any]:
    config = REGISTERED["movqgan-67M"]
    return {**config, "n_embed": 256, "ddconfig": {**config["ddconfig"], "ch": 64, "num_res_blocks": 1}}


FULL = (
    Case("67M", REGISTERED["movqgan-67M"], side=32, repetitions=3),
    Case("270M", REGISTERED["movqgan-270M"], side=32, repetitions=2),
)
QUICK = (Case("small", _small(), side=4, repetitions=2),)


def build_ours(case: Case) -> ImageDecoder:
    """Random weights that keep the variance, as `load_decoder` lays them out on a CPU."""
    return build_movqgan(case.config).to(memory_format=torch.channels_last)


def their_decode(model: VQModel, codes: Tensor) -> Tensor:
    side = int(codes.shape[1] ** 0.5)
    entries = model.quantize.get_codebook_entry(codes.flatten(), (len(codes), side, side, 4))
    return model.decode(entries, force_not_quantize=True).sample


def their_encode(model: VQModel, pixels: Tensor) -> Tensor:
    return model.quantize(model.encode(pixels.to(model.dtype)).latents)[2][2].view(len(pixels), -1)


def sides(ours: ImageDecoder, theirs: VQModel, last: VQModel, direction: str) -> dict[str, Side]:
    if direction == "decode":
        return {
            "evalsvc": ours.decode,
            "diffusers": lambda codes: their_decode(theirs, codes),
            "diffusers, channels last": lambda codes: their_decode(last, codes),
        }
    return {"evalsvc": ours.encode, "diffusers": lambda pixels: their_encode(theirs, pixels)}


def operations(decoder: ImageDecoder, work: Callable[[ImageDecoder], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work(decoder)
    return int(counter.get_total_flops())


def plain_operations(case: Case, direction: str) -> int:
    """Of the network as it is written: what is restructured only runs without gradients and on a real device."""
    with torch.device("meta"), torch.enable_grad():
        decoder = MoVQGAN.from_config(case.config)
        if direction == "decode":
            codes = case.codes().to("meta")
            return operations(decoder, lambda made: made.render(made.lookup(codes, (case.side, case.side))))
        pixels = case.pixels().to("meta")
        return operations(decoder, lambda made: made.latents(pixels))


def convolution_rate(dtype: torch.dtype) -> float:
    """Operations a second of a direct 3x3 convolution of 256 channels on 128x128 pixels."""
    x = torch.randn(1, 256, 128, 128, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    fastest = min(seconds(lambda: functional.conv2d(x, weight, padding=1)) for _ in range(6))
    return 2 * 9 * 256**2 * 128**2 / fastest


def check_equal(direction: str, results: Mapping[str, Tensor]) -> float:
    """Largest difference of pixels, or share of equal codes."""
    ours = results["evalsvc"]
    if direction == "encode":
        share = min(float((ours == theirs).double().mean()) for name, theirs in results.items() if name != "evalsvc")
        if share < EQUAL_CODES:
            raise SystemExit(f"only {share:.2%} of the codes are equal on both sides")
        return share
    difference = max(float((ours - theirs).abs().max()) for theirs in results.values())
    if difference > DIFFERENCE:
        raise SystemExit(f"images differ by up to {difference:.1e}, more than {DIFFERENCE:.0e}")
    return difference


@dataclass(frozen=True)
class Row:
    name: str
    times: Mapping[str, list[float]]
    plain: int
    executed: int
    equality: float
    rate: float


def measure(case: Case, direction: str, sides: Mapping[str, Side], ours: ImageDecoder, rate: float) -> Row:
    given = case.codes() if direction == "decode" else case.pixels()
    # Also the warm-up.
    executed = operations(ours, lambda made: sides["evalsvc"](given))
    equality = check_equal(direction, {name: side(given) for name, side in sides.items()})
    times = interleaved({name: lambda side=side: side(given) for name, side in sides.items()}, case.repetitions)
    return Row(f"{case.name} {direction}", times, plain_operations(case, direction), executed, equality, rate)


def measure_bf16(case: Case, ours: ImageDecoder, theirs: VQModel, rate: float) -> tuple[Row, dict[str, Any]]:
    """Decoding in bf16, which is not equal: how much it differs is measured instead."""
    codes = case.codes()
    half, their_half = copy.deepcopy(ours).to(torch.bfloat16), copy.deepcopy(theirs).to(torch.bfloat16)
    executed = operations(half, lambda made: made.decode(codes))
    their_decode(their_half, codes)
    named = {
        "evalsvc": lambda: half.decode(codes),
        "diffusers, channels last": lambda: their_decode(their_half, codes),
    }
    error = pixel_error(ours, half, case.codes(seed=1))
    times = interleaved(named, case.repetitions)
    row = Row(f"{case.name} decode bf16", times, plain_operations(case, "decode"), executed, error.mean, rate)
    return row, error.to_json()


@torch.no_grad()
def rows(case: Case, rates: Mapping[torch.dtype, float], errors: dict[str, Any]) -> Iterator[Row]:
    ours = build_ours(case)
    theirs = build_vq_model(case.config, ours.state_dict())
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    print_card(case, ours)
    for direction in ("decode", "encode"):
        yield measure(case, direction, sides(ours, theirs, last, direction), ours, rates[torch.float32])
    row, errors[case.name] = measure_bf16(case, ours, last, rates[torch.bfloat16])
    yield row


def print_card(case: Case, ours: ImageDecoder) -> None:
    weights = sum(parameter.nbytes for parameter in ours.parameters())
    grid = (case.side, case.side)
    print(f"decoder   {case.name}, {weights / 1e9:.3f} GB in fp32, {case.side}x{case.side} codes, {ours.digest[:12]}")
    print(f"memory    {ours.decode_bytes(grid) / 1e6:.0f} MB beside the weights to decode an image\n", flush=True)


def print_row(row: Row) -> None:
    print(f"{row.name:38}{'seconds':>10}{'of ceiling':>12}{'ratio':>8}")
    found = {"evalsvc": 1.0, **ratios(row.times, "evalsvc")}
    for name, middle in medians(row.times).items():
        print(f"  {name:36}{middle:10.2f}{row.plain / middle / row.rate:12.0%}{found[name]:8.2f}")
    print(f"  operations {row.plain / 1e9:.0f} G written plainly, {row.executed / 1e9:.0f} G executed by evalsvc")
    print(f"  equality {row.equality:.3g}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small decoder: shows that the benchmark works")
    cases = QUICK if parser.parse_args().quick else FULL
    print(f"machine   {machine()}")
    rates = {dtype: convolution_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(f"ceiling   {rates[torch.float32] / 1e9:.0f} GFLOP/s fp32, {rates[torch.bfloat16] / 1e9:.0f} bf16\n")
    found: dict[str, float] = {}
    equality: dict[str, float] = {}
    errors: dict[str, Any] = {}
    for case in cases:
        for row in rows(case, rates, errors):
            print_row(row)
            equality[row.name] = row.equality
            found |= {f"{row.name}, {peer}": ratio for peer, ratio in ratios(row.times, "evalsvc").items()}
    print_last_line("decoding", found, equality=equality, bf16_error_in_grey_levels=errors)


if __name__ == "__main__":
    main()
