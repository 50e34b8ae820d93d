"""MoVQGAN's decoder in images a second, against diffusers' VQModel with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from side_by_side import interleaved, medians, ratios
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from evalsvc.decoders import ImageDecoder, pixel_error
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.precision import full_precision
from on_card.kit import Kit, Row, at_most, figure, goal, left_out
from on_card.rates import product_rate
from on_card.twins import build_movqgan

if TYPE_CHECKING:
    from diffusers import VQModel

OURS, THEIRS = "evalsvc", "diffusers"
ERROR = 1e-4
"""Of pixels in float32, relative L2; TF32's 10 bits give 1e-3."""
MAPS = 12
"""Maps of the first level's size and width that the peer may hold at once, about."""


@dataclass(frozen=True)
class Case:
    name: str
    config: Mapping[str, Any]
    side: int
    """Rows and columns of codes."""
    batches: tuple[int, ...]
    varied: int
    """The batch in which memory formats are compared."""
    turns: int = 3

    @property
    def grid(self) -> tuple[int, int]:
        return self.side, self.side

    def codes(self, batch: int) -> Tensor:  # [B, N] on the CPU
        generator = torch.Generator().manual_seed(batch)
        return torch.randint(0, self.config["n_embed"], (batch, self.side**2), generator=generator)

    def operations(self) -> int:
        """Count those of one image, of the network as it is written: not what restructured convolutions need."""
        with torch.device("meta"):
            decoder = MoVQGAN.from_config(self.config)
        codes = torch.empty(1, self.side**2, dtype=torch.int64, device="meta")
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            decoder.render(decoder.lookup(codes, self.grid))
        return int(counter.get_total_flops())

    def peer_bytes(self, batch: int, dtype: torch.dtype) -> int:
        pixels = (self.side * 8) ** 2
        return MAPS * batch * int(self.config["ddconfig"]["ch"]) * pixels * dtype.itemsize


FULL = (
    Case("67M", REGISTERED["movqgan-67M"], side=32, batches=(1, 8, 32), varied=8),
    Case("270M", REGISTERED["movqgan-270M"], side=32, batches=(1, 8, 32), varied=8, turns=2),
)
NARROW = {**REGISTERED["movqgan-67M"]["ddconfig"], "ch": 32, "num_res_blocks": 1}
SMALL = (
    Case(
        "tiny",
        {**REGISTERED["movqgan-67M"], "n_embed": 256, "ddconfig": NARROW},
        side=4,
        batches=(1, 2),
        varied=2,
        turns=1,
    ),
)

Side = Callable[[Tensor], Tensor]


def run(kit: Kit) -> Iterator[Row]:
    """Compare pixels with the CPU's and the peer's, then time batches, memory formats and the restructured layers."""
    for case in SMALL if kit.small else FULL:
        plain = build_movqgan(case.config)
        ours = copy.deepcopy(plain).to(kit.device)
        kit.touched(ours.decoder)
        # A quarter of an image: all of it takes a CPU most of a minute.
        part = replace(case, side=case.side // 2)
        codes = part.codes(1)
        error = _error(ours.decode(codes, part.grid), plain.decode(codes, part.grid))
        yield at_most(f"{case.name} float32: pixels against the CPU's, relative", error, ERROR)
        half = copy.deepcopy(ours).to(torch.bfloat16)
        moved = pixel_error(ours, half, case.codes(2).to(kit.device), case.grid)
        yield figure(f"{case.name} bfloat16: mean difference of pixels", moved.mean, "grey levels", **moved.to_json())
        theirs = _their_model(case, plain)
        del plain
        if isinstance(theirs, str):
            yield left_out(f"{case.name}: against {THEIRS}", theirs)
            theirs = None
        else:
            theirs = theirs.to(kit.device)
            error = _error(_their_side(theirs)(codes.to(kit.device)), ours.decode(codes, part.grid))
            yield at_most(f"{case.name} float32: pixels against diffusers', relative", error, ERROR)
        operations = case.operations()
        for dtype, decoder in ((torch.float32, ours), (torch.bfloat16, half)):
            peer = None if theirs is None else theirs.to(dtype)
            yield from _time_batches(kit, case, decoder, peer, operations)
            yield from _time_formats(kit, case, decoder)
            kit.release()
        yield from _memory(kit, case, ours)
        del ours, half, decoder, theirs, peer
        kit.release()


def _their_model(case: Case, plain: ImageDecoder) -> VQModel | str:
    """Return the peer on the CPU, or why there is none."""
    try:
        from vq_model import build_vq_model
    except (ImportError, RuntimeError) as error:  # the latter where diffusers lacks a package of its own
        return str(error).partition("\n")[0]
    return build_vq_model(case.config, plain.state_dict())


def _their_side(model: VQModel) -> Side:
    from decoding import their_decode

    def decode(codes: Tensor) -> Tensor:
        with full_precision(codes.device), torch.inference_mode():
            return their_decode(model, codes)

    return decode


def _time_batches(kit: Kit, case: Case, decoder: ImageDecoder, peer: VQModel | None, operations: int) -> Iterator[Row]:
    dtype = next(decoder.parameters()).dtype
    for batch in case.batches:
        name = f"{case.name} {_short(dtype)}, batch {batch}"
        codes = case.codes(batch).to(kit.device)
        sides: dict[str, Side] = {OURS: lambda codes: decoder.decode(codes, case.grid)}
        if peer is not None and kit.free_bytes() < case.peer_bytes(batch, dtype):
            reason = f"needs about {case.peer_bytes(batch, dtype):,} bytes, {kit.free_bytes():,} are free"
            yield left_out(f"{name}: against {THEIRS}", reason)
        elif peer is not None:
            sides[THEIRS] = _their_side(peer)
        times = _take_turns(sides, codes, case.turns)
        taken = medians(times)[OURS]
        yield figure(f"{name}: images/s", batch / taken, "images/s", seconds=times)
        # A product's rate: that of a convolution is another, and restructured layers need fewer operations.
        share = batch * operations / taken / product_rate(kit.device, dtype)
        yield figure(f"{name}: plain operations of product rate", share, "", operations=operations)
        for ratio in ratios(times, OURS).values():
            yield figure(f"{name}: diffusers' time over ours", ratio, "x")
        kit.release()


def _time_formats(kit: Kit, case: Case, decoder: ImageDecoder) -> Iterator[Row]:
    """Time `decode` and the network as it is written, each with its weights in either memory format."""
    dtype = next(decoder.parameters()).dtype
    codes = case.codes(case.varied).to(kit.device)
    formats = {"NCHW": decoder, "NHWC": copy.deepcopy(decoder).to(memory_format=torch.channels_last)}
    sides: dict[str, Side] = {}
    for layout, made in formats.items():
        sides[f"{layout}"] = lambda codes, made=made: made.decode(codes, case.grid)
        if dtype == torch.float32:  # in others nothing is restructured
            sides[f"{layout}, written plainly"] = lambda codes, made=made: _written_plainly(made, codes, case.grid)
    if dtype == torch.float32:
        expected = decoder.decode(codes, case.grid)
        error = max(_error(side(codes), expected) for side in sides.values())
        yield at_most(f"{case.name} float32: pixels of all formats, relative", error, ERROR)
    times = _take_turns(sides, codes, case.turns)
    for name, taken in medians(times).items():
        yield figure(f"{case.name} {_short(dtype)}, {name}: images/s", case.varied / taken, "images/s")


def _written_plainly(decoder: ImageDecoder, codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Decode as while gradients are tracked; none are, since no weight asks for one."""
    with full_precision(codes.device), torch.enable_grad():
        parts = codes.split(decoder.images_at_once(grid))
        return torch.cat([decoder.render(decoder.lookup(part, grid)).float() for part in parts])


def _memory(kit: Kit, case: Case, decoder: ImageDecoder) -> Iterator[Row]:
    """Hold what decoding takes beside weights and result against what it says that it takes."""
    name = f"{case.name} float32: peak memory over decode_bytes"
    if not kit.on_card:
        yield left_out(name, "no statistics of memory on a CPU")
        return
    codes = case.codes(max(case.batches)).to(kit.device)
    kit.release()
    before = torch.cuda.memory_allocated(kit.device)
    result = decoder.decode(codes, case.grid)
    taken, predicted = kit.peak_bytes() - before - result.nbytes, decoder.decode_bytes(case.grid)
    yield goal(name, taken / predicted, 1.0, "x", below=True, peak_bytes=taken, predicted_bytes=predicted)


def _take_turns(sides: Mapping[str, Side], codes: Tensor, turns: int) -> dict[str, list[float]]:
    for side in sides.values():  # warm-up
        side(codes)
    return interleaved({name: lambda side=side: side(codes) for name, side in sides.items()}, turns)


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the L2 norm of the difference over that of `expected`."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
