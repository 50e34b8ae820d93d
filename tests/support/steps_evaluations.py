"""Evaluations of the task `steps`: posted, waited for, and what their log says was run."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from queue_steps import submission

from evalsvc.checkpoints.reference import identify
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.runs.posting import submit
from evalsvc.store.session import Store
from evalsvc.store.tables import OVER, Evaluation


def steps_suite(folder: Path, name: str = "steps", **parameters: Any) -> Suite:
    """A suite of short steps, which writes `NAME.log` in `folder`."""
    log = str(folder / f"{name}.log")
    return parse_suite({"tasks": [{"kind": "steps", "log": log, "seconds": 0.01, **parameters}]}, name)


def enter(store: Store, file: Path, suite: Suite, step: int = 1, **fields: Any) -> int:
    """Post a file to be evaluated; the id of the evaluation."""
    posted = submission(step, uri=str(file), path=str(file), identity=identify(file), **fields)
    with store.transaction() as session:
        return submit(session, posted, [suite], find=lambda name: suite).evaluations[0].id


def wait_until(store: Store, condition: Callable[[Any], bool], seconds: float = 120) -> None:
    """Wait for a condition on a session of the store."""
    deadline = time.monotonic() + seconds
    while True:
        with store.reading() as session:
            if condition(session):
                return
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def wait(store: Store, evaluation: int, seconds: float = 120) -> Evaluation:
    """Wait for the end of an evaluation."""
    wait_until(store, lambda session: find_evaluation(session, evaluation).state in OVER, seconds)
    with store.reading() as session:
        return find_evaluation(session, evaluation)


def steps_done(folder: Path, name: str = "steps") -> Counter[tuple[str, str]]:
    """How often each (shard, step) was begun."""
    return Counter((shard, step) for shard, step, _worker in _lines(folder, name))


def workers_used(folder: Path, name: str = "steps") -> set[str]:
    """What the log calls the workers that took part."""
    return {worker for _shard, _step, worker in _lines(folder, name)}


def begun(folder: Path, name: str = "steps") -> bool:
    return len(steps_done(folder, name)) > 0


def _lines(folder: Path, name: str) -> list[list[str]]:
    log = folder / f"{name}.log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []
