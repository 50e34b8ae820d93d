"""Whether a device draws the codes that a CPU draws: the noise, and the race that it decides.

The noise is a function of whole numbers but for two logarithms, whose last bit may differ from one device to another,
and compiled from eager. Such a bit turns a draw only where two codes are nearly tied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evalsvc.models.decoding import compiler_problem
from evalsvc.sampling import SamplingParams
from evalsvc.sampling.noise import counters, gumbel_of, stream_keys
from evalsvc.sampling.sampler import COMPILED, KERNEL, UNCOMPILED, draw_by
from on_card.kit import Kit, Row, at_most, figure, holds, left_out

CODES = 64
NOISE_ERROR = 1e-13
"""Largest difference of a noise: a last bit of its logarithms' results, which are below 40."""
TIE = 1e-12
"""Nats between two codes that rounding may put in either order."""
EQUAL = 0.99999
NARROWED_EQUAL = 0.9999
"""A card divides by the temperature with an error of a last bit, and a code at a threshold is in or out by one."""
MOST_TURNED = 1_000
"""Turned draws that are looked at: where there are more, the share of equal ones says it."""


NARROWED = 10
"""Positions at which codes are drawn from a part of them."""
PARAMETERS = {
    "top-k": SamplingParams(top_k=10),
    "top-p": SamplingParams(top_p=0.7),
    # As warm as it takes for the noise to decide, not the logits alone.
    "guided top-k": SamplingParams(guidance_scale=7.5, top_k=10, temperature=8.0),
    "all three, cooler": SamplingParams(guidance_scale=2.0, top_k=30, top_p=0.8, temperature=0.9),
}


@dataclass(frozen=True)
class Way:
    """One way to draw."""

    name: str
    device: torch.device
    by: str
    """Kind of the noise."""


def run(kit: Kit) -> Iterator[Row]:
    """Compare the noise itself, then a million draws by every way that there is here."""
    prompts, positions = (100, 10) if kit.small else (10_000, 100)
    cpu = torch.device("cpu")
    ways = [Way("eager", kit.device, UNCOMPILED)]
    if not kit.on_card and kit.small:
        yield left_out("compiled", "compiling on a CPU takes longer than the small kit has")
    else:
        problem = compiler_problem(str(kit.device))
        if kit.on_card:  # uncompiled noise is a dozen passes in place of one
            yield holds("the noise is compiled", not problem, problem)
        elif problem:
            yield left_out("compiled", problem)
        if not problem:
            ways.append(Way("compiled", kit.device, COMPILED))
            if kit.on_card:
                ways.append(Way("kernel", kit.device, KERNEL))
    ids = [f"prompt {index}" for index in range(prompts)]
    keys = stream_keys(0, ids, cpu)  # [prompts]
    logits = torch.randn(prompts, CODES, generator=torch.Generator().manual_seed(0))
    yield from _noise(kit, keys, positions)
    yield figure("draws", prompts * positions)
    plain = Way("plain", cpu, UNCOMPILED)
    expected = _draws(plain, keys, logits, positions, SamplingParams())
    for way in ways:
        found = _draws(way, kit.touched(keys), logits, positions, SamplingParams())
        yield from _compare(way, found, expected, keys, logits)
    few, both = min(positions, NARROWED), torch.cat((logits, logits.roll(1, 0) / 2))
    for name, params in PARAMETERS.items():
        given = both if params.guided else logits
        expected = _draws(plain, keys, given, few, params)
        for way in ways:
            found = _draws(way, kit.touched(keys), given, few, params)
            share = float((found == expected).double().mean())
            yield holds(
                f"{way.name}, {name}: codes that are the CPU's",
                share >= NARROWED_EQUAL,
                f"{share:.7f}",
                least=NARROWED_EQUAL,
            )


def _gumbel(keys: Tensor, position: int, codes: int) -> Tensor:  # [B, codes] float64
    """Standard Gumbel noise for every code at one position of each prompt."""
    return gumbel_of(keys[:, None] + counters(position, codes, keys.device))


def _noise(kit: Kit, keys: Tensor, positions: int) -> Iterator[Row]:
    """Compare the noise of a few prompts at the first and last positions, and for a whole codebook."""
    largest, equal, count = 0.0, 0, 0
    keys = keys[:16]
    for position in (0, 1, positions, 1_023):
        expected = _gumbel(keys, position, 16_384)
        found = _gumbel(kit.touched(keys).to(kit.device), position, 16_384).cpu()
        largest = max(largest, float((found - expected).abs().max()))
        equal += int((found == expected).sum())
        count += expected.numel()
    yield at_most(f"largest difference of {count} noises to the CPU's", largest, NOISE_ERROR, "nats")
    yield figure("noises that are the CPU's to the last bit", equal / count)


@torch.inference_mode()
def _draws(
    way: Way, keys: Tensor, logits: Tensor, positions: int, params: SamplingParams
) -> Tensor:  # [positions, prompts] on the CPU
    there, scores = keys.to(way.device), logits.to(way.device)
    drawn = [draw_by(way.by)(scores, params, there, position)[0] for position in range(positions)]
    return torch.stack(drawn).cpu()


def _compare(way: Way, found: Tensor, expected: Tensor, keys: Tensor, logits: Tensor) -> Iterator[Row]:
    share = float((found == expected).double().mean())
    yield holds(f"{way.name}: codes that are the CPU's", share >= EQUAL, f"{share:.7f}", least=EQUAL)
    gap = 0.0
    for position, prompt in (found != expected).nonzero()[:MOST_TURNED].tolist():
        sums = _gumbel(keys[prompt : prompt + 1], position, CODES)[0] + logits[prompt]
        gap = max(gap, float(sums[expected[position, prompt]] - sums[found[position, prompt]]))
    yield at_most(f"{way.name}: widest gap of a turned draw", gap, TIE, "nats")
