"""The result of a checkpoint, from the service or from a file of `evalsvc run --output`, with its results per item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from evalsvc.errors import InvalidData
from evalsvc.files.items import ItemTable
from evalsvc.metrics.item_numbers import Numbers, groups_of, is_share
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.documents.results import Error, ResultDocument, TaskMetric

Item = tuple[object, object]
"""Fields `benchmark` and `index`, or `id`, of a result per item, by which the items of two results are matched."""


@dataclass(frozen=True)
class Result:
    """The result of a checkpoint, read from a file or from the service."""

    name: str
    """Path of the file, or name of the checkpoint, RUN@STEP or RUN@STEP:VARIANT."""
    document: ResultDocument
    tables: Mapping[str, Callable[[], ItemTable]] = field(default_factory=dict)
    """Functions that read the results per item of a task, by task, for a document without these results."""
    _numbers: dict[tuple[str | None, ...], Numbers] = field(default_factory=dict, init=False, repr=False)
    _read_tables: dict[str, ItemTable] = field(default_factory=dict, init=False, repr=False)
    _items: dict[tuple[str, str | None, str], tuple[list[int], list[Item]]] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def values(self) -> dict[str, dict[str, TaskMetric]]:
        """The metrics by name and by protocol id."""
        values: dict[str, dict[str, TaskMetric]] = {}
        for metric in self.document.metrics:
            values.setdefault(metric.name, {})[metric.protocol] = metric
        return values

    def error(self, task: str) -> Error | None:
        """Return why the task failed, or None. `SUITE/TASK` and `TASK` name the same task."""
        errors = self.document.errors.items()
        return next((error for name, error in errors if name.rpartition("/")[2] == task.rpartition("/")[2]), None)

    def protocol(self, identity: str) -> Mapping[str, object]:
        """Return the content of a protocol by its id; empty if a file lacks the content."""
        return self.document.protocols.get(identity, {})

    def numbers(self, metric: TaskMetric, by: str = "index") -> Numbers:
        """Return the numbers of a metric, item by item: the columns of the task's table that `metric.items` names. The
        column `by` tells items apart."""
        task, keys, grouped_by = task_of(metric), tuple(metric.items), metric.grouped_by
        benchmark = None if is_share(keys) else metric.name.partition("/")[0]
        place = (by, task, benchmark, grouped_by, *keys)
        if place not in self._numbers:
            self._numbers[place] = self._read_numbers(task, benchmark, keys, grouped_by, by)
        return self._numbers[place]

    def _table(self, task: str) -> ItemTable:
        if task not in self._read_tables:
            read = self.tables.get(task)
            self._read_tables[task] = ItemTable.of(self.document.items.get(task, ())) if read is None else read()
        return self._read_tables[task]

    def _read_numbers(
        self, task: str, benchmark: str | None, keys: Sequence[str], grouped_by: str | None, by: str
    ) -> Numbers:
        table = self._table(task)
        positions, items = self._items_of(task, benchmark, by)
        columns = [[column[position] for position in positions] for column in map(table.column, keys)]
        if any(None in column for column in columns):
            complete = [place for place, row in enumerate(zip(*columns, strict=True)) if None not in row]
            columns = [[column[place] for place in complete] for column in columns]
            items = [items[place] for place in complete]
            positions = [positions[place] for place in complete]
        groups = None
        if grouped_by is not None:
            group_names = table.column(grouped_by)
            names = [group_names[position] for position in positions]
            groups = groups_of(items, [x if isinstance(x, str | int | float | None) else str(x) for x in names])
        try:
            return Numbers(items, [list(map(float, column)) for column in columns], groups)
        except (TypeError, ValueError, OverflowError):
            raise InvalidData(
                f"{self.name}: the results per item of task {task!r} have values under {', '.join(keys)} that are not "
                "numbers; write the file again with `evalsvc run SUITE --output FILE`"
            ) from None

    def _items_of(self, task: str, benchmark: str | None, by: str) -> tuple[list[int], list[Item]]:
        if (task, benchmark, by) not in self._items:
            table = self._table(task)
            rows = enumerate(zip(table.column("benchmark"), table.column(by), strict=True))
            chosen = [
                (position, item)
                for position, item in rows
                if (benchmark is None or item[0] in (None, benchmark)) and item[1] is not None
            ]
            self._items[task, benchmark, by] = [position for position, _ in chosen], [item for _, item in chosen]
        return self._items[task, benchmark, by]


def task_of(metric: TaskMetric) -> str:
    return metric.task or metric.name.partition("/")[0]


@dataclass(frozen=True)
class Measured:
    """A metric with the result that has it, so that the metric's items are read from the same result."""

    metric: TaskMetric
    result: Result

    @property
    def estimate(self) -> Ratio:
        """The value with its standard error and number of items, as floats."""
        metric = self.metric
        error = None if metric.stderr is None else float(metric.stderr)
        return Ratio(float(metric.value), error, metric.n, metric.groups)
