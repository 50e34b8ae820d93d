"""Suites of the harness in YAML: the tasks whose values are compared, and the tasks that are timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evalsvc.errors import InvalidSuite
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.spec import catalog
from evalsvc.spec.bounds import Seed
from evalsvc.spec.protocol import digest
from evalsvc.spec.suite import check_keys, parse_suite, validation_message
from evalsvc.spec.yaml_text import read_yaml_mapping

TIMED = "speed-"
"""Beginning of the names of tasks that hold times."""

Task = Mapping[str, Any]
"""A task as the suite has it. Defaults are left to the code that runs the task, which may be that of another commit."""


class Checkpoint(BaseModel):
    """The checkpoint that every task evaluates. Paths start from the folder of the suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    layout: str
    base: str | None = None


class Speed(BaseModel):
    """The tasks that are timed, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: int = Field(default=12, ge=MIN_ITEMS, le=1000)
    calls: int = Field(default=1, ge=1, le=100)
    tasks: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=64)


class _Content(BaseModel):
    """A suite as its file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""
    checkpoint: Checkpoint
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, max_length=16)
    headline: tuple[str, ...] = Field(default=(), max_length=16)
    quality: tuple[dict[str, Any], ...] = Field(default=(), max_length=64)
    speed: Speed | None = None

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice; list each once")
        return seeds


@dataclass(frozen=True)
class Bench:
    """A checked suite."""

    name: str
    folder: Path
    """Folder that relative paths start from."""
    weights: Path
    layout: Path
    base: Path | None
    headline: Sequence[str]
    """Metrics whose history is drawn."""
    quality: Sequence[Task]
    """Tasks that are evaluated, once for each seed."""
    seeded: Mapping[str, Mapping[int, str]]
    """Names of the tasks that differ only in their seed, by seed, of each task that draws."""
    timed: Sequence[Task]
    """Tasks that are timed."""
    turns: int
    """Number of turns of each timed task."""
    calls: int
    """Number of calls in a turn; the turn's time is their median."""

    digest: str
    """The digest of the file's content but for description and headline, with paths as the file has them."""


def read_bench(path: Path) -> Bench:
    """Read a suite from a YAML file, and name the suite after the file.

    Raises:
        InvalidSuite: the file cannot be read, or is no valid suite; the message names the key.
        UnknownName: no task has a kind that the suite names.
    """
    content = _parse(path)
    folder, checkpoint, speed = path.resolve().parent, content.checkpoint, content.speed
    quality = [task for given in content.quality for task in _with_seeds(given, content.seeds)]
    timed = list(speed.tasks) if speed else []
    _check_tasks(path, folder, quality, timed)
    return Bench(
        name=path.stem,
        folder=folder,
        weights=folder / checkpoint.weights,
        layout=folder / checkpoint.layout,
        base=folder / checkpoint.base if checkpoint.base else None,
        headline=content.headline,
        quality=quality,
        seeded={
            name_of(given): {int(task["seed"]): name_of(task) for task in _with_seeds(given, content.seeds)}
            for given in content.quality
            if _draws(given)
        },
        timed=timed,
        turns=speed.turns if speed else 0,
        calls=speed.calls if speed else 0,
        digest=digest(content.model_dump(mode="json", exclude={"description", "headline"})),
    )


def _check_tasks(path: Path, folder: Path, quality: Sequence[Task], timed: Sequence[Task]) -> None:
    """Check both lists of tasks as suites of evalsvc, and that no name is that of a timed task."""
    if not quality and not timed:
        raise InvalidSuite(f"{path}: the suite has neither `quality` nor `speed`; list the tasks of at least one")
    for key, tasks in (("quality", quality), ("speed", timed)):
        if tasks:
            parse_suite({"tasks": tasks}, f"{path.stem}.{key}", folder)
    if reserved := [name for name in map(name_of, quality) if name.startswith(TIMED)]:
        raise InvalidSuite(f"{path}: the task {reserved[0]!r} begins with {TIMED!r}, as times do; name it differently")


def name_of(task: Task) -> str:
    """Return the name of a task, which is its kind where the suite gives no name."""
    return str(task.get("name", task.get("kind")))


def _parse(path: Path) -> _Content:
    content = read_yaml_mapping(path, "suite", "seeds: [0, 1]", InvalidSuite)
    check_keys(f"the suite {path}", content, _Content.model_fields)
    try:
        return _Content.model_validate(content)
    except ValidationError as error:
        raise InvalidSuite(f"the suite {path}: {validation_message(error)}") from None


def _with_seeds(task: Task, seeds: Sequence[int]) -> Iterator[Task]:
    """Yield a task once for each seed, if it draws at random. The first seed keeps the name of the task."""
    if not _draws(task):
        yield task
        return
    for place, seed in enumerate(seeds):
        name = name_of(task) if place == 0 else f"{name_of(task)}-seed{seed}"
        yield {**task, "name": name, "seed": seed}


def _draws(task: Task) -> bool:
    """Return whether a task has a seed. What is no task at all is left to the check of the whole list."""
    kind = task.get("kind")
    return isinstance(kind, str) and "seed" in catalog.load("tasks", kind).model_fields
