"""The checks of `evalsvc suites check`: everything that is wrong with a suite or with rules of the gate, or missing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from pkgutil import resolve_name

from evalsvc.compare.gate_rules import KEYS, read_rules
from evalsvc.config import Settings
from evalsvc.data.captions import chosen_captions
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.data.tokens import read_records, require_text
from evalsvc.doctor.checks import check_lm_eval, files_of, missing_inputs, path_problem, paths_of
from evalsvc.errors import EvalsvcError, InvalidRequest, InvalidSuite, UnknownName, near_misses, os_reason
from evalsvc.installation import missing_package
from evalsvc.metrics.definitions import find_definitions, plain_names
from evalsvc.spec import catalog
from evalsvc.spec.benchmark import BenchmarkSpec
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.paths import Readable, local_data
from evalsvc.spec.suite import TaskSpec, examine_suite
from evalsvc.spec.yaml_text import read_yaml_mapping
from evalsvc.tasks.image_task import require_labels
from evalsvc.tasks.language.spec import BenchmarkTask

SECONDS = 20.0
"""Seconds after which a file of many records is read no further."""

OPEN_BY_TORCH = "evalsvc.worker.suite_files:open_by_torch"
"""Function that opens files by PyTorch: named, not imported, because the machine of a service alone has no PyTorch."""


@dataclass
class SuiteReport:
    entries: int
    """Number of tasks of the suite, or of rules, that could be read."""
    problems: list[str]
    """Problems with place and remedy; empty if the suite can run."""
    notes: list[str] = field(default_factory=list)


def check_suite_file(path: Path, settings: Settings) -> SuiteReport:
    """Search for everything that keeps a suite from running, without a checkpoint."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSuite(f"the suite file {path} cannot be read: {os_reason(error)}; check the path") from None
    tasks, errors = examine_suite(content, path.stem, path.parent)
    report = SuiteReport(len(tasks), [error.message for error in errors])
    for task in tasks:
        notes: list[str] = []
        unreadable = chain(_check_data(task, settings, notes), _check_benchmarks(task, settings, notes))
        problems = [*missing_inputs(task, settings), *unreadable]
        report.problems += (f"task {task.name!r}: {problem}" for problem in problems)
        report.notes += (f"task {task.name!r}: {note}" for note in notes)
    report.problems = list(dict.fromkeys([*report.problems, *_missing_packages(tasks, settings)]))
    return report


def has_rules(path: Path) -> bool:
    """Return whether a file has rules of the gate and no suite, by its keys."""
    try:
        keys = read_yaml_mapping(path, "file", "tasks: []", InvalidSuite).keys()
    except InvalidSuite:
        return False
    return "tasks" not in keys and not keys.isdisjoint(KEYS)


def check_rules_file(path: Path) -> SuiteReport:
    """Search for keys, values and names of metrics that are wrong in a file of rules, without results."""
    try:
        rules = read_rules(path).rules
    except InvalidRequest as error:
        return SuiteReport(0, [error.message])
    report = SuiteReport(len(rules), [])
    for number, rule in enumerate(rules, 1):
        # The first half is the name of a task or benchmark.
        name, where = rule.metric.rpartition("/")[2], f"rule {number} ({rule.metric})"
        definitions = find_definitions(name)
        if not definitions and near_misses(name, plain_names()):
            report.problems.append(f"{where}: {UnknownName.among('metric', name, plain_names()).message}")
        elif not definitions:
            report.notes.append(f"{where}: the metric is one of lm-eval or of a plug-in, or the name is wrong")
        elif rule.direction is None and all(definition.direction == "none" for definition in definitions):
            report.problems.append(f"{where}: no side of the metric is better; give the rule a `direction`")
    return report


def _check_data(task: TaskSpec, settings: Settings, notes: list[str]) -> Iterator[str]:
    if task.kind not in catalog.COMPONENTS["tasks"]:
        return
    for where, path in paths_of(task, settings):
        if path_problem(path, settings):
            continue
        end = time.monotonic() + SECONDS
        try:
            for count, _ in enumerate(_opened(where, path, task, settings), 1):
                if time.monotonic() > end:
                    part = f"the first {count:,} records of {path} were read in {SECONDS:g} s, and not the rest"
                    notes.append(f"{where}: {part}")
                    break
        except EvalsvcError as error:
            yield f"{where}: {error.message}"


def _opened(where: str, path: Path, task: TaskSpec, settings: Settings) -> Iterable[object]:
    parameters, allow = task.parameters, Readable(settings)
    if where == "tokenizer":
        read_tokenizer(path, allow)
    elif where in ("general_text", "text") or (where == "data" and not parameters.get("images")):
        # Whether text needs a tokenizer depends on the layout, so a text counts as one id here.
        records = read_records(path, lambda text: [0][: len(text)], allow)
        texts = islice(records, parameters[f"{where}_limit"]) if "text" in where else ()
        return chain((require_text(path, record, where) for record in texts), records)
    elif where in ("captions", "data"):
        captions = chosen_captions(path, parameters, allow)
        if parameters.get("classifier") or parameters.get("by_category"):
            require_labels(str(path), [caption.label for caption in captions])
    elif find_spec("torch") is not None:
        opened: Iterable[object] = resolve_name(OPEN_BY_TORCH)(where, path, task, settings)
        return opened
    return ()


def _missing_packages(tasks: Sequence[TaskSpec], settings: Settings) -> Iterator[str]:
    """Yield packages that are not installed here. Workers of a scheduler have their own installation."""
    if settings.scheduler:
        return
    used = {name for task in tasks for name, value in task.parameters.items() if value}
    extractors = {task.parameters.get("extractor") for task in tasks}
    needs = [("torch", "a task", "worker")] if tasks else []
    needs += [("transformers", f"the parameter {name!r}", "features") for name in ("clip", "dinov2") if name in used]
    for name in (name for name in PROGRAMS if name in extractors):
        needs += [(module, f"the extractor {name!r}", "reference") for module in PROGRAMS[name].modules]
    for module, purpose, extra in needs:
        if find_spec(module) is None:
            yield missing_package(module, purpose, extra).message
    check = check_lm_eval(settings)
    if "benchmarks" in used and not check.ok:
        yield f"benchmarks need the package 'lm-eval', which is {check.found}; {check.do}"


def _check_benchmarks(task: TaskSpec, settings: Settings, notes: list[str]) -> Iterator[str]:
    if not issubclass(catalog.load("tasks", task.kind), BenchmarkTask) or not check_lm_eval(settings).ok:
        return
    parameters = task.parameters
    specs = [BenchmarkSpec(**item) for item in parameters["benchmarks"]]
    if not specs:
        return
    # Imported here because lm-eval takes seconds to import, and only suites with benchmarks need it.
    from evalsvc.language.benchmarks import LoadOptions, load_benchmarks

    try:
        folders = [Path(local_data(settings, folder)) for folder in parameters["include_path"]]
    except EvalsvcError:
        return  # a folder without permission is reported with the files
    chosen = {name: parameters[name] for name in ("num_fewshot", "fewshot", "limit", "sample")}
    options = LoadOptions.of(settings, folders, **chosen)
    for spec in specs:
        alone = TaskSpec(task.kind, task.name, {**parameters, "benchmarks": [spec.model_dump(mode="json")]})
        if any(path_problem(path, settings) for _, path in files_of(alone, settings)):
            continue
        try:
            loaded = load_benchmarks([spec], options).benchmarks
        except EvalsvcError as error:
            yield f"benchmarks: {error.message}"
        else:
            notes += (f"{item.name!r} has {item.form}'s rows in {spec.data}" for item in loaded if item.form)
