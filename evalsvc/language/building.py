"""From a benchmark's definition to lm-eval's task object, with its data."""

from __future__ import annotations

import dis
import logging
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import datasets
import numpy
from jinja2 import TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from evalsvc.errors import AssetMissing, EvalsvcError, InvalidData, InvalidSuite, MissingPackage
from evalsvc.language.definitions import Config, Definition, Rules, local_files, mapping_of, read_definition, text_of
from evalsvc.language.expansion import Leaf
from evalsvc.language.hub import Rows, Source, one_line, require_named
from evalsvc.language.private import example_pool, metric_functions
from evalsvc.language.rows import plain_rows, read_rows
from evalsvc.spec.paths import DATASETS

log = logging.getLogger(__name__)

FEWSHOT_SEED = 1234
"""lm-eval's own default: which solved examples are drawn."""

PACKAGES = {"sklearn": "scikit-learn", "rouge_score": "rouge-score", "bert_score": "bert-score"}
"""Packages that are installed by another name than they are imported by."""

_UNDEFINED = re.compile(r"'[A-Za-z_]\w*' is undefined")
"""Jinja's message on a name that stands in the template; its other messages may quote the row."""

EVALUATED = ("test_split", "validation_split")
"""Keys of the split that is evaluated, the first that is given."""

Load = Callable[[Source], Rows]
"""Where the rows of a dataset on the hub come from: `hub.cached` or `hub.fetch`."""

Fewshot = Literal["configured", "first"]
"""Which solved examples: as the benchmark says, or the first ones, the same for every document."""


@dataclass(frozen=True)
class Changes:
    """What a suite says in place of the benchmark's definition."""

    num_fewshot: int | None = None
    fewshot: Fewshot = "configured"
    data: Path | None = None
    """A local file with the rows, for every split."""


def define(leaf: Leaf, rules: Rules) -> Definition:
    """Return what a benchmark's file and the groups around it say together. Functions are not imported.

    Raises:
        InvalidSuite: it asks about images or sound, or runs code that the model writes.
        InvalidData: a file says what it may not.
    """
    definition = Definition({}, trusted=not leaf.closed)
    if leaf.path is not None:
        definition = read_definition(leaf.path, rules, functions=False, closed=leaf.closed)
    config = {**definition.config, **leaf.overrides}
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise InvalidSuite(f"benchmark {leaf.name!r} asks about images or sound; choose one that is all text")
    if (definition.unsafe or leaf.unsafe) and not rules.allow_code:
        raise InvalidSuite(
            f"benchmark {leaf.name!r} runs code that the model writes; take it out, or have the operator set "
            "EVALSVC_ALLOW_BENCHMARK_CODE=1"
        )
    return Definition(config, definition.trusted and not leaf.closed)


def build_task(leaf: Leaf, definition: Definition, changes: Changes, rules: Rules, load: Load) -> Task:
    """lm-eval's task object. Explicit `num_fewshot` wins also where the definition says 0, other than in lm-eval.

    The document that is asked about is never among its own solved examples. lm-eval sees to that only where the
    definition names the split that it evaluates as that of the examples.

    Raises:
        InvalidSuite: the benchmark cannot be evaluated with these changes.
        InvalidData: the definition or its data are wrong.
        AssetMissing: the data are on the hub, and `load` does not get them.
        MissingPackage: a function or metric of the benchmark needs it.
    """
    config = definition.config
    if definition.trusted and leaf.path is not None:
        with blamed(leaf.name, "its definition"):
            config = {**read_definition(leaf.path, rules, functions=True).config, **leaf.overrides}
    config = {key: value for key, value in deepcopy(config).items() if key not in ("tag", "group", "task_list")}
    config |= {"task": leaf.name}
    if "class" in config:
        return _build_class(leaf.name, config, changes)
    config = _with_shots(config, changes)
    if changes.data is not None:
        config = _with_rows(leaf.name, config, {str(config["test_split"]): read_rows([changes.data], rules.allow)})
    elif not callable(config.get("custom_dataset")):
        config = _with_rows(leaf.name, config, _rows(leaf.name, config, definition.trusted, rules, load))
    task = _construct(leaf.name, config)
    _check_pool(leaf.name, task)
    require_metrics(leaf.name, task)
    return task


@contextmanager
def blamed(name: str, what: str) -> Iterator[None]:
    """Turn what lm-eval and a benchmark's own code raise into errors that name the benchmark and `what` of it."""
    try:
        yield
    except EvalsvcError:
        raise
    except ImportError as error:
        raise _missing(name, error) from error
    except TemplateSyntaxError as error:  # quotes the template alone
        raise InvalidData(f"benchmark {name!r}, {what}: a template is not valid: {one_line(error)}") from error
    except SecurityError as error:
        raise InvalidData(
            f"benchmark {name!r}, {what}: a template uses what is unsafe; templates see the values of a row, and no "
            "attributes of Python's"
        ) from error
    except UndefinedError as error:
        undefined = _UNDEFINED.fullmatch(str(error))
        missing = undefined[0] if undefined else "something that a template names is undefined"
        raise InvalidData(
            f"benchmark {name!r}, {what}: {missing} in its rows; correct the template or the data"
        ) from error
    except ConnectionError as error:
        raise AssetMissing(f"benchmark {name!r} needs the network ({one_line(error)})") from error
    except Exception as error:
        log.debug("benchmark %r, %s: %s", name, what, error)  # which may quote a row that a submitter must not see
        look = "; look at its options and its right answer" if what.startswith("document") else ""
        message = f"benchmark {name!r}, {what} does not fit what lm-eval makes of it ({type(error).__name__}){look}"
        raise InvalidData(message) from error


@contextmanager
def seeded() -> Iterator[None]:
    """The global random numbers as `lm_eval` seeds them: code of benchmarks shuffles by them."""
    before, numpy_before = random.getstate(), numpy.random.get_state()
    random.seed(0)
    numpy.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(before)
        numpy.random.set_state(numpy_before)


def require_metrics(name: str, task: Task) -> None:
    """Raise now for a metric that could not be computed after hours of work.

    Raises:
        MissingPackage: a function imports a package that is not installed.
        AssetMissing: a metric of the library evaluate is not in its cache.
        InvalidData: there is no such aggregation.
    """
    computed = task.config.process_results is None
    for metric, function in metric_functions(task).items():
        if function is None and computed:
            if find_spec("evaluate") is None:
                raise MissingPackage(f"benchmark {name!r}, metric {metric!r}: run: pip install evaluate")
            raise AssetMissing(f"benchmark {name!r}: the library evaluate has no metric {metric!r} in its cache")
        _require_imports(name, function)
    for metric, function in task.aggregation().items():
        if function is None:
            known = ", ".join(sorted(AGGREGATION_REGISTRY))
            raise InvalidData(f"benchmark {name!r}, metric {metric!r}: no such aggregation; choose from {known}")
        _require_imports(name, function)


def _with_shots(config: Config, changes: Changes) -> Config:
    """`config` with its solved examples settled."""
    evaluated = text_of(config, *EVALUATED)
    own = mapping_of(config, "fewshot_config")
    shots = config.get("num_fewshot") if changes.num_fewshot is None else changes.num_fewshot
    if changes.data is not None:  # all rows are evaluated, and solved examples come from among them
        evaluated = evaluated or "test"
        others = dict.fromkeys(("validation_split", "training_split", "fewshot_split"))
        config = {**config, **others, "test_split": evaluated}
        own = {key: value for key, value in own.items() if key != "split"}
    if evaluated is None:
        raise InvalidData(f"benchmark {config['task']!r} names no `test_split` and no `validation_split`; give one")
    if not shots:
        # lm-eval reads the whole split of the examples for nothing, which may be the largest by far.
        none = {"num_fewshot": 0, "fewshot_split": None, "fewshot_config": {**own, "split": None, "samples": []}}
        return {**config, **none}
    if changes.fewshot == "first":
        own = {**own, "sampler": "first_n"}
    if _split_of_shots(config, own) == evaluated:
        own = {**own, "split": evaluated}
        config = {**config, "test_split": evaluated}
    return {**config, "num_fewshot": shots, "fewshot_config": own}


def _split_of_shots(config: Config, own: Config) -> str | None:
    """The split that lm-eval draws examples from; None: they are written out in the definition."""
    named = text_of(own, "split") or text_of(config, "fewshot_split")
    if named or own.get("samples") is not None:
        return named
    return text_of(config, "training_split", "validation_split", "test_split")


def _splits(config: Config) -> tuple[str, ...]:
    """The splits that are used: the one that is evaluated, and the one that solved examples come from."""
    evaluated = text_of(config, *EVALUATED)
    shots = _split_of_shots(config, mapping_of(config, "fewshot_config")) if config["num_fewshot"] else None
    return tuple(dict.fromkeys(split for split in (evaluated, shots) if split))


def _with_rows(name: str, config: Config, rows: Rows) -> Config:
    """`config` with its rows in place of where they come from, so that lm-eval has nothing to fetch."""
    _check_splits(name, config, rows)
    given = datasets.DatasetDict(rows)
    return {**config, "custom_dataset": lambda **_: given, "dataset_kwargs": None}


def _rows(name: str, config: Config, trusted: bool, rules: Rules, load: Load) -> Rows:
    """The rows that a definition names; a trusted one may name them by all means that `datasets` has."""
    local = local_files(config)
    if local is not None and (
        not trusted or (local and all(_is_path(each) for names in local.values() for each in names))
    ):
        if not local:
            raise InvalidData(f"benchmark {name!r} names local files and has no `data_files`; give their paths")
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


def _is_path(name: str) -> bool:
    return name.startswith(("/", DATASETS)) and not set(name) & set("*?[]")


def _check_splits(name: str, config: Config, rows: Rows) -> None:
    for split in _splits(config):
        if split not in rows:
            there = ", ".join(map(repr, rows))
            raise InvalidData(f"benchmark {name!r} uses the split {split!r}, its data have {there}; correct its YAML")
        if not len(rows[split]):
            raise InvalidData(f"benchmark {name!r}: the split {split!r} of its data is empty")


def _construct(name: str, config: Config) -> Task:
    with blamed(name, "document 0"):
        task: Task = next(iter(TaskManager(include_defaults=False).load([config])["tasks"].values()))
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def _build_class(name: str, config: Config, changes: Changes) -> Task:
    """A benchmark that is a Python class of lm-eval's: it sees to its data itself."""
    if changes.data is not None:
        raise InvalidSuite(f"benchmark {name!r} is a program that finds its own data; take `data` away")
    if changes.fewshot == "first" and changes.num_fewshot:
        raise InvalidSuite(f"benchmark {name!r} is a program that draws its own examples; take `fewshot: first` away")
    task = _construct(name, config)
    if changes.num_fewshot is not None:
        task.set_config("num_fewshot", changes.num_fewshot)
    require_metrics(name, task)
    return task


def _check_pool(name: str, task: Task) -> None:
    shots = int(task.config.num_fewshot or 0)
    if not isinstance(task, ConfigurableTask) or not shots:
        return
    examples, own = example_pool(task)
    there = examples - own
    if there < shots:
        beside = " beside the one that is asked about" if own else ""
        raise InvalidData(
            f"benchmark {name!r}: {shots} solved examples are asked for, its data have {there}{beside}; lower "
            "`num_fewshot`"
        )


def _require_imports(name: str, function: object) -> None:
    """Raise MissingPackage for a package that the function imports when it is called."""
    code = getattr(function, "__code__", None)
    for instruction in dis.get_instructions(code) if code is not None else ():
        if instruction.opname == "IMPORT_NAME":
            package = str(instruction.argval).partition(".")[0]
            if package and find_spec(package) is None:
                raise _missing(name, ModuleNotFoundError(name=package))


def _missing(name: str, error: ImportError) -> MissingPackage:
    told = re.search(r"pip install ['\"`]?([\w.\-\[\]]+)", str(error))
    package = (error.name or "").partition(".")[0]
    wanted = told[1] if told else PACKAGES.get(package, package)
    if not wanted:
        return MissingPackage(f"benchmark {name!r} cannot import what it needs: {one_line(error)}")
    return MissingPackage(f"benchmark {name!r} needs the package {wanted!r}; run: pip install '{wanted}'")
