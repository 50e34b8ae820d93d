"""Table of the definitions of all metrics: formula, unit, items, pairs, standard error and source.

`evalsvc metrics` prints the table, docs/reference/metrics.md is generated from the table, and a test compares the table
with the metrics that the tasks return. A new metric is one more entry in the file of its kind of task.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice

from evalsvc.errors import near_misses
from evalsvc.metrics.definitions.alignment import ALIGNMENT
from evalsvc.metrics.definitions.completions import COMPLETIONS
from evalsvc.metrics.definitions.definition import ANY, ITEMS, KINDS, OF_METRIC, Definition, Kind, Range
from evalsvc.metrics.definitions.forgetting import FORGETTING
from evalsvc.metrics.definitions.language import LANGUAGE
from evalsvc.metrics.definitions.loss import LOSS
from evalsvc.metrics.definitions.reconstruction import RECONSTRUCTION
from evalsvc.metrics.definitions.standard_errors import ERRORS
from evalsvc.metrics.definitions.text_to_image import TEXT_TO_IMAGE

__all__ = [
    "ANY",
    "DEFINITIONS",
    "ERRORS",
    "ITEMS",
    "KINDS",
    "OF_METRIC",
    "Definition",
    "Kind",
    "Range",
    "find_definitions",
    "main_metric",
    "may_return",
    "plain_names",
    "range_of",
]

DEFINITIONS: tuple[Definition, ...] = (
    *LOSS,
    *TEXT_TO_IMAGE,
    *RECONSTRUCTION,
    *LANGUAGE,
    *FORGETTING,
    *COMPLETIONS,
    *ALIGNMENT,
)

_COMPANIONS = tuple(definition for definition in DEFINITIONS if definition.companion_of is not None)


def find_definitions(wanted: str) -> list[Definition]:
    """Return the definitions that match a metric's name, with or without its first half, or a pattern.

    A definition that fits every name, such as that of lm-eval's other metrics, is returned only for its own name.
    """
    second_half = wanted.rpartition("/")[2]
    matches = []
    for kind in KINDS:
        of_kind = [definition for definition in DEFINITIONS if definition.kind == kind]
        named = [entry for entry in of_kind if any(fnmatchcase(name, wanted) or name == wanted for name in entry.names)]
        matching = (entry for entry in of_kind if entry.names != ANY and entry.matches(second_half))
        matches += named or list(islice(matching, 1))
    return matches


def main_metric(name: str, known: Collection[str]) -> str | None:
    """Return the main metric that a companion, such as a perplexity, is shown next to; both by their full names.

    Return None if the metric is no companion, or if its main metric is not in `known`: the metric then has a row.
    """
    first, slash, second = name.rpartition("/")
    for definition in _COMPANIONS:
        if definition.matches(second):
            main = f"{first}{slash}{definition.main_name(second)}"
            return main if main in known else None
    return None


@lru_cache(maxsize=4096)
def range_of(kind: str | None, name: str, unit: str) -> Range:
    """Return the range of a metric of a kind of task by the second half of its name; `any` for an unknown metric.

    Another kind's definition counts where the kind has none: forgetting returns the benchmarks' metrics too.
    """
    for definition in sorted(DEFINITIONS, key=lambda each: each.kind != kind):
        if definition.names != ANY and definition.matches(name):
            return definition.range_in(unit)
    return "any"


@lru_cache(maxsize=1024)
def may_return(kind: str, name: str) -> bool:
    """Say whether a task of a kind may return a metric with this second half of its name.

    Benchmarks may have metrics that only lm-eval knows. Of these, a name that is nearly a known one is no metric. A
    task that another package adds may return anything.
    """
    if kind not in KINDS:
        return True
    of_kind = [definition for definition in DEFINITIONS if definition.kind == kind]
    if any(definition.matches(name) for definition in of_kind if definition.names != ANY):
        return True
    takes_any = any(definition.names == ANY for definition in of_kind)
    return takes_any and not near_misses(name, plain_names(kind), cutoff=0.8)


def plain_names(kind: str | None = None) -> list[str]:
    """Return the names of metrics without optional parts in brackets, except names with a placeholder `<…>`."""
    chosen = (definition for definition in DEFINITIONS if kind in (None, definition.kind))
    names = (re.sub(r"\[[^]]*\]", "", name) for definition in chosen for name in definition.names)
    return list(dict.fromkeys(name for name in names if "<" not in name))
