"""The process of a side: reads questions as lines of JSON, and answers each with a line.

    python -P side_process.py TREE SLOWER

TREE may be of an older commit, so this program imports only what has long been in evalsvc: a suite, a checkpoint and
`run_suite`. The end of its input ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evalsvc
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker.local import run_suite

Question = dict[str, Any]

MESSAGE = 1000
"""Most characters of an error that a child tells: the pipe must take its answer whole."""


def main() -> None:
    tree, slower = Path(sys.argv[1]).resolve(), float(sys.argv[2])
    imported = Path(evalsvc.__file__).resolve()
    if not imported.is_relative_to(tree):
        sys.exit(f"evalsvc was imported from {imported.parent} and not from {tree}; the folder holds no evalsvc")
    # What a library prints must not be taken for an answer.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            try:
                answer = _answer(json.loads(line), slower)
            except Exception as error:  # whatever an older commit raises, the other side goes on
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _answer(question: Question, slower: float) -> Question:
    suite = parse_suite({"tasks": question["tasks"]}, "bench", Path(question["folder"]))
    layout = parse_layout(question["layout"]).to_json()
    checkpoint = CheckpointRef(question["weights"], layout=layout, label="checkpoint")
    base = question["base"] and CheckpointRef(question["base"], layout=layout, label="base")
    if question["what"] == "evaluate":
        result = run_suite(suite, checkpoint, _be_silent, base)
        return {"result": result.model_copy(update={"artifacts": {}}).model_dump()}
    if question["what"] == "warm":
        _timed(suite, checkpoint, base, slower=0.0)
        return {}
    pairs = [_in_child(lambda: _timed(suite, checkpoint, base, slower)) for _ in range(question["calls"])]
    return {"cpu": [cpu for cpu, _ in pairs], "wall": [wall for _, wall in pairs]}


def _in_child(measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return what `measure` returns in a child, which has what this process has loaded.

    Which memory a process has decides up to a tenth of its time, for as long as it lives: of two equal processes one
    was slower in each turn. A child for each call gets other memory each time, so turns vary in place of sides.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer: Question = {"seconds": measure()}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:MESSAGE]}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"error": "the process ended without an answer"}
    if "error" in answer:
        raise RuntimeError(answer["error"])
    cpu, wall = answer["seconds"]
    return cpu, wall


def _timed(suite: Suite, checkpoint: CheckpointRef, base: CheckpointRef | None, slower: float) -> tuple[float, float]:
    """Return the processor and wall seconds of an evaluation."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run_suite(suite, checkpoint, _be_silent, base)
    if slower:
        end = time.process_time() + slower * (time.process_time() - cpu)
        while time.process_time() < end:
            pass
    seconds = time.process_time() - cpu, time.perf_counter() - wall
    for task, error in result.errors.items():
        raise RuntimeError(f"task {task}: {error.message}")
    return seconds


def _be_silent(task: str, done: int, total: int, unit: str) -> None:
    """Take the progress and do nothing."""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
