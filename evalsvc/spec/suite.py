"""Suites in YAML or JSON: parsing, checking, and identification by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evalsvc.errors import EvalsvcError, InvalidSuite, UnknownName, os_reason, type_name
from evalsvc.spec import catalog
from evalsvc.spec.bounds import excess, first_repeated, shortened
from evalsvc.spec.documents.document import validation_message as validation_message
from evalsvc.spec.names import NAME
from evalsvc.spec.protocol import digest
from evalsvc.spec.yaml_text import YamlError, read_yaml

SHIPPED_SUITES = Path(str(resources.files("evalsvc") / "suites"))
"""Folder of the suites that come with evalsvc."""

MAX_TASKS = 256
"""Maximum number of tasks in a suite. A suite is checked within a request."""

MAX_YAML = 1 << 17
"""Maximum number of characters of a suite in YAML, which takes forty times as long to read as JSON."""

MAX_YAML_VALUES = 10_000
"""Maximum number of values, keys and containers of a suite in YAML: 256 tasks of 19 parameters. Reading this many takes
a third of a second."""

MAX_HEADLINE = 6
"""Maximum number of metrics in a suite's headline."""

MAX_METRIC_NAME = 256
"""Maximum number of characters of a metric in a headline. Matching names against patterns is slow for long names."""

_SUITE_KEYS = ("name", "description", "headline", "tasks")


@dataclass(frozen=True)
class TaskSpec:
    """A checked task of a suite."""

    kind: str
    name: str
    parameters: Mapping[str, Any]
    """All parameters except the name, including those that have their default."""


@dataclass(frozen=True)
class Suite:
    """A checked suite."""

    name: str
    description: str
    tasks: tuple[TaskSpec, ...]
    headline: tuple[str, ...] = ()
    """Metrics to show first, the most important metric first."""

    @property
    def digest(self) -> str:
        """The digest of the tasks, which identifies the suite. Name, description and headline change no number."""
        return digest([[task.kind, task.name, dict(task.parameters)] for task in self.tasks])

    @property
    def reads(self) -> set[str]:
        """The contents of checkpoints that the tasks evaluate: `weights`, `images`, or both."""
        return {catalog.load("tasks", task.kind).reads for task in self.tasks}

    def tasks_to_json(self) -> list[dict[str, object]]:
        """Return the tasks as JSON, with all parameters."""
        return [{"kind": task.kind, "name": task.name, **task.parameters} for task in self.tasks]

    def to_json(self) -> dict[str, object]:
        """Return the suite as JSON, which `parse_suite` reads again."""
        headline = {"headline": list(self.headline)} if self.headline else {}
        return {"name": self.name, "description": self.description, **headline, "tasks": self.tasks_to_json()}


def parse_suite(
    content: str | bytes | Mapping[str, object],
    name: str,
    base: Path | None = None,
    allowed: Callable[[str], object] | None = None,
) -> Suite:
    """Parse and check a suite in YAML or JSON, or as a mapping. Relative data paths start from the folder `base`;
    `allowed` raises an error for a data path that may not be read."""
    mapping = _read_mapping(content, name)
    check_keys(f"suite {name!r}", mapping, _SUITE_KEYS)
    tasks = _listed_tasks(name, mapping)
    context = {"base": base, "suite": name, "allowed": allowed, "paths": count(1)}
    return _assembled(name, mapping, [_parse_task(name, index, task, context) for index, task in enumerate(tasks)])


def examine_suite(
    content: str | bytes | Mapping[str, object], name: str, base: Path | None = None
) -> tuple[list[TaskSpec], list[EvalsvcError]]:
    """Return the valid tasks of a suite, and all errors for which `parse_suite` refuses the suite."""
    errors: list[EvalsvcError] = []
    try:
        mapping = _read_mapping(content, name)
        errors += _unknown_keys(f"suite {name!r}", mapping, _SUITE_KEYS)
        tasks = _listed_tasks(name, mapping)
    except EvalsvcError as error:
        return [], [*errors, error]
    context = {"base": base, "suite": name, "paths": count(1)}
    specs = []
    for index, task in enumerate(tasks):
        try:
            fields = ("kind", *_task_class(name, index, task).model_fields)
            where = f"suite {name!r}, task {index + 1} ({task['kind']})"
            errors += _unknown_keys(where, task, fields)
            known = {key: value for key, value in task.items() if key in fields}
            specs.append(_parse_task(name, index, known, context))
        except InvalidSuite as error:
            errors.append(error)
        except EvalsvcError as error:  # raised by the catalog, which does not know the number of the task
            errors.append(InvalidSuite(f"suite {name!r}, task {index + 1}: {error.message}"))
    if errors:  # the headline may name metrics of tasks that were refused
        mapping = {key: value for key, value in mapping.items() if key != "headline"}
    try:
        _assembled(name, mapping, specs)
    except EvalsvcError as error:
        errors.append(error)
    return specs, errors


def _read_mapping(content: str | bytes | Mapping[str, object], name: str) -> Mapping[str, object]:
    mapping: object = content
    if isinstance(content, (str, bytes)):
        if len(content) > MAX_YAML:
            raise InvalidSuite(
                f"suite {name!r} is {len(content):,} characters of YAML; give at most {MAX_YAML:,}, or send it as JSON"
            )
        try:
            mapping = read_yaml(content, MAX_YAML_VALUES)
        except YamlError as error:
            raise InvalidSuite(f"suite {name!r} is not valid YAML: {error}") from None
    if not isinstance(mapping, Mapping):
        raise InvalidSuite(f"suite {name!r} is {type_name(mapping)}; write a mapping with a list `tasks`")
    return mapping


def _listed_tasks(name: str, mapping: Mapping[str, object]) -> list[Any]:
    if not NAME.fullmatch(name):
        raise InvalidSuite(
            f"suite name {name!r}: use at most 128 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if mapping.get("name", name) != name:
        raise InvalidSuite(
            f"suite {name!r} calls itself {shortened(mapping['name'])}; make the two names equal or leave `name` out"
        )
    tasks = mapping.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise InvalidSuite(f"suite {name!r} has no list `tasks`; give at least one, e.g. `- kind: loss`")
    if len(tasks) > MAX_TASKS:
        raise InvalidSuite(
            f"suite {name!r} has {len(tasks):,} tasks; give at most {MAX_TASKS}, and the rest in another suite"
        )
    _require_bounded(name, mapping)
    return tasks


def _assembled(name: str, mapping: Mapping[str, object], specs: Sequence[TaskSpec]) -> Suite:
    if (twice := first_repeated(spec.name for spec in specs)) is not None:
        raise InvalidSuite(f"suite {name!r} has two tasks named {twice!r}; give one of them another `name`")
    description = mapping.get("description")
    if not isinstance(description, str | None):
        raise InvalidSuite(f"suite {name!r}: the description is {type_name(description)}; put it in quotes")
    headline = _headline(f"suite {name!r}", mapping.get("headline"), specs)
    suite = Suite(name, (description or "").strip(), tuple(specs), headline)
    # The service stores a suite with all defaults, and parses the stored suite again.
    _require_bounded(name, suite.to_json())
    return suite


def _headline(where: str, content: object, specs: Sequence[TaskSpec]) -> tuple[str, ...]:
    if content is None:
        return ()
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise InvalidSuite(f"{where}: headline is {shortened(content)}; give a list of metrics, e.g. [loss/image]")
    if len(content) > MAX_HEADLINE:
        raise InvalidSuite(f"{where}: headline has {len(content):,} metrics; name at most {MAX_HEADLINE}")
    if (longest := max(map(len, content), default=0)) > MAX_METRIC_NAME:
        raise InvalidSuite(
            f"{where}: headline has a metric of {longest:,} characters; a metric's name has at most {MAX_METRIC_NAME}"
        )
    if (twice := first_repeated(content)) is not None:
        raise InvalidSuite(f"{where}: headline has {shortened(twice)} twice; remove one of the two")
    tasks = [build_task(spec) for spec in specs] if content else []
    for name in content:
        if not any(task.may_measure(name) for task in tasks):
            known = dict.fromkeys(usual for task in tasks for usual in task.usual_metrics())
            raise InvalidSuite(f"{where}: headline: {UnknownName.among('metric', name, known).message}")
    return tuple(content)


def build_task(spec: TaskSpec) -> Any:
    """Return the `Task` object of a checked task."""
    return catalog.load("tasks", spec.kind)(name=spec.name, **spec.parameters)


def suite_files(folder: Path | None) -> dict[str, Path]:
    """Return the suite files by name: those of `folder`, and the shipped files whose names `folder` does not have. No
    file is read, so a broken suite does not affect the others."""
    if folder is not None and not folder.is_dir():
        raise InvalidSuite(f"the suite folder {folder} does not exist; create it or change --suites (EVALSVC_SUITES)")
    folders = (SHIPPED_SUITES, folder) if folder else (SHIPPED_SUITES,)
    return {path.stem: path for suites in folders for path in sorted(suites.glob("*.yaml"))}


def load_suite(path: Path) -> Suite:
    """Read a suite from a YAML or JSON file, and name the suite after the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSuite(f"the suite file {path} cannot be read: {os_reason(error)}; check the path") from None
    return parse_suite(content, path.stem, path.parent)


def find_suite(name: str, folder: Path | None) -> Suite:
    """Return a suite by the path of its file, or by name from `folder` or from the shipped suites."""
    if name.endswith((".yaml", ".yml", ".json")):
        return load_suite(Path(name))
    files = suite_files(folder)
    if name not in files:
        raise UnknownName.among("suite", name, files, "a path that ends in .yaml or .json works too")
    return load_suite(files[name])


def _task_class(suite: str, index: int, content: Any) -> type[BaseModel]:
    where = f"suite {suite!r}, task {index + 1}"
    if not isinstance(content, Mapping):
        raise InvalidSuite(f"{where} is {shortened(content)}; write a mapping with the key `kind`, e.g. `- kind: loss`")
    if "kind" not in content:
        raise InvalidSuite(f"{where} has no `kind`; choose one of: {', '.join(catalog.names('tasks'))}")
    if not isinstance(kind := content["kind"], str):
        known = ", ".join(catalog.names("tasks"))
        raise InvalidSuite(f"{where}: the kind is {shortened(kind)}; choose one of: {known}")
    task_class: type[BaseModel] = catalog.load("tasks", kind)
    return task_class


def _parse_task(suite: str, index: int, content: Any, context: Mapping[str, object]) -> TaskSpec:
    task_class = _task_class(suite, index, content)
    where, kind = f"suite {suite!r}, task {index + 1}", content["kind"]
    parameters = {str(key): value for key, value in content.items() if key != "kind"}
    name = parameters.setdefault("name", kind)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidSuite(f"{where}: the name is {shortened(name)}; use at most 128 letters, digits, '.', '_' and '-'")
    check_keys(f"{where} ({kind})", parameters, task_class.model_fields)
    try:
        task = task_class.model_validate(parameters, context=dict(context))
    except ValidationError as error:
        raise InvalidSuite(f"{where} ({kind}): {validation_message(error)}") from None
    return TaskSpec(kind, name, task.model_dump(mode="json", exclude={"name"}))


def check_keys(
    where: str, mapping: Mapping[str, object], known: Iterable[str], error: type[EvalsvcError] = InvalidSuite
) -> None:
    """Raise `error` for a key of `mapping` that is not in `known`; the message lists similar keys."""
    for unknown in _unknown_keys(where, mapping, known, error):
        raise unknown


def _unknown_keys(
    where: str, mapping: Mapping[str, object], known: Iterable[str], error: type[EvalsvcError] = InvalidSuite
) -> Iterator[EvalsvcError]:
    for key in mapping:
        if key not in known:
            yield error(f"{where}: {UnknownName.among('key', str(key), known).message}")


def _require_bounded(name: str, document: object) -> None:
    if too_much := excess(document):
        raise InvalidSuite(f"suite {name!r}: {too_much}")
