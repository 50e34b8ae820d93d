"""Scoring the options of questions against lm-eval's own HFLM: requests per second.

Both are lm-eval models with the same weights and answer the same requests, alternating in one process; tokenizing is
part of it. HFLM has the batch size that suits each case best here, and its cache, with which options of one id share a
forward pass. Log-likelihoods, greedy flags and the options chosen are compared before anything is timed, with HFLM's
cache off: with it some requests get another's answer.

    python benchmarks/text.py [--quick] [--case NAME] [--model FOLDER]

Cases are items of public benchmarks on a Llama of 79 million random weights, or on the Llama in `--model`, and a whole
suite on a real model of 260 thousand, all in ../shared/golden. Without it, and with --quick, words are drawn at
random. Prints a card, a table with the ratios of time and of work and where our time goes, the distance from the matrix
product that this machine manages, and as last line one JSON document; `ratios` has HFLM's time over ours by case, above
1 when ours is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from side_by_side import gemm_rate, interleaved, machine, medians, peak_bytes, print_last_line, seconds
from text_cases import STORIES, TOKENIZER, Case, load_suite, public_cases, random_cases, write_tokenizer
from text_models import FULL, QUICK, Sides, folder_sides, open_stories, random_sides, stories_sides

from evalsvc.language.encoding import Scored
from evalsvc.language.lm import OpenLM
from evalsvc.language.results import results
from evalsvc.models import Transformer, read_trie
from evalsvc.scoring import Request
from evalsvc.scoring.scorer import CPU_BATCH_TOKENS, Packed, pack, target_columns
from evalsvc.spec.layout import IdCounts

HFLM_NAME = "lm-eval's HFLM"
SUITE = "suite on stories260K"
BATCH_SIZES = (4, 8, 16, 32)
MEMORY_LIMIT = 2_000_000_000
"""Bytes that our side of the suite must stay below, weights and libraries included."""


Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether it is the greedy one."""


@dataclass(frozen=True)
class Work:
    """What one side computes, without its padding."""

    tokens: int
    """That go through the layers."""
    heads: int
    """Positions whose logits are computed."""

    def operations(self, model: Transformer) -> int:
        """Two per weight and token; attention is left out."""
        head = model.output.weight.numel()
        layers = sum(parameter.numel() for parameter in model.layers.parameters())
        return 2 * (self.tokens * layers + self.heads * head)


def our_work(packed: Packed) -> Work:
    return Work(len(packed.trie.ids), packed.scored)


def their_work(requests: Sequence[Request]) -> Work:
    """With the cache: what differs in its last id only is computed once."""
    tokens = sum(map(len, {request.read for request in requests}))
    return Work(tokens, tokens)


@dataclass
class Found:
    """What was measured of a case."""

    requests: int
    ours: Work
    theirs: Work
    operations: int
    difference: float
    batch_size: int
    times: Mapping[str, Sequence[float]]
    stages: Mapping[str, float]
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> list[float]:
        """HFLM's time over ours, turn by turn."""
        return [theirs / ours for ours, theirs in zip(*self.times.values(), strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.turns)

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "turns": self.turns,
            "seconds": medians(self.times),
            "token_ratio": self.theirs.tokens / self.ours.tokens,
            "head_ratio": self.theirs.heads / self.ours.heads,
            "batch_size": self.batch_size,
            "difference": self.difference,
            "stages": dict(self.stages),
            **self.more,
        }


def answer(lm: LM, requests: list[Instance]) -> list[Answer]:
    return lm.loglikelihood(requests, disable_tqdm=True)


def measure(
    both: Sides, requests: list[Instance], choices: Callable[[Sequence[float]], list[int]], turns: int
) -> Found:
    ours, theirs = both.ours, both.theirs
    theirs.logits_cache = True
    batch_size = choose_batch_size(theirs, requests)
    theirs.logits_cache = False
    difference = compare(both, answer(ours, requests), answer(theirs, requests), choices)  # also the warm-up
    theirs.logits_cache = True
    sides = {"evalsvc": lambda: answer(ours, requests), HFLM_NAME: lambda: answer(theirs, requests)}
    times = interleaved(sides, turns)
    stages, packed, encoded = stage_seconds(ours, requests)
    work = our_work(packed)
    return Found(
        len(requests),
        work,
        their_work(encoded),
        work.operations(ours.model),
        difference,
        batch_size,
        times,
        stages,
    )


def choose_batch_size(lm: HFLM, requests: Sequence[Instance]) -> int:
    """Leaves HFLM at the batch size at which it is fastest on a part of the requests."""
    block = 8  # whole questions
    some = [request for index, request in enumerate(requests) if index // block % max(len(requests) // 160, 1) == 0]
    answer(lm, some[:16])  # warm-up
    taken = {}
    for size in BATCH_SIZES:
        lm.batch_size_per_gpu = size
        taken[size] = seconds(lambda: answer(lm, some))
    lm.batch_size_per_gpu = min(taken, key=lambda size: taken[size])
    return int(lm.batch_size_per_gpu)


def compare(
    both: Sides, ours: Sequence[Answer], theirs: Sequence[Answer], choices: Callable[[Sequence[float]], list[int]]
) -> float:
    """The largest difference of two log-likelihoods; ends the benchmark where it, a flag or a choice is wrong."""
    pairs = list(zip(ours, theirs, strict=True))
    worst = max(abs(mine[0] - other[0]) for mine, other in pairs)
    wrong = sum(abs(mine[0] - other[0]) > both.tolerance + both.relative * abs(other[0]) for mine, other in pairs)
    flags = sum(mine[1] != other[1] for mine, other in pairs)
    chosen, expected = (choices([score for score, _ in side]) for side in (ours, theirs))
    moved = sum(one != other for one, other in zip(chosen, expected, strict=True))
    if wrong or flags or moved:
        raise SystemExit(
            f"the sides differ: {wrong} log-likelihoods, by up to {worst:.1e}, {flags} flags, {moved} choices"
        )
    return worst


def stage_seconds(lm: OpenLM, requests: Sequence[Instance]) -> tuple[dict[str, float], Packed, list[Request]]:
    """Where our time goes: the stages of `score`, one after the other."""
    model, layout = lm.model, lm.encoding.layout
    encoded: list[Request] = []
    packed: list[Packed] = []
    parts: list[tuple[torch.Tensor, ...]] = []

    def tokenize() -> None:
        found = lm.encoding.encode_all(requests)
        encoded.extend(request for one in found if isinstance(one, Scored) for request in one.requests)

    def forward() -> None:
        for batch, hidden in read_trie(model, packed[0].trie):
            nodes, ids, _ = packed[0].due(batch)
            scored, at = np.unique(nodes - batch.start, return_inverse=True)
            parts.append((hidden[torch.from_numpy(scored)], torch.from_numpy(at), torch.from_numpy(ids)))

    def head() -> None:
        with torch.inference_mode():
            for hidden, at, ids in parts:
                target_columns(hidden, model.head, at, ids, layout)

    found = {
        "tokenize": seconds(tokenize),
        "build": seconds(lambda: packed.append(pack(list(dict.fromkeys(encoded)), CPU_BATCH_TOKENS))),
        "forward": seconds(forward),
        "head": seconds(head),
    }
    return found, packed[0], encoded


# cases


def run_cases(both: Sides, cases: Sequence[Case], turns: int) -> Iterator[tuple[str, Found]]:
    print(both.card())
    for case in cases:
        yield case.name, show(case.name, case.goal, measure(both, case.requests, case.choices, turns))


def run_suite(turns: int) -> Iterator[tuple[str, Found]]:
    """All items on a real model: the forward pass is small, and what is around it shows."""
    both, loaded, requests = stories_sides(), load_suite(), suite_requests()
    ours = both.ours

    documents: list[range] = []
    start = 0
    for benchmark in loaded.benchmarks:
        ends = (document.requests for document in benchmark.documents)
        documents += [range(start + requests.start, start + requests.stop) for requests in ends]
        start += len(benchmark.instances)

    def choices(scores: Sequence[float]) -> list[int]:
        return [max(places, key=scores.__getitem__) for places in documents]

    found = measure(both, requests, choices, turns)
    answers = [[one] for one in ours.answers(requests)]
    counting = seconds(lambda: results(loaded, answers, IdCounts.of(ours.encoding.layout), {}))
    found.stages = {**found.stages, "count": counting}
    alone = subprocess.run(
        [sys.executable, __file__, "--alone"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[-1]
    found.more = {"items": sum(len(benchmark.documents) for benchmark in loaded.benchmarks), **json.loads(alone)}
    yield SUITE, show(SUITE, 2.5, found)
    if found.more["peak_bytes"] > MEMORY_LIMIT:
        raise SystemExit(f"the suite took {found.more['peak_bytes'] / 1e9:.2f} GB, more than {MEMORY_LIMIT / 1e9:.0f}")


def suite_requests() -> list[Instance]:
    return [instance for benchmark in load_suite().benchmarks for instance in benchmark.instances]


def alone() -> None:
    """Our side of the suite in a process of its own: how much memory it takes."""
    answer(open_stories(), suite_requests())
    print(json.dumps({"peak_bytes": peak_bytes()}))


# what is printed

HEADER = f"{'':26}{'requests/s':>11}{'ratio':>8}{'goal':>6}{'tokens':>8}{'heads':>7}{'batch':>7}{'differ':>9}  stages"


def show(name: str, goal: float, found: Found) -> Found:
    ours = medians(found.times)["evalsvc"]
    stages = ", ".join(f"{stage} {taken:.2f}" for stage, taken in found.stages.items())
    print(
        f"{name:26}{found.requests / ours:11.1f}{found.ratio:8.2f}{goal:6.1f}"
        f"{found.theirs.tokens / found.ours.tokens:8.2f}{found.theirs.heads / found.ours.heads:7.1f}"
        f"{found.batch_size:7}{found.difference:9.0e}  {stages}",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that the benchmark works")
    parser.add_argument("--case", help="only the cases whose name has this in it")
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a Llama, for the public items")
    parser.add_argument("--turns", type=int, default=3, help="how often each side is timed [3]")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every model that is not a path
    if options.alone:
        alone()
        return
    print(f"machine   {machine()}")
    found = dict(run(options))
    if not found:
        parser.error(f"--case {options.case}: no case has this in its name")
    ceiling = gemm_rate(torch.float32)
    print(f"\nceiling   {ceiling / 1e9:.0f} GFLOP/s, a float32 matrix product")
    of_ceiling = {name: one.operations / medians(one.times)["evalsvc"] / ceiling for name, one in found.items()}
    print("reached   " + ", ".join(f"{name}: {share:.0%}" for name, share in of_ceiling.items()))
    print("tokens, heads: HFLM's work over ours, without its padding; stages in seconds\n")
    print_last_line(
        "text",
        {name: one.ratio for name, one in found.items()},
        cases={name: one.to_json() for name, one in found.items()},
        difference=max(one.difference for one in found.values()),
        ceiling_flops=ceiling,
        of_ceiling=of_ceiling,
    )


def run(options: argparse.Namespace) -> Iterator[tuple[str, Found]]:
    wanted = options.case or ""
    if options.quick or not STORIES.exists():
        cases = [case for case in random_cases(QUICK.rows, 10) if wanted in case.name]
        print(HEADER)
        with tempfile.TemporaryDirectory() as folder:
            words = write_tokenizer(QUICK.rows, folder)
            both = folder_sides(options.model) if options.model else random_sides(QUICK, words)
            yield from run_cases(both, cases, turns=2)
        return
    print(HEADER)
    cases = [case for case in public_cases() if wanted in case.name]
    if cases:
        both = folder_sides(options.model) if options.model else random_sides(FULL, TOKENIZER)
        yield from run_cases(both, cases, options.turns)
    if wanted in SUITE and not options.model:
        yield from run_suite(options.turns)


if __name__ == "__main__":
    main()
