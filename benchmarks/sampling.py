"""Drawing whole images against Hugging Face's Llama with its static cache: codes per second.

All sides run the same weights from the same prompts, taking turns in one process, and draw from the image rows only.
Before anything is timed their likeliest codes (temperature 0) are compared; what is compiled is compiled then too, and
the seconds are printed.

    python benchmarks/sampling.py [--case NAME] [--model FOLDER] [--turns N] [--busy N] [--output FILE] [--quick]

| case | model | draws | peers |
|---|---|---|---|
| fp32-32, bf16-32, fp32-1 | random, open_lm_160m | 32 images (one) of 1,024 codes | Hugging Face |
| real-32 | the Llama in `--model`, widened | 32 images of 256 codes, float32 | Hugging Face; CTranslate2 if there |
| grouped-32 | the same | the same | evalsvc, with keys and values repeated for every query head |

Prints for each case a card (shape, bytes, path), a table with the cost of a code where 128, 512 and 1,024 positions
are live, and the distance from the machine's roofline, measured in the same run; and as last line one JSON document.
A ratio is a peer's time over ours, above 1 when ours is faster. Threads of all sides wait for each other as workers'
do; `--busy 1` times the sides beside a busy process, as on a shared machine. The cases without `--model` take most of
an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sampling_cases import KINDS, NEED_MODEL, Case, Contest, case_names, contest
from sampling_sides import PROMPT_LENGTH, Steps
from side_by_side import (
    busy_processes,
    gemm_rate,
    interleaved,
    machine,
    medians,
    print_last_line,
    ratios,
    read_bandwidth,
    seconds,
    wait_as_workers,
)

from evalsvc.models import Transformer
from evalsvc.sampling import SamplingParams, cache_bytes
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import stream_keys

COMPARED_LENGTH = 32
"""Number of codes per image whose likeliest values are compared."""
EQUAL_SHARE = 0.9
"""Smallest share of equal likeliest codes, in float32: after rounding has swapped two codes of nearly equal logits, the
rest of the image differs too."""
LIVE = (128, 512, 1_024)
"""Numbers of live positions at which the cost of a step is shown."""


@dataclass(frozen=True)
class Roofline:
    """The shortest time that the machine allows: memory at its bandwidth, or products at their rate."""

    weights: int
    """Number of weights that a step multiplies by: all but the tables, and the image rows of the head."""
    weight_bytes: int
    cache_bytes: int
    """Bytes of keys and values at one position of all images."""
    attended: int
    """Number of multiplications of attention for one position of all images."""
    bandwidth: float
    """Bytes per second that the machine reads."""
    rate: float
    """Operations per second of a large matrix product."""

    def step(self, case: Case, live: int) -> float:
        """Return the seconds of a step in which `live` positions are attended to."""
        memory = (self.weight_bytes + self.cache_bytes * live) / self.bandwidth
        return max(memory, 2 * (case.batch * self.weights + self.attended * live) / self.rate)

    def whole(self, case: Case) -> float:
        """Return the seconds of all steps of a batch."""
        return sum(self.step(case, PROMPT_LENGTH + position) for position in range(case.length))


def measure_roofline(case: Case, model: Transformer) -> Roofline:
    config, tables = model.config, {id(model.tok_embeddings.weight), id(model.output.weight)}
    weights = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)
    weights += len(case.image_ids) * config.hidden_dim
    return Roofline(
        weights,
        weights * case.dtype.itemsize,
        cache_bytes(config, case.batch, 1, case.dtype),
        2 * config.n_layers * case.batch * config.n_heads * config.head_dim,
        read_bandwidth(),
        gemm_rate(case.dtype),
    )


def draw_seconds(case: Case, path: str) -> float:
    """Return the seconds of drawing a batch of codes from their logits, with the noise."""
    logits = torch.randn(case.batch, len(case.image_ids), generator=torch.Generator().manual_seed(0))
    keys = stream_keys(0, [str(row) for row in range(case.batch)], torch.device("cpu"))
    compiled = path == "compiled"

    def one(position: int) -> Callable[[], object]:
        return lambda: draw(logits, SamplingParams(), keys, position, compile_noise=compiled)

    with torch.inference_mode():
        return statistics.median([seconds(one(position)) for position in range(24)][4:])


def run_case(found: Contest, turns: int | None, busy: int) -> dict[str, Any]:
    case = found.case
    print_card(found)
    shares = compare(found)
    roofline = measure_roofline(case, found.model)
    steps = {name: Steps() for name in found.sides}

    def turn(name: str) -> Callable[[], object]:
        return lambda: found.sides[name](case.length, 1.0, steps[name])

    with busy_processes(busy):
        times = interleaved({name: turn(name) for name in found.sides}, turns or case.repetitions)
    noise = draw_seconds(case, found.spec.path or "")
    return print_results(found, shares, times, steps, roofline, noise)


def compare(found: Contest) -> dict[str, float]:
    """Return by peer the share of likeliest codes that equal ours. The call also warms up all sides."""
    case, (ours, *peers) = found.case, found.sides
    length = min(case.length, COMPARED_LENGTH)

    def greedy(name: str) -> torch.Tensor:
        return found.sides[name](length, 0.0, Steps())

    first = seconds(lambda: greedy(ours))
    second = seconds(lambda: found.sides[ours](length, 1.0, Steps()))
    print(f"warm-up   {first + second:.1f} s for 2 × {length} steps, packing and compiling included", flush=True)
    likeliest = greedy(ours)
    shares = {peer: float((likeliest == greedy(peer)).double().mean()) for peer in peers}
    for peer, share in shares.items():
        found.sides[peer](length, 1.0, Steps())
        if case.dtype == torch.float32 and share < EQUAL_SHARE:
            raise SystemExit(f"only {share:.1%} of the likeliest codes are equal to those of {peer}")
    return shares


def print_card(found: Contest) -> None:
    case, config = found.case, found.model.config
    weights = sum(parameter.nbytes for parameter in found.model.parameters())
    print(f"\ncase      {case.name}, path {found.spec.path}")
    print(f"model     {config.hidden_dim} wide, {config.n_layers} layers, {config.n_heads} heads")
    print(f"          {config.vocab_size:,} rows, {str(case.dtype).removeprefix('torch.')}")
    print(f"weights   {weights / 1e9:.3f} GB")
    print(f"draws     {case.length:,} codes of {len(case.image_ids):,} for each of {case.batch} prompts")
    for name, cache in cache_sizes(found).items():
        print(f"cache     {cache / 1e9:.3f} GB at the end, {name}")
    print(f"machine   {machine()}", flush=True)


def cache_sizes(found: Contest) -> dict[str, int]:
    """Return the bytes of keys and values at the end, by side of evalsvc."""
    case = found.case
    length = PROMPT_LENGTH + case.length - 1
    return {name: cache_bytes(model.config, case.batch, length, case.dtype) for name, model in found.caches.items()}


def print_results(
    found: Contest,
    shares: dict[str, float],
    times: dict[str, list[float]],
    steps: dict[str, Steps],
    roofline: Roofline,
    noise: float,
) -> dict[str, Any]:
    case, ours = found.case, next(iter(found.sides))
    whole, middle = roofline.whole(case), medians(times)
    columns = "".join(f"{f'ms at {live:,}':>14}" for live in LIVE)
    print(f"\n{'':28}{'codes/s':>9}{'seconds':>9}{'roofline':>10}{columns}")
    for name, spent in middle.items():
        costs = "".join(_cost(case, roofline, steps[name].at(live), live) for live in LIVE)
        print(f"{name:28}{case.codes / spent:9.0f}{spent:9.2f}{whole / spent:10.0%}{costs}")
    print()
    peers = ratios(times, ours)
    for peer, ratio in peers.items():
        turns = [round(theirs / mine, 2) for mine, theirs in zip(times[ours], times[peer], strict=True)]
        print(f"ratio     {ratio:.2f} to {peer}, the median of {turns}")
        print(f"greedy    {shares[peer]:.1%} of the likeliest codes are equal to those of {peer}")
    step = middle[ours] / case.length
    print(f"ceiling   {roofline.bandwidth / 1e9:.1f} GB/s, {roofline.rate / 1e9:.0f} GFLOP/s: {whole:.1f} s")
    print(
        f"noise     {1e3 * noise:.2f} ms for drawing a batch of codes, {noise / step:.1%} of the mean step", flush=True
    )
    return {
        "ratios": peers,
        "path": found.spec.path,
        "seconds": times,
        "codes_per_second": {name: case.codes / spent for name, spent in middle.items()},
        "of_roofline": {name: whole / spent for name, spent in middle.items()},
        "step_seconds": {name: {str(live): side.at(live) for live in LIVE} for name, side in steps.items()},
        "roofline_step_seconds": {str(live): roofline.step(case, live) for live in LIVE},
        "cache_bytes": cache_sizes(found),
        "bandwidth": roofline.bandwidth,
        "gemm_rate": roofline.rate,
        "noise_share": noise / step,
        "equal_greedy_codes": shares,
    }


def _cost(case: Case, roofline: Roofline, step: float | None, live: int) -> str:
    return f"{'–':>14}" if step is None else f"{1e3 * step:8.1f} {roofline.step(case, live) / step:5.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that the benchmark works")
    parser.add_argument("--case", choices=[*KINDS, *NEED_MODEL], help="one case alone [all]")
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a Llama, for real-32 and grouped-32")
    parser.add_argument("--turns", type=int, help="how often each side is timed [3]")
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside the timed turns [0]")
    parser.add_argument("--output", type=Path, help="a file that gets the last line, after every case")
    arguments = parser.parse_args()
    if arguments.case in NEED_MODEL and not (arguments.model or arguments.quick):
        parser.error(f"--case {arguments.case} needs --model: evalsvc assets pull smollm2-135m")
    results: dict[str, dict[str, Any]] = {}
    for name in [arguments.case] if arguments.case else case_names(arguments.model, arguments.quick):
        with contest(name, arguments.model, arguments.quick) as found:
            results[name] = run_case(found, arguments.turns, arguments.busy)
        if arguments.output:
            arguments.output.write_text(json.dumps(results))
    print()
    print_last_line(
        "sampling", by_peer(results, "ratios"), equal_greedy_codes=by_peer(results, "equal_greedy_codes"), cases=results
    )


def by_peer(results: dict[str, dict[str, Any]], figure: str) -> dict[str, float]:
    """Return a figure by case, and by case and peer where a case has several peers."""
    return {
        name if len(result[figure]) == 1 else f"{name}, {peer}": value
        for name, result in results.items()
        for peer, value in result[figure].items()
    }


if __name__ == "__main__":
    wait_as_workers()
    main()
