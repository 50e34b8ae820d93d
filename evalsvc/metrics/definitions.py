"""Definitions of all metrics: formula, unit, items, pairs, standard error and source.

The definitions are in definitions.yaml. `evalsvc metrics` prints them, the reference of metrics is written from
them, and a test compares them with the metrics that the tasks return.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, Final, Literal, get_args

import yaml

from evalsvc.errors import near_misses
from evalsvc.spec.protocol import Direction

Range = Literal["any", "distance", "positive", "probability", "share"]
"""Values that a metric may have, which decide on its interval; see `value_interval`. `distance`: from 0 on.
`positive`, `probability`: means of numbers that cannot be negative. `share`: from 0 to 1, with Wilson's interval where
every item is 1 or 0."""

RANGES: Mapping[str, Range] = {
    "fraction": "share",
    "probability": "probability",
    "distance": "distance",
    **dict.fromkeys(("nats/token", "nats/pair", "bits/byte", "tokens"), "positive"),
}
"""Usual ranges, by unit; `any` for other units."""

Kind = Literal["loss", "text_to_image", "reconstruction", "language", "forgetting", "completions", "alignment"]
"""Kind of task, which a metric's protocol has under `task`; of two kinds with the same metrics, the first."""

KINDS: tuple[Kind, ...] = get_args(Kind)

SAME_METRICS: Mapping[str, Kind] = {"images": "text_to_image"}
"""Kinds of tasks with the metrics of another kind."""

ITEMS = "items"
"""Value of `Definition.pairs` where two checkpoints are compared item by item."""

OF_METRIC: Final = "the metric's"
"""Unit or direction of a metric that is computed from another metric and has that metric's unit or direction."""


ANY = ("<metric>",)
"""Names of a definition that fits every metric."""


@dataclass(frozen=True)
class Definition:
    """Definition of a metric, or of several metrics that differ only in the tokens, images or documents they cover."""

    kind: Kind
    """Kind of task that returns the metric."""
    names: tuple[str, ...]
    """Second halves of the metric's names, after `<task>/` or `<benchmark>/`. `<…>` stands for any text, and a part in
    brackets may be absent: `acc[_within]`."""
    formula: str
    """Formula of the value, in one line of mathematics or words."""
    unit: str
    """Unit as in `MetricValue.unit`, or `OF_METRIC`."""
    direction: Direction | Literal["the metric's"]
    """Direction as in `MetricValue.direction`, or `OF_METRIC`."""
    item: str
    """Kind of item that `n` counts."""
    error: str
    """Method of the standard error: a key of `ERRORS`, or a description in words."""
    range: Range | None = None
    """Values that the metric may have; None for the usual ones of its unit."""
    source: str = ""
    """Publication that defines the metric; empty where the formula is the whole definition."""
    estimator: str = ""
    """Version of the estimator as in the protocol: of the metric, of the comparison with a base, or of both."""
    least: int = 1
    """Smallest number of items that gives a value."""
    group: str = ""
    """Description of items that depend on each other and count as one in the error; empty if every item is independent.
    """
    grouped_by: str = ""
    """Key of the task's items that names each item's group; empty where items name no group."""
    pairs: str = ITEMS
    """Reason why items of two checkpoints are not paired; `items` if they are paired."""
    title: str = ""
    """The metric in words, for the metrics that a headline may have: `$task` and `$name` are the halves of the metric's
    name, and other words with `$` its placeholders."""
    companion_of: tuple[str, str] | None = None
    """Rule for the name of the main metric, next to which tables show the metric: a regular expression for the part of
    the name to replace, and the replacement. None if the metric is no companion and has a row."""

    def range_in(self, unit: str) -> Range:
        """Return the values that the metric may have in a unit; `any` in another unit than the definition's."""
        return self.range or RANGES.get(unit, "any") if self.unit in (unit, OF_METRIC) else "any"

    @property
    def all_names(self) -> str:
        """All names, separated by commas."""
        return ", ".join(self.names)

    def matches(self, name: str) -> bool:
        """Return whether the definition covers a metric by its second half, after `<task>/` or `<benchmark>/`."""
        return any(_expression(pattern).fullmatch(name) for pattern in self.names)

    def main_name(self, name: str) -> str | None:
        """Return the name of the metric next to which tables show the metric `name`; None for a row of its own."""
        return None if self.companion_of is None else re.sub(*self.companion_of, name)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    signs = {"[": "(?:", "]": ")?"}
    parts = re.split(r"(<\w+>|[\[\]])", pattern)
    return re.compile(
        "".join(f"(?P{part}.+)" if part[:1] == "<" else signs.get(part, re.escape(part)) for part in parts)
    )


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
_CONTENT: Mapping[str, Any] = yaml.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), _LOADER)


def _definitions(content: Mapping[str, Any]) -> Iterator[Definition]:
    for group in content["groups"]:
        for metric in group["metrics"]:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in {**group["common"], **metric}.items()
            }
            for name in ("formula", "error", "source", "group"):
                if name in fields:
                    fields[name] = Template(fields[name]).substitute(content["texts"])
            yield Definition(**fields, title=content["titles"].get(fields["names"][0], ""))


ERRORS: Mapping[str, str] = _CONTENT["errors"]
"""Methods of the standard errors, by the names that definitions use."""

DEFINITIONS: tuple[Definition, ...] = tuple(_definitions(_CONTENT))

_COMPANIONS = tuple(definition for definition in DEFINITIONS if definition.companion_of is not None)


def find_definitions(wanted: str) -> list[Definition]:
    """Return the definitions that match a metric's name, with or without its first half, or a pattern.

    A definition that fits every name, such as that of lm-eval's other metrics, is returned only for its own name.
    """
    matches, second_half = list[Definition](), wanted.rpartition("/")[2]
    for kind in KINDS:
        of_kind = definitions_of(kind)
        named = [entry for entry in of_kind if any(fnmatchcase(name, wanted) or name == wanted for name in entry.names)]
        matching = (entry for entry in of_kind if entry.names != ANY and entry.matches(second_half))
        matches += named or list(islice(matching, 1))
    return matches


def main_metric(name: str, known: Collection[str]) -> str | None:
    """Return the metric next to which a companion is shown, by full names; None if it is not in `known`."""
    first, slash, second = name.rpartition("/")
    for definition in _COMPANIONS:
        if definition.matches(second):
            main = f"{first}{slash}{definition.main_name(second)}"
            return main if main in known else None
    return None


def definitions_of(kind: str) -> list[Definition]:
    """Return the definitions of the metrics of a kind of task; none for a task that another package adds."""
    return [definition for definition in DEFINITIONS if definition.kind == SAME_METRICS.get(kind, kind)]


@lru_cache(maxsize=4096)
def range_of(kind: str | None, name: str, unit: str) -> Range:
    """Return a metric's range by the second half of its name, of another kind where `kind` has none; or `any`."""
    for definition in sorted(DEFINITIONS, key=lambda each: each.kind != SAME_METRICS.get(kind or "", kind)):
        if definition.names != ANY and definition.matches(name):
            return definition.range_in(unit)
    return "any"


@lru_cache(maxsize=4096)
def title_of(metric: str) -> str | None:
    """Return a metric in words, such as `Image loss` for `pairs/image`; None if its definition has no title."""
    task, _, name = metric.partition("/")
    for definition in DEFINITIONS:
        matches = [match for each in definition.names if (match := _expression(each).fullmatch(name))]
        if definition.names != ANY and matches:
            words = {"task": task, "name": name.replace("_within", ""), **matches[0].groupdict("")}
            title = Template(definition.title).substitute({key: text.replace("_", " ") for key, text in words.items()})
            within = ", softmax over its type" if title and "_within" in name else ""
            return title[:1].upper() + title[1:] + within or None
    return None


@lru_cache(maxsize=1024)
def may_return(kind: str, name: str) -> bool:
    """Say whether a task of a kind may return a metric with this second half of its name.

    Benchmarks may have metrics that only lm-eval knows. Of these, a name that is nearly a known one is no metric. A
    task that another package adds may return anything.
    """
    if not (of_kind := definitions_of(kind)):
        return True
    if any(definition.matches(name) for definition in of_kind if definition.names != ANY):
        return True
    takes_any = any(definition.names == ANY for definition in of_kind)
    return takes_any and not near_misses(name, plain_names(kind), cutoff=0.8)


def plain_names(kind: str | None = None) -> list[str]:
    """Return the names of metrics without optional parts in brackets, except names with a placeholder `<…>`."""
    chosen = DEFINITIONS if kind is None else definitions_of(kind)
    names = (re.sub(r"\[[^]]*\]", "", name) for definition in chosen for name in definition.names)
    return list(dict.fromkeys(name for name in names if "<" not in name))
