"""Engines: the programs that compute the stages of a task, by name.

A reference engine is a program that the field cites. Chosen in a suite's `engine`, or by `--engine STAGE=NAME`, it
computes one stage of a task on the same weights and data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata

from pydantic import BaseModel, ConfigDict

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.bounds import Word
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.suite import Suite, TaskSpec, parse_suite

OWN = "evalsvc"
"""Engine of every stage that names none."""

FLOAT64 = "float64"
"""Engine of the model that is evalsvc's own in float64, whatever the task's `dtype`."""

GROUPS: Mapping[str, str] = {"model": "models", "decoder": "decoder_engines", "scoring": "scorings"}
"""Stages whose engines the parameter `engine` names, and the groups of the catalog that have the engines."""


class Engine(BaseModel):
    """The parameter `engine` of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: Word | None = None
    """Program that computes the language model: `transformers`, `open_lm`, or `float64`, which is evalsvc in float64
    [evalsvc]."""
    decoder: Word | None = None
    """Program that computes the image decoder: `diffusers` [evalsvc]."""
    scoring: Word | None = None
    """Program that asks benchmarks: `hflm`, which is lm-eval's own model class [evalsvc]."""


EXTRACTOR = "extractor"
"""Stage whose engine is a task's parameter `extractor`, which also names the weights of evalsvc's own extractor."""

PACKAGES = {FLOAT64: "evalsvc", "hflm": "lm-eval"}
"""Distributions of engines that are called otherwise."""


def chosen_engines(engine: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return the engines of stages that the content of a task's `engine` gives to another program than evalsvc."""
    return {stage: name for stage, name in (engine or {}).items() if name is not None and name != OWN}


def engine_names(stage: str) -> list[str]:
    """Return the engines of a stage. Raises UnknownName for an unknown stage."""
    if stage not in (*GROUPS, EXTRACTOR):
        raise UnknownName.among("stage", stage, [*GROUPS, EXTRACTOR])
    return sorted({OWN, *(PROGRAMS if stage == EXTRACTOR else catalog.names(GROUPS[stage]))})


def release_of(engine: str) -> str:
    """Return the name of an engine with the version of its package, if that is installed."""
    package = PACKAGES.get(engine, engine)
    try:
        return f"{engine} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return engine


def parse_engines(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Parse options of the form STAGE=NAME."""
    pairs = []
    for text in texts:
        stage, equals, name = text.partition("=")
        if not equals:
            raise InvalidRequest(f"--engine is {text!r}; give a stage and an engine, such as model=open_lm")
        if name not in (known := engine_names(stage)):
            raise UnknownName.among(f"engine of the stage {stage}", name, known)
        pairs.append((stage, name))
    return pairs


def has_stage(task: TaskSpec, stage: str) -> bool:
    if stage == EXTRACTOR:
        return task.parameters.get(EXTRACTOR) is not None
    return stage in catalog.load("tasks", task.kind).stages


def with_engine(task: TaskSpec, stage: str, name: str) -> TaskSpec:
    """Return a task with another engine for one of its stages, not validated again."""
    if stage != EXTRACTOR:
        engines = {**(task.parameters.get("engine") or {}), stage: name}
        return TaskSpec(task.kind, task.name, {**task.parameters, "engine": engines})
    program = {"extractor": name, "resize": PROGRAMS[name].resize} if name in PROGRAMS else {"extractor": "inception"}
    return TaskSpec(task.kind, task.name, {**task.parameters, **program})


def with_engines(suite: Suite, engines: Sequence[tuple[str, str]]) -> Suite:
    """Return a suite with other engines for the stages of its tasks."""
    tasks = suite.tasks
    for stage, name in engines:
        if not any(has_stage(task, stage) for task in tasks):
            raise InvalidRequest(
                f"--engine {stage}={name}: no task of the suite {suite.name} has the stage {stage}; leave it out"
            )
        tasks = tuple(with_engine(task, stage, name) if has_stage(task, stage) else task for task in tasks)
    return parse_suite(replace(suite, tasks=tasks).to_json(), suite.name)
