"""Compute findings: train their runs, evaluate the checkpoints by a service of their own, and draw the figures.

Everything is in the work folder. After an interruption, SIGKILL included, the same command resumes: it repeats at most
the training steps since the last state (`Recipe.state_every`), and no finished part of an evaluation.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evalsvc.assets import locate_asset
from evalsvc.errors import EvalsvcError
from evalsvc.files.atomic import write_whole
from evalsvc.web import vega
from study.alignment import align_rows
from study.finding import Finding
from study.material import Material, miniature_material, real_material
from study.measured import RESULTS, Measured
from study.own_service import assets_folder, started_service
from study.runs import PlannedRun, distinct
from study.scales import SCALES, Scale
from study.suites import suite_name, suites
from study.training_pool import Pool

ROOT = Path(__file__).parents[3]
REAL_MODEL, EXTRACTOR = "smollm2-135m", "inception"
TRAINER_SECONDS = 5.0
"""Seconds on one core in which a trainer starts."""


@dataclass(frozen=True)
class Computation:
    """Findings at a scale, in a work folder."""

    scale: Scale
    work: Path
    material: Material

    @property
    def figures(self) -> Path:
        return self.work / "figures"

    def runs(self, findings: Sequence[Finding]) -> list[PlannedRun]:
        """Return the runs of the findings, each once."""
        return distinct(run for finding in findings for run in finding.runs(self.scale, self.material))

    def compute(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Train, evaluate and draw, and return the content of `results.json`.

        Raises:
            SystemExit: another computation runs in the work folder.
        """
        runs = self.runs(findings)
        with self._claimed(), started_service(self.work / "service", self.scale.workers) as client:
            print(f"dashboard {client.url}", flush=True)
            for name, suite in suites(self.scale, self.material).items():
                client.put_suite(suite_name(name), suite)
            pool = Pool(client, self.scale, self.material.layout, self.work)
            for seed in self.scale.seeds:
                if any(run.recipe.image_rows == self.material.aligned_rows(seed) for run in runs):
                    align_rows(self.scale, self.material, seed)
            pool.train(runs)
            pool.wait()
            measured = Measured(client, self.work)
            for finding in findings:
                self._report(finding, measured)
        return self.results()

    def _report(self, finding: Finding, measured: Measured) -> None:
        report = finding.report(measured, self.scale, self.material)
        for figure in report.figures:
            figure.write(self.figures)
        results = self.results()
        content = report.to_json() | {"title": finding.title}
        results["findings"] = {**results["findings"], finding.name: content}
        results["readings"] = {**results["readings"], **measured.readings}
        write_whole(self.work / RESULTS, as_file(results | {"scale": self.scale.name}))
        print(f"\n{finding.title}\n{report.row.here}", flush=True)

    def results(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        path = self.work / RESULTS
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"findings": {}, "readings": {}}
        return content

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Keep other computations out of the work folder; the claim ends with the process, however it ends."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SystemExit(
                    f"another computation runs in {self.work}; wait for it, or give another --work"
                ) from None
            yield


def as_file(results: Mapping[str, Any]) -> bytes:
    """Return the content of `results.json`, with a line for each finding and reading."""
    compact = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
    parts = (
        f"{compact(name)}:{{\n" + ",\n".join(f"{compact(key)}:{compact(value)}" for key, value in part.items()) + "\n}"
        for name, part in results.items()
        if isinstance(part, Mapping)
    )
    rest = (f"{compact(name)}:{compact(value)}" for name, value in results.items() if not isinstance(value, Mapping))
    return ("{" + ",\n".join([*parts, *rest]) + "}\n").encode()


def estimated_minutes(scale: Scale, runs: Sequence[PlannedRun]) -> tuple[float, float]:
    """Return the minutes of training and of evaluation on two cores."""
    usual = scale.main.batch
    training = sum(TRAINER_SECONDS + run.recipe.steps * run.recipe.batch / usual * scale.costs.step for run in runs)
    evaluation = scale.costs.fixed
    for run in runs:
        variants = [("raw", step) for step in run.recipe.kept]
        variants += [("ema", step) for step in run.recipe.kept for _ in run.recipe.ema]
        evaluation += sum(scale.costs.evaluation[suite] for kind, step in variants for suite in run.suites(step, kind))
    return training / 120, evaluation / 120


def say_estimate(scale: Scale, runs: Sequence[PlannedRun]) -> None:
    """Print what is to be done and how long it takes."""
    training, evaluation = estimated_minutes(scale, runs)
    print(f"scale     {scale.name}: {len(runs)} trainings, {sum(run.recipe.steps for run in runs):,} steps")
    print(
        f"estimate  {training + evaluation:.0f} minutes on two cores: training {training:.0f}, evaluation "
        f"{evaluation:.0f}; less after an interruption",
        flush=True,
    )


def options_of(description: str | None) -> argparse.ArgumentParser:
    """Return the options that all findings share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="miniature", help="size of everything [miniature]")
    parser.add_argument("--quick", action="store_true", help="the same as --scale quick: shows that it works")
    parser.add_argument("--work", type=Path, help="folder of everything that is written [build/paper/SCALE]")
    parser.add_argument("--model", type=Path, help="Hugging Face folder of the real scale's model [SmolLM2-135M]")
    parser.add_argument("--items", type=Path, help="folder of the rows of the real scale's benchmarks")
    parser.add_argument("--estimate", action="store_true", help="print the estimate of the time, and stop")
    return parser


def computation_of(options: argparse.Namespace) -> Computation:
    """Return the computation that the options describe, with its material written.

    Raises:
        SystemExit: the real scale lacks its items.
        AssetMissing: the real scale lacks its model, or another scale the extractor of the FID.
    """
    scale = SCALES["quick" if options.quick else options.scale]
    work = (options.work or ROOT / "build" / "paper" / scale.name).resolve()
    if scale.name != "real":
        locate_asset(EXTRACTOR, assets_folder())  # an evaluation would miss it only after the training
        return Computation(scale, work, miniature_material(work / "material", whole=scale.name == "miniature"))
    if options.items is None:
        raise SystemExit("--scale real needs --items FOLDER, with the rows of its benchmarks; see benchmarks/README.md")
    model = options.model or locate_asset(REAL_MODEL, assets_folder())
    material = real_material(work / "material", model.resolve(), options.items.resolve(), scale.benchmarks)
    return Computation(scale, work, material)


def main(findings: Sequence[Finding], description: str | None) -> Computation:
    """Run the command of one finding, or of all."""
    return compute(findings, options_of(description).parse_args())


def compute(findings: Sequence[Finding], options: argparse.Namespace) -> Computation:
    """Compute the findings that the scale has, unless only the estimate is asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    vega.require_installed()
    try:
        computation = computation_of(options)
        chosen = [finding for finding in findings if computation.scale.name in finding.scales]
        say_estimate(computation.scale, computation.runs(chosen))
        if not options.estimate:
            print(f"work      {computation.work}", flush=True)
            computation.compute(chosen)
    except EvalsvcError as error:
        raise SystemExit(error.message) from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command resumes") from None
    except LookupError as error:
        raise SystemExit(f"{error}; the history lacks what a figure shows") from None
    return computation
