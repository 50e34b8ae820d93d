"""LlamaGen's and Chameleon's image tokenizers against transformers' classes with the same weights: seconds an image.

transformers runs as it comes and with channels last in memory, which is its best on a CPU. Its `ChameleonVQVAE` has no
decoder, so Chameleon is compared where it encodes. Sides take turns in one process, one image at a time. Before
anything is timed, pixels and codes are compared.

    python benchmarks/image_tokenizers.py [--quick]

Prints a card, a table, and as last line one JSON document; `ratios` are transformers' time over ours, above 1 when ours
is faster.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from side_by_side import interleaved, machine, medians, print_last_line, ratios
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from evalsvc.decoders import ImageDecoder
from evalsvc.decoders.llamagen import LlamaGen
from evalsvc.decoders.vqgan import Chameleon

DIFFERENCE = 1e-4
EQUAL_CODES = 0.998
"""Sums are in another order, and two entries can be equally near."""
Side = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    kind: type[ImageDecoder]
    patches: int
    """Rows and columns of codes."""
    repetitions: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of transformers' configuration that differ from its defaults."""


SMALL = {"base_channels": 32, "num_embeddings": 256}
FULL = (
    Case("VQ-16", LlamaGen, 16, 3),
    Case("VQ-8", LlamaGen, 32, 3, {"channel_multiplier": [1, 2, 2, 4]}),
    Case("Chameleon", Chameleon, 32, 2),
)
QUICK = (Case("VQ-16", LlamaGen, 2, 2, SMALL), Case("Chameleon", Chameleon, 2, 2, SMALL))


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Set convolutions that keep the variance, norms away from their start, and entries of length 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "quantize.embedding.weight":
            parameter.copy_(nn.functional.normalize(noise, dim=-1))
        elif parameter.dim() == 4:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise)
    return module.eval().requires_grad_(False)


def build_janus(case: Case) -> tuple[ImageDecoder, JanusVQVAE]:
    config = JanusVQVAEConfig(num_patches=case.patches, **case.fields)
    theirs, ours = randomise(JanusVQVAE(config)), LlamaGen.from_config(config.to_dict())
    named = {LlamaGen.authors_name(name): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict({name: named[ours.file_name(name)] for name in ours.state_dict()})
    return ours, theirs


def build_chameleon(case: Case) -> tuple[ImageDecoder, ChameleonVQVAE]:
    config = ChameleonVQVAEConfig(resolution=16 * case.patches, **case.fields)
    theirs, ours = randomise(ChameleonVQVAE(config)), randomise(Chameleon.from_config(config.to_dict()))
    ours.load_state_dict(theirs.state_dict(), strict=False)  # transformers' class has no decoder
    return ours, theirs


def their_encode(model: Any, images: Tensor) -> Tensor:
    return model.encode(images).image_tokens.view(len(images), -1)


def directions(case: Case) -> tuple[ImageDecoder, Mapping[str, tuple[Tensor, Mapping[str, Side]]]]:
    """Return our decoder and, by direction, the input of an image and the sides."""
    ours, theirs = build_janus(case) if case.kind is LlamaGen else build_chameleon(case)
    ours = ours.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    side = case.patches * ours.downsampling
    images = torch.rand(1, 3, side, side, generator=generator) * 2 - 1
    codes = torch.randint(0, ours.codebook_size, (1, case.patches**2), generator=generator)
    peers = {"transformers": theirs, "transformers, channels last": last}
    encode: dict[str, Side] = {
        name: lambda images, model=model: their_encode(model, images) for name, model in peers.items()
    }
    found = {"encode": (images, {"evalsvc": ours.encode, **encode})}
    if case.kind is LlamaGen:
        found["decode"] = (codes, {"evalsvc": ours.decode, **{name: model.decode for name, model in peers.items()}})
    return ours, found


def check_equal(direction: str, results: Mapping[str, Tensor]) -> float:
    """Return the largest difference of pixels, or the smallest share of equal codes. Exits if they are not equal."""
    ours = results["evalsvc"]
    peers = [theirs for name, theirs in results.items() if name != "evalsvc"]
    if direction == "encode":
        share = min(float((ours == theirs).double().mean()) for theirs in peers)
        if share < EQUAL_CODES:
            raise SystemExit(f"only {share:.2%} of the codes are equal on both sides")
        return share
    difference = max(float((ours - theirs).abs().max()) for theirs in peers)
    if difference > DIFFERENCE:
        raise SystemExit(f"images differ by up to {difference:.1e}, more than {DIFFERENCE:.0e}")
    return difference


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small networks: shows that the benchmark works")
    found: dict[str, float] = {}
    equality: dict[str, float] = {}
    print(f"machine   {machine()}\n")
    for case in QUICK if parser.parse_args().quick else FULL:
        ours, by_direction = directions(case)
        grid = (case.patches, case.patches)
        print(f"{case.name}: {grid} codes, {ours.decode_bytes(grid) / 1e6:.0f} MB to decode an image")
        for direction, (given, sides) in by_direction.items():
            name = f"{case.name} {direction}"
            equality[name] = check_equal(direction, {peer: side(given) for peer, side in sides.items()})  # and warm up
            times = interleaved(
                {peer: lambda side=side, given=given: side(given) for peer, side in sides.items()}, case.repetitions
            )
            by_peer = ratios(times, "evalsvc")
            print(f"{name:38}{'seconds':>10}{'ratio':>8}   equality {equality[name]:.3g}")
            for peer, middle in medians(times).items():
                print(f"  {peer:36}{middle:10.2f}{by_peer.get(peer, 1.0):8.2f}", flush=True)
            found |= {f"{name}, {peer}": ratio for peer, ratio in by_peer.items()}
    print_last_line("image_tokenizers", found, equality=equality)


if __name__ == "__main__":
    main()
