"""lm-eval's tasks, called benchmarks: found by name, loaded from local files, and turned into requests.

    load_benchmarks(specs, options) → expand (names) → build_task (definition, data) → ask (requests) → Benchmark

The requests to a model depend only on the definition, the data and the suite: they are built once per process, for the
whole benchmark, and cut into shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.group import GroupConfig

from evalsvc.config import Settings
from evalsvc.data.files import MEMORY, identify_file, limited_memory, private_bytes
from evalsvc.errors import AssetMissing, InvalidData, InvalidSuite, first_few
from evalsvc.language.building import Branch, Changes, Fewshot, Leaf, build_task, define, expand, seeded
from evalsvc.language.catalog import Registry, shipped_folder
from evalsvc.language.definitions import Definition, Rules, local_files
from evalsvc.language.hub import Rows, Source, cached, fetch, offline, online, quiet
from evalsvc.language.private import sandbox
from evalsvc.language.questions import Questions, Selection, ask, chance_level, question_digest, require_different
from evalsvc.language.rows import TEXT_TASKS, RowForm, explain_columns, find_form, require_columns
from evalsvc.spec.benchmark import BenchmarkSpec
from evalsvc.spec.paths import DATASETS

KEPT = 256
"""Number of benchmarks whose requests a process keeps: a suite's shards alternate, and MMLU alone has 57."""

KEPT_MEMORY = 2 << 30
"""Bytes of memory from which on a process keeps no benchmark of earlier loads."""

sandbox()


@dataclass(frozen=True, kw_only=True)
class Benchmark(Questions):
    """Benchmark with all its requests. The process shares its instances: copy an instance before answering it."""

    name: str
    """Name in lm-eval, the first half of its metrics' names."""
    task: Task
    """lm-eval's object, which turns answers into metrics."""
    digest: str
    """SHA-256 of all requests and of the right answers."""
    chance: float
    """Accuracy of a model without knowledge; 0 where there are no options."""
    num_fewshot: int
    form: RowForm | None = None
    """Form of the rows in the local file that replaces the dataset; None where only one form is possible."""

    @property
    def output_type(self) -> str:
        return str(self.task.OUTPUT_TYPE)

    @property
    def version(self) -> str:
        return str(self.task.VERSION)


@dataclass(frozen=True)
class Loaded:
    """Benchmarks and groups of a suite's `benchmarks:`."""

    benchmarks: tuple[Benchmark, ...]
    """Benchmarks in the order of the suite; those of a group or tag in lm-eval's order."""
    groups: tuple[Group, ...]
    """lm-eval's groups of these benchmarks, outer ones first; `aggregate` computes metrics from their members'."""


@dataclass(frozen=True)
class LoadOptions:
    """Options of a language task for all its benchmarks."""

    include_path: tuple[Path, ...] = ()
    """Folders of YAML files, whose names take precedence over lm-eval's."""
    num_fewshot: int | None = None
    fewshot: Fewshot = "configured"
    limit: int | None = None
    rules: Rules = field(default_factory=Rules)
    sample: int | None = None

    @classmethod
    def of(cls, settings: Settings, include_path: Sequence[Path] = (), **options: Any) -> LoadOptions:
        return cls(tuple(include_path), rules=Rules.of(settings), **options)


def load_benchmarks(specs: Sequence[BenchmarkSpec], options: LoadOptions) -> Loaded:
    """Find and load benchmarks, without a network, and build their requests."""
    registry = Registry(options.include_path, options.rules.allow)
    shipped = Registry((TEXT_TASKS,))
    with quiet(), offline(), _within_memory():
        data = [_changes(spec, options).data for spec in specs]
        forms = [
            None if file is None else find_form(spec.name, file, registry, options.rules.allow)
            for spec, file in zip(specs, data, strict=True)
        ]
        chosen = [
            (spec, expand(spec.name, shipped if form == "llm-foundry" else registry, options.rules))
            for spec, form in zip(specs, forms, strict=True)
        ]
        _check_choice(chosen)
        loaded = {
            leaf.name: _build(_recipe(leaf, spec, options, form))
            for (spec, items), form in zip(chosen, forms, strict=True)
            for item in items
            for leaf in item.leaves()
        }
    tasks = {name: benchmark.task for name, benchmark in loaded.items()}
    groups = [group for _, items in chosen for item in items for group in _groups(item, tasks)]
    return Loaded(tuple(loaded.values()), tuple(groups))


@dataclass(frozen=True)
class Prepared:
    """Benchmark that evaluations now find on this machine."""

    name: str
    source: str
    """Description of the dataset on the hub; empty for a benchmark without a dataset, or with its own data code."""
    splits: Mapping[str, int]


def prepare(name: str, options: LoadOptions) -> Iterator[Prepared]:
    """Fetch the hub datasets of a name's benchmarks into the cache, one after the other."""
    spec = BenchmarkSpec(name=name)
    for item in expand(name, Registry(options.include_path, options.rules.allow), options.rules):
        for leaf in item.leaves():
            fetched: list[tuple[Source, Rows]] = []

            def load(source: Source, fetched: list[tuple[Source, Rows]] = fetched) -> Rows:
                fetched.append((source, fetch(source)))
                return fetched[-1][1]

            with quiet(), online(), seeded():
                definition = define(leaf, options.rules)
                task = build_task(leaf, definition, _changes(spec, options), options.rules, load)
                ask(leaf.name, task, Selection(limit=1))
            source, rows = fetched[0] if fetched else ("", {})
            yield Prepared(leaf.name, str(source), {split: len(part) for split, part in rows.items()})


@dataclass(frozen=True)
class _Recipe:
    """Inputs of a benchmark's requests; two recipes are the same if their `key` is."""

    key: tuple[Any, ...]
    leaf: Leaf = field(compare=False)
    definition: Definition = field(compare=False)
    changes: Changes = field(compare=False)
    selection: Selection = field(compare=False)
    files: list[Path] = field(compare=False)
    """Local data files whose names are plain paths."""
    rules: Rules = field(compare=False)
    wanted: str = field(compare=False)
    form: RowForm | None


def _recipe(leaf: Leaf, spec: BenchmarkSpec, options: LoadOptions, form: RowForm | None) -> _Recipe:
    rules, changes, definition = options.rules, _changes(spec, options), define(leaf, options.rules)
    selection = Selection(spec.limit, spec.samples, spec.sample) or Selection(options.limit, sample=options.sample)
    names = [name for names in (local_files(definition.config) or {}).values() for name in names]
    paths = [Path(rules.resolve(name)) for name in names if name.startswith(("/", DATASETS))]
    files = [path for path in paths if path.exists()] if changes.data is None else [changes.data]
    identities = tuple((file, identify_file(file, "data file")) for file in files)
    key = (leaf.name, changes, selection, repr(sorted(definition.config.items())), rules.allow_code, identities)
    return _Recipe(key, leaf, definition, changes, selection, files, rules, spec.name, form)


def _changes(spec: BenchmarkSpec, options: LoadOptions) -> Changes:
    shots = options.num_fewshot if spec.num_fewshot is None else spec.num_fewshot
    data = None if spec.data is None else Path(options.rules.resolve(spec.data))
    return Changes(shots, options.fewshot, data)


_kept_memory = 0
"""Bytes by which loads have made this process grow since it last dropped the benchmarks that it keeps."""


@contextmanager
def _within_memory() -> Iterator[None]:
    global _kept_memory
    before = private_bytes()
    try:
        with limited_memory(MEMORY, "loading the benchmarks of a task"):
            yield
    finally:
        _kept_memory += max(0, private_bytes() - before)
        if _kept_memory > KEPT_MEMORY:
            _build.cache_clear()
            _kept_memory = 0


@lru_cache(maxsize=KEPT)
def _build(recipe: _Recipe) -> Benchmark:
    leaf, config = recipe.leaf, recipe.definition.config
    what = f"benchmark {leaf.name!r}, with its rows and its templates' texts,"
    with seeded(), limited_memory(MEMORY, what):
        try:
            task = build_task(leaf, recipe.definition, recipe.changes, recipe.rules, cached)
            _check_templates(recipe, task)
            questions = ask(leaf.name, task, recipe.selection)
        except AssetMissing as error:
            command = f"evalsvc benchmarks prepare {recipe.wanted}"
            if error.message.startswith("benchmark"):  # the error is not about rows, which `data` could replace
                raise AssetMissing(f"{error.message}; run: {command}") from error
            raise AssetMissing(
                f"benchmark {leaf.name!r}: {error.message}, and nothing is downloaded in an evaluation; "
                f"run: {command}, or give a local file as the benchmark's `data`"
            ) from error
        except InvalidData as error:
            if not recipe.files:
                raise
            # An error about a missing column in local rows names the file, the row and the columns.
            file, allow = recipe.files[0], recipe.rules.allow
            raise explain_columns(leaf.name, config, file, recipe.form, error, allow) from error.__cause__
    return Benchmark(
        **vars(questions),
        name=leaf.name,
        task=task,
        digest=question_digest(task, questions),
        chance=chance_level(task, questions),
        num_fewshot=int(task.config.num_fewshot or 0),
        form=recipe.form,
    )


def _check_templates(recipe: _Recipe, task: Task) -> None:
    """Check that questions come from the rows. lm-eval's own templates are right for the rows on the hub."""
    leaf = recipe.leaf
    ships = leaf.path is not None and leaf.path.is_relative_to(shipped_folder())
    if not isinstance(task, ConfigurableTask) or (ships and recipe.changes.data is None):
        return
    if not callable(task.config.process_results):
        rows = first_few(recipe.files, 2) or "its data"
        require_columns(leaf.name, recipe.definition.config, task.features, rows, recipe.form)
    if not ships:
        require_different(leaf.name, task)


def _check_choice(chosen: Sequence[tuple[BenchmarkSpec, tuple[Leaf | Branch, ...]]]) -> None:
    by: dict[str, str] = {}
    for spec, items in chosen:
        names = [leaf.name for item in items for leaf in item.leaves()]
        if spec.data is not None and len(names) > 1:
            raise InvalidSuite(
                f"`data` is given for {spec.name!r}, which stands for {len(names)} benchmarks; give it for one of "
                f"them, e.g. {names[0]!r}"
            )
        for name in names:
            if name in by:
                raise InvalidSuite(
                    f"benchmark {name!r} is selected twice, by {by[name]!r} and by {spec.name!r}; remove one of them, "
                    "or put it into a separate task"
                )
            by[name] = spec.name


def _groups(item: Leaf | Branch, tasks: Mapping[str, Task]) -> Iterator[Group]:
    if isinstance(item, Branch):
        group = Group.from_config(GroupConfig(**item.config))
        inner: list[Group] = []
        for member in item.members:
            if isinstance(member, Leaf):
                group.add(tasks[member.name])
            else:
                below = list(_groups(member, tasks))
                group.add(below[0])
                inner += below
        yield group
        yield from inner
