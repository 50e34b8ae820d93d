"""Simulated data: shapes of distributions, numbers per item, and results as the gate and the comparison read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.compare.result import Result
from evalsvc.files.items import ItemTable
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.spec.documents import ResultDocument, TaskMetric
from evalsvc.spec.protocol import MetricValue, Protocol

Array = NDArray[np.float64]
Generator = np.random.Generator
Shape = Callable[[Generator, int], Array]
"""[n] independent numbers with the mean 0 and the variance 1."""

PROTOCOL = Protocol({"data": "simulated"})
PER_IMAGE = 5
"""Captions of one image in clustered data, as COCO has."""


def normal(random: Generator, n: int) -> Array:
    return random.standard_normal(n)


def heavy_tailed(random: Generator, n: int) -> Array:
    """Student's t with three degrees of freedom."""
    return random.standard_t(3, n) / math.sqrt(3)


def exponential(random: Generator, n: int) -> Array:
    return random.standard_exponential(n) - 1


def lognormal(random: Generator, n: int) -> Array:
    return (np.exp(random.standard_normal(n)) - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1))


def skewed_down(random: Generator, n: int) -> Array:
    """The mirror image of `lognormal`: few items are much lower."""
    return -lognormal(random, n)


def in_order(random: Generator, n: int) -> Array:
    """Ten classes of other means, class by class, as captions stand in a list that is sorted."""
    classes = np.sort(random.integers(0, 10, n))
    return ((classes - 4.5) / math.sqrt(8.25) + random.standard_normal(n)) / math.sqrt(2)


SHAPES: dict[str, Shape] = {
    "normal": normal,
    "t3": heavy_tailed,
    "exponential": exponential,
    "lognormal(1)": lognormal,
    "sorted": in_order,
}


def clustered(shape: Shape, random: Generator, images: int) -> Array:
    """[images · PER_IMAGE]: half of the variance is the image's, which its captions share."""
    shared = np.repeat(shape(random, images), PER_IMAGE)
    return (shared + shape(random, images * PER_IMAGE)) / math.sqrt(2)


def owners(images: int) -> list[int]:
    """The image of each caption."""
    return [image for image in range(images) for _ in range(PER_IMAGE)]


def numbers(values: Array | Sequence[float], groups: Sequence[int] | None = None) -> Numbers:
    column = [float(value) for value in values]
    return Numbers([(None, index) for index in range(len(column))], [column], groups)


def mean(values: Array | Sequence[float], groups: Sequence[int] | None = None) -> Ratio:
    column = [float(value) for value in values]
    found = ratio_of_sums(column, [1] * len(column), groups)
    assert found is not None, "there are items"
    return found


def ratio_numbers(sums: Array, counts: Array, groups: Sequence[int] | None = None) -> Numbers:
    return Numbers([(None, index) for index in range(len(sums))], [sums.tolist(), counts.tolist()], groups)


def ratio(items: Numbers) -> Ratio:
    found = ratio_of_sums(*items.columns, items.groups)
    assert found is not None, "there are items"
    return found


def metric(name: str, values: Array | Sequence[float], **fields: Any) -> tuple[MetricValue, dict[str, list[float]]]:
    """A metric that is the mean of its items, with the column that holds them."""
    found, key = mean(values), name.partition("/")[2]
    defaults: dict[str, Any] = {"unit": "nats/token", "direction": "lower", "protocol": PROTOCOL, "items": (key,)}
    given = defaults | {"stderr": found.stderr} | fields
    value = MetricValue(name, found.value, n=found.n, **given)
    return value, {key: [float(number) for number in values]}


def result(name: str, *metrics: tuple[MetricValue, Mapping[str, Sequence[Any]]]) -> Result:
    """A result of one task, `t`, whose items are the columns of all metrics."""
    columns: dict[str, Any] = {}
    for _, more in metrics:
        columns |= more
    n = len(next(iter(columns.values())))
    columns = {"index": list(range(n)), **columns}
    table = ItemTable([tuple(columns)], [0] * n, columns)
    return Result(name, document([value for value, _ in metrics]), {"t": lambda: table})


def document(metrics: Sequence[MetricValue]) -> ResultDocument:
    """The document of a result of one task, `t`, without items."""
    return ResultDocument(
        metrics=[TaskMetric(**value.to_json(), task="t") for value in metrics],
        protocols={value.protocol.id: dict(value.protocol.content) for value in metrics},
    )
