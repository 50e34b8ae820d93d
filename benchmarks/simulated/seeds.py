"""The miniature's checkpoint, sampled under many seeds and gated against itself; and damaged ones, which must fail."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from side_by_side import machine, print_last_line

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.compare.gate import compare
from evalsvc.compare.gate_report import Outcome, Report
from evalsvc.compare.result import Result
from evalsvc.miniature import ROOT
from evalsvc.spec.documents import ResultDocument
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker.local import run_suite

STEPS = {"epoch_1": 10, "epoch_2": 20, "epoch_3": 80, "epoch_4": 300, "epoch_5": 3_000}
"""Training steps of the run's files."""

TRAINED = "epoch_5"
EARLY = ("epoch_2", "epoch_3")
ROUNDING = 2**-9
"""Of each weight, relative: as much as rounding to bfloat16 moves it."""
DAMAGE = 0.3
"""Likewise, of the damaged checkpoint."""
DAMAGED_SEEDS = 3
ALLOWED = 1
"""Failures of the unchanged checkpoint, under all seeds."""


@dataclass(frozen=True)
class Sampling:
    """One checkpoint under one seed."""

    checkpoint: str
    """The file of the miniature's run, or `rounded`, `damaged`."""
    seed: int
    images: int
    metrics: tuple[str, ...]

    @property
    def suite(self) -> Suite:
        task = {
            "kind": "text_to_image",
            "name": "digits",
            "captions": str(ROOT / "captions.jsonl"),
            "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
            "classifier": str(ROOT / "classifier.safetensors"),
            "samples": self.images,
            "metrics": list(self.metrics),
            "seed": self.seed,
            "batch": 64,
            "shard_size": 128,
            "keep": 0,
        }
        if self.metrics:
            task["reference"] = str(ROOT / "images.safetensors")
        return parse_suite({"tasks": [task]}, "digits")


def perturbed(checkpoint: Path, relative: float) -> dict[str, Any]:
    """The checkpoint with normal noise on each weight, `relative` of it."""
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    random = torch.Generator().manual_seed(0)
    weights = {
        name: tensor * (1 + relative * torch.randn(tensor.shape, generator=random))
        for name, tensor in content["state_dict"].items()
        if name.endswith("weight")
    }
    return {**content, "state_dict": {**content["state_dict"], **weights}}


def prepare(folder: Path) -> None:
    """The miniature's run, with a rounded and a damaged checkpoint beside the others."""
    shutil.copytree(ROOT / "runs", folder / "runs")
    checkpoints = folder / "runs" / "pretrained" / "checkpoints"
    for name, relative in (("rounded", ROUNDING), ("damaged", DAMAGE)):
        torch.save(perturbed(checkpoints / f"{TRAINED}.pt", relative), checkpoints / f"{name}.pt")


def sample(work: tuple[Path, Sampling]) -> tuple[Sampling, ResultDocument]:
    """The result's document, in a process of the pool."""
    folder, sampling = work
    torch.set_num_threads(1)
    path = folder / "runs" / "pretrained" / "checkpoints" / f"{sampling.checkpoint}.pt"
    reference = CheckpointRef(str(path), layout=str(ROOT / "runs" / "layout.yaml"), label=sampling.checkpoint)
    document = run_suite(sampling.suite, reference, lambda *_: None)
    if document.errors:
        raise RuntimeError(f"{sampling}: {document.errors}")
    return sampling, document


def gate(candidate: ResultDocument, baseline: ResultDocument) -> Report:
    """By the default rules, across seeds: prompts are the same, so the items pair by prompt."""
    return compare(Result("candidate", candidate), Result("baseline", baseline), across=("seeds",))


def wanted(count: int, images: int, metrics: tuple[str, ...]) -> dict[str, list[tuple[Sampling, Sampling]]]:
    """Candidate and baseline of each gate, by what is compared."""

    def of(checkpoint: str, seed: int) -> Sampling:
        return Sampling(checkpoint, seed, images, metrics)

    seeds, few = range(1, count + 1), range(1, min(count, DAMAGED_SEEDS) + 1)
    return {
        "unchanged, another seed": [(of(TRAINED, seed), of(TRAINED, 0)) for seed in seeds],
        f"noise of {ROUNDING:.1g} on each weight, the same seed": [
            (of("rounded", seed), of(TRAINED, seed)) for seed in seeds
        ],
        f"damaged: noise of {DAMAGE:g} on each weight": [(of("damaged", seed), of(TRAINED, seed)) for seed in few],
        **{
            f"damaged: only {STEPS[name]} steps": [(of(name, seed), of(TRAINED, seed)) for seed in few]
            for name in EARLY
        },
    }


def gate_seeds(count: int, quick: bool) -> int:
    """Gate, print, and return how many of the groups did not come out as they must."""
    images, metrics = (128, ()) if quick else (256, ("fid64",))
    groups = wanted(count, images, metrics)
    samplings = dict.fromkeys(side for pairs in groups.values() for pair in pairs for side in pair)
    print(f"machine   {machine()}")
    print(f"samplings {len(samplings)} of {images} images; {', '.join(('agreement', *metrics))}", flush=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="evalsvc-seeds-") as name:
        os.environ["EVALSVC_DATA_DIR"] = str(Path(name) / "data")
        os.environ.setdefault("EVALSVC_THREADS", "1")
        prepare(Path(name))
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            documents = dict(pool.imap_unordered(sample, [(Path(name), sampling) for sampling in samplings]))
    reports = {
        what: [gate(documents[candidate], documents[baseline]) for candidate, baseline in pairs]
        for what, pairs in groups.items()
    }
    print(f"\n{'':48} {'gates':>6} {'fail':>6}   verdicts")
    failures, wrong = {}, []
    for what, found in reports.items():
        failures[what] = sum(report.outcome == Outcome.REGRESSION for report in found)
        right = failures[what] == len(found) if what.startswith("damaged") else failures[what] <= ALLOWED
        print(f"{what:48} {len(found):6} {failures[what]:6}   {_verdicts(found)}{'' if right else '   OUTSIDE'}")
        wrong += [] if right else [what]
    print(f"\n{time.perf_counter() - started:.0f} s")
    print_last_line(
        "calibration",
        {},
        seeds={what: {"gates": len(found), "failures": failures[what]} for what, found in reports.items()},
        outside=wrong,
    )
    return len(wrong)


def _verdicts(reports: Sequence[Report]) -> str:
    counts: dict[str, int] = {}
    for report in reports:
        for comparison in report.comparisons:
            key = f"{comparison.metric.partition('/')[2]} {comparison.verdict}"
            counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{key} {count}" for key, count in sorted(counts.items()))
