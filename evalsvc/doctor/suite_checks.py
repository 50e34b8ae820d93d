"""The checks of `evalsvc suites check`: everything that is wrong with a suite, or missing, before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evalsvc.assets import locate_asset
from evalsvc.config import Settings
from evalsvc.doctor.checks import ASSET_PARAMETERS, asset_behind, check_lm_eval, data_files, paths_of
from evalsvc.errors import EvalsvcError, InvalidSuite, os_reason
from evalsvc.installation import missing_package
from evalsvc.spec import catalog
from evalsvc.spec.benchmark import BenchmarkSpec
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.new_suite import PLACEHOLDER
from evalsvc.spec.paths import Readable, local_data, require_readable
from evalsvc.spec.suite import Suite, TaskSpec, examine_suite
from evalsvc.tasks.language.spec import BenchmarkTask

TRANSFORMERS_PARAMETERS = ("clip", "dinov2")
"""Parameters of a task that need the package transformers."""


@dataclass(frozen=True)
class SuiteReport:
    """The result of checking a suite file."""

    tasks: Sequence[TaskSpec]
    """Tasks of the suite that could be read."""
    problems: Sequence[str]
    """Problems with place and remedy; empty if the suite can run."""
    notes: Sequence[str] = ()
    """Notes about the data, such as the format of a benchmark's file."""


def check_suite_file(path: Path, settings: Settings) -> SuiteReport:
    """Search for everything that keeps a suite from running, without a checkpoint.

    Raises:
        InvalidSuite: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSuite(f"the suite file {path} cannot be read: {os_reason(error)}; check the path") from None
    tasks, errors = examine_suite(content, path.stem, path.parent)
    problems, notes = [error.message for error in errors], list[str]()
    for task in tasks:
        wrong, task_notes = _check_benchmarks(task, settings)
        told = [*_missing_files(task, settings), *_missing_assets(task, settings), *wrong]
        problems += (f"task {task.name!r}: {problem}" for problem in told)
        notes += (f"task {task.name!r}: {note}" for note in task_notes)
    problems += _missing_packages(tasks, settings)
    return SuiteReport(tasks, list(dict.fromkeys(problems)), notes)


def _missing_files(task: TaskSpec, settings: Settings) -> Iterator[str]:
    located = {path: f"{where}: " for where, path in paths_of(task, settings)}
    for path in [*located, *data_files(Suite("", "", (task,)), settings)]:
        where = located.get(path, "benchmarks: ")
        if str(path).startswith(PLACEHOLDER):
            yield f"{where}{path} is a placeholder; replace it with your own path"
        elif problem := _path_problem(path, settings):
            yield where + problem


def _path_problem(path: Path, settings: Settings) -> str | None:
    try:
        require_readable(settings, path.resolve(), str(path))
    except EvalsvcError as error:
        return error.message
    if path.exists():
        return None
    if path.is_relative_to(settings.datasets_path):
        return f"{path} does not exist; add the file, or set EVALSVC_DATASETS to its folder"
    return f"{path} does not exist; correct the path"


def _missing_assets(task: TaskSpec, settings: Settings) -> Iterator[str]:
    for parameter in ASSET_PARAMETERS:
        name = task.parameters.get(parameter)
        if isinstance(name, str) and "/" not in name:
            try:
                locate_asset(asset_behind(name, settings), settings.assets_path)
            except EvalsvcError as error:
                yield f"{parameter}: {error.message}"
    reference = task.parameters.get("reference")
    if isinstance(reference, str) and not {"/", ":"} & set(reference):
        statistics = settings.statistics_path / f"{reference}.npz"
        if not statistics.exists():
            yield (
                f"reference: there are no statistics named {reference!r} in {settings.statistics_path}; run: evalsvc "
                "reference import, or use the path of a folder of images"
            )


def _missing_packages(tasks: Sequence[TaskSpec], settings: Settings) -> Iterator[str]:
    """Yield packages that are not installed here. Workers of a scheduler have their own installation."""
    if settings.scheduler:
        return
    if tasks and find_spec("torch") is None:
        yield missing_package("torch", "a task").message
    if any(task.parameters.get("benchmarks") for task in tasks):
        check = check_lm_eval(settings)
        if not check.ok:
            yield f"benchmarks need the package 'lm-eval', which is {check.found}; {check.do}"
    for name in TRANSFORMERS_PARAMETERS:
        if any(task.parameters.get(name) for task in tasks) and find_spec("transformers") is None:
            yield missing_package("transformers", f"the parameter {name!r}", "features").message
    for name, program in PROGRAMS.items():
        missing = [module for module in program.modules if find_spec(module) is None]
        if missing and any(task.parameters.get("extractor") == name for task in tasks):
            yield missing_package(missing[0], f"the extractor {name!r}", "reference").message


def _check_benchmarks(task: TaskSpec, settings: Settings) -> tuple[list[str], list[str]]:
    """Build the questions of each benchmark as for an evaluation. Return problems and notes."""
    problems, notes = list[str](), list[str]()
    if not issubclass(catalog.load("tasks", task.kind), BenchmarkTask) or not check_lm_eval(settings).ok:
        return problems, notes
    specs = [BenchmarkSpec(**item) for item in task.parameters["benchmarks"]]
    if not specs:
        return problems, notes
    # Imported here because lm-eval takes seconds to import, and only suites with benchmarks need it.
    from evalsvc.language.benchmarks import LoadOptions, load_benchmarks
    from evalsvc.language.definitions import Rules

    rules = Rules(bool(settings.allow_benchmark_code), partial(local_data, settings), Readable(settings))
    parameters = task.parameters
    chosen: dict[str, Any] = {name: parameters[name] for name in ("num_fewshot", "fewshot", "limit", "sample")}
    try:
        folders = tuple(Path(rules.resolve(folder)) for folder in parameters["include_path"])
    except EvalsvcError:
        return problems, notes  # a folder without permission is reported with the files
    options = LoadOptions(folders, rules=rules, **chosen)
    for spec in specs:
        alone = TaskSpec(task.kind, task.name, {**parameters, "benchmarks": [spec.model_dump(mode="json")]})
        if not any(_path_problem(path, settings) for path in data_files(Suite("", "", (alone,)), settings)):
            try:
                loaded = load_benchmarks([spec], options).benchmarks
            except EvalsvcError as error:
                problems.append(f"benchmarks: {error.message}")
            else:
                notes += (f"{item.name!r} has {item.form}'s rows in {spec.data}" for item in loaded if item.form)
    return problems, notes
