"""Train the planned runs, a few at once, post their checkpoints while they train, and wait for the evaluations.

Everything resumes: a training from its own folder, an evaluation from the service's database. Posting a checkpoint a
second time changes nothing, so the pool posts all that it sees.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from trainer.checkpoint_files import saved_checkpoints

from evalsvc.client import Client
from evalsvc.files.atomic import write_whole
from study.guarded import end_guarded, start_guarded
from study.runs import PlannedRun, training_folder
from study.scales import Scale
from study.suites import suite_name

TRAINER = Path(__file__).parents[1] / "train.py"
EVERY = 0.5
"""Seconds between two looks at the trainings."""
DONE = "done"
"""File in the folder of a training whose trainer ended with the exit code 0."""

Checkpoint = tuple[str, int, str]
"""Run, step and variant."""

Running = tuple[PlannedRun, subprocess.Popen[bytes]]
"""Training in progress."""


@dataclass
class Pool:
    """Trainings of the planned runs and evaluations of their checkpoints."""

    client: Client
    scale: Scale
    layout: Path
    work: Path
    evaluations: dict[int, str] = field(default_factory=dict)
    """Names of the checkpoints whose evaluations were posted, by the id of the evaluation."""
    _posted: set[Checkpoint] = field(default_factory=set)
    _running: dict[str, Running] = field(default_factory=dict)
    """Trainings in progress, by the name of the run."""

    def train(self, runs: Sequence[PlannedRun]) -> None:
        """Train all runs and post every checkpoint.

        Raises:
            SystemExit: a training fails; the message has the end of its log. Other trainings are ended, and resume when
                the pool is started again.
        """
        waiting = list(runs)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.scale.trainings_at_once:
                    self._start(waiting.pop(0))
                self._look()
        finally:
            self._end_all()

    def _look(self) -> None:
        """Post what the trainings have written, and remove those that have ended."""
        time.sleep(EVERY if self._running else 0)
        for name, (run, process) in list(self._running.items()):
            code = process.poll()
            self._post(run)
            if code is not None:
                end_guarded(process)
                del self._running[name]
                self._end(run, code)

    def _end_all(self) -> None:
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            end_guarded(process)

    def wait(self) -> None:
        """Wait until all evaluations have ended.

        Raises:
            SystemExit: an evaluation failed or was cancelled; the message has the errors of its tasks.
        """
        for evaluation, name in list(self.evaluations.items()):
            ended = self.client.wait(evaluation)
            if ended.state != "succeeded":
                reasons = "; ".join(f"{task.name}: {task.error.message}" for task in ended.tasks if task.error)
                raise SystemExit(f"the evaluation of {name} {ended.state}: {reasons or 'no task says why'}")

    def _start(self, run: PlannedRun) -> None:
        """Start the training of a run, unless an earlier call trained the run to its end."""
        folder = training_folder(self.work, run.name)
        recipe = yaml.safe_dump(run.recipe.to_json(), sort_keys=False).encode()
        path = _next_to(folder, ".yaml")
        if (folder / DONE).exists() and path.exists() and path.read_bytes() == recipe:
            self._post(run)
            return
        write_whole(path, recipe)
        threads = str(self.scale.training_threads)
        command = [sys.executable, str(TRAINER), str(path), "--work", str(folder), "--threads", threads]
        self._running[run.name] = run, start_guarded(command, _next_to(folder, ".log"), os.environ)
        print(f"training {run.name}, {run.recipe.steps:,} steps", flush=True)

    def _end(self, run: PlannedRun, code: int) -> None:
        folder = training_folder(self.work, run.name)
        if code:
            log = _next_to(folder, ".log")
            end = log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"the training of {run.name} ended with the exit code {code}; {log} ends with:\n{end}")
        (folder / DONE).touch()

    def _post(self, run: PlannedRun) -> None:
        """Post the checkpoints of a run that were not posted by this process."""
        for saved in saved_checkpoints(training_folder(self.work, run.name)):
            key = run.name, saved.step, saved.variant
            suites = run.suites(saved.step, saved.variant)
            if key in self._posted or not suites:
                continue
            posted = self.client.submit(
                run.name,
                saved.step,
                str(saved.path),
                variant=saved.variant,
                suites=[suite_name(part) for part in suites],
                layout=str(self.layout),
            )
            self._posted.add(key)
            name = f"{run.name}@{saved.step}" + ("" if saved.variant == "raw" else f":{saved.variant}")
            for evaluation in posted.evaluations:
                self.evaluations[evaluation.id] = name
                if evaluation.state in ("failed", "cancelled"):  # by an earlier call
                    self.client.retry(evaluation.id)


def _next_to(folder: Path, suffix: str) -> Path:
    """Return the path of a file next to a folder. `with_suffix` would cut a name such as `rate-0.2-random`."""
    return folder.with_name(f"{folder.name}{suffix}")
