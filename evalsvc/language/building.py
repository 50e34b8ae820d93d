"""Expansion of names to benchmarks, as in lm-eval, and lm-eval's task object from a benchmark's definition and data."""

from __future__ import annotations

import dis
import logging
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import datasets
import numpy
from jinja2 import TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

from evalsvc.errors import AssetMissing, EvalsvcError, InvalidData, InvalidSuite, MissingPackage
from evalsvc.language.catalog import Entry, Registry
from evalsvc.language.definitions import Config, Definition, Rules, local_files, mapping_of, read_definition, text_of
from evalsvc.language.hub import Rows, Source, one_line, require_named
from evalsvc.language.private import example_pool, metric_functions
from evalsvc.language.rows import plain_rows, read_rows
from evalsvc.spec.paths import DATASETS

log = logging.getLogger(__name__)

FEWSHOT_SEED = 1234
"""Seed of the draw of solved examples, lm-eval's default."""

PACKAGES = {"sklearn": "scikit-learn", "rouge_score": "rouge-score", "bert_score": "bert-score"}
"""Packages whose names for installation and import differ."""

_UNDEFINED = re.compile(r"'[A-Za-z_]\w*' is undefined")
"""Jinja's message about an undefined name in the template; other messages of Jinja may quote the row."""

EVALUATED = ("test_split", "validation_split")

MAX_DEPTH = 20

_OF_GROUPS = {item.name for item in fields(GroupConfig)}
"""Keys of a group's file that describe the group; all other keys are for its members."""

Load = Callable[[Source], Rows]
"""Function that returns the rows of a dataset on the hub: `hub.cached` or `hub.fetch`."""

Fewshot = Literal["configured", "first"]
"""Choice of solved examples: as the benchmark says, or the first examples, equal for every document."""


@dataclass(frozen=True)
class Leaf:
    """Benchmark with the changes of the groups around it."""

    name: str
    path: Path | None
    """YAML file of the benchmark; None if a group's file defines it."""
    overrides: Config = field(default_factory=dict)
    """Keys of the groups around the benchmark that replace those of the file."""
    closed: bool = False
    """Whether a submitter's group changes the file, which then must keep to `schema`, also for lm-eval's files."""
    unsafe: bool = False
    """Whether a group around the benchmark says `unsafe_code`."""

    def leaves(self) -> Iterator[Leaf]:
        yield self


@dataclass(frozen=True)
class Branch:
    config: Config
    members: tuple[Leaf | Branch, ...]

    def leaves(self) -> Iterator[Leaf]:
        for member in self.members:
            yield from member.leaves()


def expand(name: str, registry: Registry, rules: Rules) -> tuple[Leaf | Branch, ...]:
    expanded = _Expansion(registry, rules).of(registry.find(name), _Within(), 0)
    if not any(True for item in expanded for _ in item.leaves()):
        raise InvalidData(f"{name!r} stands for no benchmark; see `evalsvc benchmarks list {name}`")
    return expanded


@dataclass(frozen=True)
class _Within:
    """Changes that the groups around a member make."""

    overrides: Config = field(default_factory=dict)
    trusted: bool = True
    """Whether all of these groups are lm-eval's or the operator's."""
    unsafe: bool = False

    @property
    def closed(self) -> bool:
        """Whether a submitter changes more than the number of shots."""
        return not self.trusted and bool(self.overrides.keys() - {"num_fewshot"})

    def changed(self, overrides: Config, *, outer_wins: bool = False) -> _Within:
        merged = {**overrides, **self.overrides} if outer_wins else {**self.overrides, **overrides}
        return replace(self, overrides=merged, unsafe=self.unsafe or bool(overrides.get("unsafe_code")))

    def leaf(self, name: str, path: Path | None) -> Leaf:
        return Leaf(name, path, self.overrides, self.closed, self.unsafe)


@dataclass(frozen=True)
class _Expansion:
    registry: Registry
    rules: Rules
    opened: set[str] = field(default_factory=set)
    """Groups that were expanded: two groups that list each other twice would stand for any number of benchmarks."""

    def of(self, entry: Entry, within: _Within, depth: int) -> tuple[Leaf | Branch, ...]:
        if entry.kind == "tag":
            members = (self.registry.get(name) for name in entry.members)
            return tuple(within.leaf(item.name, item.path) for item in members if item)
        if entry.kind == "benchmark" or entry.path is None:
            return (within.leaf(entry.name, entry.path),)
        definition = read_definition(entry.path, self.rules, functions=True, closed=within.closed)
        inner = replace(
            within, trusted=within.trusted and definition.trusted, unsafe=within.unsafe or definition.unsafe
        )
        return (self.branch(entry.name, definition.config, inner, depth),)

    def branch(self, name: str, config: Config, within: _Within, depth: int) -> Branch:
        if name in self.opened or depth > MAX_DEPTH:
            raise InvalidData(f"the group {name!r} is a member of itself, or a member twice; list it once")
        self.opened.add(name)
        group_config = {key: value for key, value in config.items() if key in _OF_GROUPS} | {"group": name}
        inner = within.changed({key: value for key, value in config.items() if key not in _OF_GROUPS}, outer_wins=True)
        listed = config.get("task")
        members: list[Leaf | Branch] = []
        for item in listed if isinstance(listed, list) else [listed]:
            members += self.member(name, item, inner, depth + 1)
        return Branch(group_config, tuple(members))

    def member(self, group: str, item: object, within: _Within, depth: int) -> tuple[Leaf | Branch, ...]:
        content = item if isinstance(item, dict) else {"task": item}
        key = "group" if "group" in content else "task"
        name = content.get(key)
        if not isinstance(name, str):
            raise InvalidData(f"the group {group!r} lists {type(item).__name__}; a member is a name, or has a `task`")
        # `task` must not be passed on: lm-eval then gives every member of a nested group or tag its name.
        merged = within.changed({other: value for other, value in content.items() if other != key})
        entry = self.registry.get(name)
        if entry is not None:
            return self.of(entry, merged, depth)
        if key == "group":
            return (self.branch(f"{group}::{name}", content, within, depth),)
        if "dataset_path" not in merged.overrides and "custom_dataset" not in merged.overrides:
            raise InvalidData(f"the group {group!r} has the member {name!r}, which no YAML file defines; correct it")
        return (merged.leaf(f"{group}::{name}", None),)


@dataclass(frozen=True)
class Changes:
    num_fewshot: int | None = None
    fewshot: Fewshot = "configured"
    data: Path | None = None
    """Local file with the rows, for every split."""


def define(leaf: Leaf, rules: Rules) -> Definition:
    """Return the merged definition of a benchmark's file and the groups around it. Functions are not imported."""
    definition = Definition({}, trusted=not leaf.closed)
    if leaf.path is not None:
        definition = read_definition(leaf.path, rules, functions=False, closed=leaf.closed)
    config = {**definition.config, **leaf.overrides}
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise InvalidSuite(f"benchmark {leaf.name!r} asks about images or sound; choose a benchmark of text only")
    if (definition.unsafe or leaf.unsafe) and not rules.allow_code:
        raise InvalidSuite(
            f"benchmark {leaf.name!r} runs code that the model writes; remove the benchmark, or have the operator set "
            "EVALSVC_ALLOW_BENCHMARK_CODE=1"
        )
    return Definition(config, definition.trusted and not leaf.closed)


def build_task(leaf: Leaf, definition: Definition, changes: Changes, rules: Rules, load: Load) -> Task:
    """Build lm-eval's task object. Unlike in lm-eval, explicit `num_fewshot` wins over a definition with 0, and the
    document in question is never among its solved examples, whichever split these are from."""
    config = definition.config
    if definition.trusted and leaf.path is not None:
        with blamed(leaf.name, "its definition"):
            config = {**read_definition(leaf.path, rules, functions=True).config, **leaf.overrides}
    config = {key: value for key, value in deepcopy(config).items() if key not in ("tag", "group", "task_list")}
    config |= {"task": leaf.name}
    if is_program := "class" in config:
        if changes.data is not None:
            raise InvalidSuite(f"benchmark {leaf.name!r} is a program that loads its data itself; remove `data`")
        if changes.fewshot == "first" and changes.num_fewshot:
            raise InvalidSuite(f"benchmark {leaf.name!r} is a program that draws its examples; remove `fewshot: first`")
    else:
        config = _with_shots(config, changes)
        if changes.data is not None:
            config = _with_rows(leaf.name, config, {str(config["test_split"]): read_rows([changes.data], rules.allow)})
        elif not callable(config.get("custom_dataset")):
            config = _with_rows(leaf.name, config, _rows(leaf.name, config, definition.trusted, rules, load))
    with blamed(leaf.name, "document 0"):
        task: Task = next(iter(TaskManager(include_defaults=False).load([config])["tasks"].values()))
    task.set_fewshot_seed(FEWSHOT_SEED)
    if not is_program:
        _check_pool(leaf.name, task)
    elif changes.num_fewshot is not None:
        task.set_config("num_fewshot", changes.num_fewshot)
    require_metrics(leaf.name, task)
    return task


@contextmanager
def blamed(name: str, what: str) -> Iterator[None]:
    """Turn exceptions of lm-eval and a benchmark's code into errors that name the benchmark and its part `what`."""
    try:
        yield
    except (EvalsvcError, MemoryError):  # `limited_memory` explains the latter
        raise
    except ImportError as error:
        raise _missing(name, error) from error
    except TemplateSyntaxError as error:  # quotes only the template
        raise InvalidData(
            f"benchmark {name!r}, {what}: a template is not valid: {one_line(error)}; correct it"
        ) from error
    except SecurityError as error:
        raise InvalidData(
            f"benchmark {name!r}, {what}: a template uses an unsafe attribute; use only values of the row in templates"
        ) from error
    except UndefinedError as error:
        undefined = _UNDEFINED.fullmatch(str(error))
        missing = undefined[0] if undefined else "a name in a template is undefined"
        raise InvalidData(
            f"benchmark {name!r}, {what}: {missing} in its rows; correct the template or the data"
        ) from error
    except ConnectionError as error:
        raise AssetMissing(f"benchmark {name!r} needs the network ({one_line(error)})") from error
    except Exception as error:
        log.debug("benchmark %r, %s: %s", name, what, error)  # may quote a row that the submitter must not see
        look = "; check its options and its right answer" if what.startswith("document") else ""
        message = f"benchmark {name!r}, {what} does not fit what lm-eval makes of it ({type(error).__name__}){look}"
        raise InvalidData(message) from error


@contextmanager
def seeded() -> Iterator[None]:
    """Seed the global random numbers as `lm_eval` does within the context: code of benchmarks shuffles with them."""
    before, numpy_before = random.getstate(), numpy.random.get_state()
    random.seed(0)
    numpy.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(before)
        numpy.random.set_state(numpy_before)


def require_metrics(name: str, task: Task) -> None:
    """Raise for a metric that could not be computed, before the hours of work."""
    computed = task.config.process_results is None
    for metric, function in metric_functions(task).items():
        if function is None and computed:
            if find_spec("evaluate") is None:
                raise MissingPackage(
                    f"benchmark {name!r}, metric {metric!r} needs the package 'evaluate'; run: pip install evaluate"
                )
            raise AssetMissing(f"benchmark {name!r}: the library evaluate has no metric {metric!r} in its cache")
        _require_imports(name, function)
    for metric, function in task.aggregation().items():
        if function is None:
            known = ", ".join(sorted(AGGREGATION_REGISTRY))
            raise InvalidData(f"benchmark {name!r}, metric {metric!r}: no such aggregation; choose from {known}")
        _require_imports(name, function)


def _with_shots(config: Config, changes: Changes) -> Config:
    evaluated = text_of(config, *EVALUATED)
    fewshot_config = mapping_of(config, "fewshot_config")
    shots = config.get("num_fewshot") if changes.num_fewshot is None else changes.num_fewshot
    if changes.data is not None:  # all rows are evaluated, and solved examples are drawn from the rows
        evaluated = evaluated or "test"
        others = dict.fromkeys(("validation_split", "training_split", "fewshot_split"))
        config = {**config, **others, "test_split": evaluated}
        fewshot_config = {key: value for key, value in fewshot_config.items() if key != "split"}
    if evaluated is None:
        raise InvalidData(f"benchmark {config['task']!r} names no `test_split` and no `validation_split`; give one")
    if not shots:
        # Without solved examples, lm-eval still reads their whole split, which may be the largest by far.
        fewshot_config = {**fewshot_config, "split": None, "samples": []}
        return {**config, "num_fewshot": 0, "fewshot_split": None, "fewshot_config": fewshot_config}
    if changes.fewshot == "first":
        fewshot_config = {**fewshot_config, "sampler": "first_n"}
    if _split_of_shots(config, fewshot_config) == evaluated:
        fewshot_config = {**fewshot_config, "split": evaluated}
        config = {**config, "test_split": evaluated}
    return {**config, "num_fewshot": shots, "fewshot_config": fewshot_config}


def _split_of_shots(config: Config, fewshot_config: Config) -> str | None:
    named = text_of(fewshot_config, "split") or text_of(config, "fewshot_split")
    if named or fewshot_config.get("samples") is not None:
        return named
    return text_of(config, "training_split", "validation_split", "test_split")


def _splits(config: Config) -> tuple[str, ...]:
    evaluated = text_of(config, *EVALUATED)
    shots = _split_of_shots(config, mapping_of(config, "fewshot_config")) if config["num_fewshot"] else None
    return tuple(dict.fromkeys(split for split in (evaluated, shots) if split))


def _with_rows(name: str, config: Config, rows: Rows) -> Config:
    """Return `config` with its rows instead of their source, so that lm-eval fetches nothing."""
    for split in _splits(config):
        if split not in rows:
            present = ", ".join(map(repr, rows))
            raise InvalidData(f"benchmark {name!r} uses the split {split!r}, its data have {present}; correct its YAML")
        if not len(rows[split]):
            raise InvalidData(f"benchmark {name!r}: the split {split!r} of its data is empty; add rows")
    given = datasets.DatasetDict(rows)
    return {**config, "custom_dataset": lambda **_: given, "dataset_kwargs": None}


def _rows(name: str, config: Config, trusted: bool, rules: Rules, load: Load) -> Rows:
    """Return the rows that a definition names; only a trusted definition may use all options of `datasets`."""
    local = local_files(config)
    files = [file for names in (local or {}).values() for file in names]
    are_paths = all(file.startswith(("/", DATASETS)) and not set(file) & set("*?[]") for file in files)
    if local is not None and (not trusted or (local and are_paths)):
        if not local:
            raise InvalidData(f"benchmark {name!r} names local files without `data_files`; give their paths")
        return {
            split: read_rows([Path(rules.resolve(each)) for each in names], rules.allow)
            for split, names in local.items()
        }
    path = text_of(config, "dataset_path")
    if path is None:
        raise InvalidData(f"benchmark {name!r} has no `dataset_path`; give one in its YAML, or `data` in the suite")
    source = Source(path, text_of(config, "dataset_name"), mapping_of(config, "dataset_kwargs"), _splits(config))
    with blamed(name, "its `dataset_kwargs`"):
        if not trusted:
            require_named(source)
        return {split: plain_rows(part) for split, part in load(source).items()}


def _check_pool(name: str, task: Task) -> None:
    shots = int(task.config.num_fewshot or 0)
    if not isinstance(task, ConfigurableTask) or not shots:
        return
    examples, includes_document = example_pool(task)
    usable = examples - includes_document
    if usable < shots:
        excluded = " without the document in question" if includes_document else ""
        raise InvalidData(
            f"benchmark {name!r}: {shots} solved examples are requested, but its data have {usable}{excluded}; lower "
            "`num_fewshot`"
        )


def _require_imports(name: str, function: object) -> None:
    code = getattr(function, "__code__", None)
    for instruction in dis.get_instructions(code) if code is not None else ():
        if instruction.opname == "IMPORT_NAME":
            package = str(instruction.argval).partition(".")[0]
            if package and find_spec(package) is None:
                raise _missing(name, ModuleNotFoundError(name=package))


def _missing(name: str, error: ImportError) -> MissingPackage:
    told = re.search(r"pip install ['\"`]?([\w.\-\[\]]+)", str(error))
    package = (error.name or "").partition(".")[0]
    if wanted := told[1] if told else PACKAGES.get(package, package):
        return MissingPackage(f"benchmark {name!r} needs the package {wanted!r}; run: pip install '{wanted}'")
    return MissingPackage(f"benchmark {name!r} cannot import a package: {one_line(error)}; install the package")
