"""The result of a checkpoint, as `evalsvc run --output` writes it or the service keeps it, and its results per item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from evalsvc.errors import InvalidData
from evalsvc.files.items import ItemTable
from evalsvc.metrics.intervals import Spread
from evalsvc.metrics.item_numbers import Numbers, groups_of, is_share
from evalsvc.metrics.paired import spread_of
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.documents.results import Error, ResultDocument, TaskMetric

Item = tuple[object, object]
"""`benchmark` and `index` of a result per item, by which the items of two results match."""


@dataclass(frozen=True)
class Result:
    """The result of a checkpoint, read from a file or from the service."""

    name: str
    document: ResultDocument
    tables: Mapping[str, Callable[[], ItemTable]] = field(default_factory=dict)
    """Results per item by task, read when they are needed, of a document that does not have them."""
    _numbers: dict[tuple[str | None, ...], Numbers] = field(default_factory=dict, init=False, repr=False)
    _read_tables: dict[str, ItemTable] = field(default_factory=dict, init=False, repr=False)
    _items: dict[tuple[str, str | None], tuple[list[int], list[Item]]] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def values(self) -> dict[str, dict[str, TaskMetric]]:
        """The metrics by name and by protocol id."""
        found: dict[str, dict[str, TaskMetric]] = {}
        for metric in self.document.metrics:
            found.setdefault(metric.name, {})[metric.protocol] = metric
        return found

    def error(self, task: str) -> Error | None:
        """Return why the task failed. Where several suites have a task of this name, theirs begin with the suite's."""
        errors = self.document.errors.items()
        return next((error for name, error in errors if name.rpartition("/")[2] == task.rpartition("/")[2]), None)

    def protocol(self, identity: str) -> Mapping[str, object]:
        """Return the content of a protocol; empty where a file does not have it."""
        return self.document.protocols.get(identity, {})

    def numbers(self, metric: TaskMetric) -> Numbers:
        """What the metric is made of, as its `items` say; `item_numbers` of the task's table.

        Raises:
            ItemsLost: the service has lost the table.
            InvalidData: the table of a file has values that are no numbers.
        """
        task, keys, grouped_by = task_of(metric), tuple(metric.items), metric.grouped_by
        benchmark = None if is_share(keys) else metric.name.partition("/")[0]
        place = (task, benchmark, grouped_by, *keys)
        if place not in self._numbers:
            self._numbers[place] = self._read_numbers(task, benchmark, keys, grouped_by)
        return self._numbers[place]

    def _table(self, task: str) -> ItemTable:
        if task not in self._read_tables:
            read = self.tables.get(task)
            self._read_tables[task] = ItemTable.of(self.document.items.get(task, ())) if read is None else read()
        return self._read_tables[task]

    def _read_numbers(self, task: str, benchmark: str | None, keys: Sequence[str], grouped_by: str | None) -> Numbers:
        """Return the numbers of the items of a benchmark, or of every benchmark where that is None."""
        table = self._table(task)
        positions, items = self._of_benchmark(task, benchmark)
        columns = [[column[position] for position in positions] for column in map(table.column, keys)]
        if any(None in column for column in columns):
            there = [place for place, row in enumerate(zip(*columns, strict=True)) if None not in row]
            columns = [[column[place] for place in there] for column in columns]
            items = [items[place] for place in there]
            positions = [positions[place] for place in there]
        groups = None
        if grouped_by is not None:
            named = table.column(grouped_by)
            groups = groups_of(items, [_hashable(named[position]) for position in positions])
        try:
            return Numbers(items, [list(map(float, column)) for column in columns], groups)
        except (TypeError, ValueError, OverflowError):
            raise InvalidData(
                f"{self.name}: the results per item of task {task!r} have values under {', '.join(keys)} that are no "
                "numbers; write the result anew by `evalsvc run SUITE --output FILE`"
            ) from None

    def _of_benchmark(self, task: str, benchmark: str | None) -> tuple[list[int], list[Item]]:
        """Return which rows of the table may be the metric's, and the items that they are."""
        if (task, benchmark) not in self._items:
            table = self._table(task)
            rows = enumerate(zip(table.column("benchmark"), table.column("index"), strict=True))
            found = [
                (at, item)
                for at, item in rows
                if (benchmark is None or item[0] in (None, benchmark)) and item[1] is not None
            ]
            self._items[task, benchmark] = [at for at, _ in found], [item for _, item in found]
        return self._items[task, benchmark]


MANY = 2000
"""Independent items from which on the interval of a value is the normal one to within a percent or two of its width,
however skewed or unequal the items are within reason, so that they are not read for it."""


def task_of(metric: TaskMetric) -> str:
    """The task that measured it."""
    return metric.task or metric.name.partition("/")[0]


@dataclass(frozen=True)
class Measured:
    """A metric together with the result that it is of, so that its items are looked up on no other side."""

    metric: TaskMetric
    result: Result

    @property
    def estimate(self) -> Ratio:
        """The value with its standard error and n; NaN and infinities are strings in JSON."""
        metric = self.metric
        error = None if metric.stderr is None else float(metric.stderr)
        return Ratio(float(metric.value), error, metric.n, metric.groups)

    @property
    def spread(self) -> Spread | None:
        """The errors of the value as its items show them; None where it is not made of items, or of `MANY`.

        Raises:
            ItemsLost: the service has lost the table of results per item.
        """
        few = self.metric.items and self.estimate.independent < MANY
        return spread_of(self.result.numbers(self.metric)) if few else None


def _hashable(name: object) -> str | int | float | None:
    """Return the name of a group as it is, or its text where a file has put something else in its place."""
    return name if isinstance(name, str | int | float | None) else str(name)
