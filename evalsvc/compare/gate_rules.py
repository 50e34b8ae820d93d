"""Rules of the gate: how much worse each metric may be, and the file that lists the rules."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.metrics.definitions import main_metric
from evalsvc.metrics.intervals import upper_tail
from evalsvc.spec.documents.comparisons import Family
from evalsvc.spec.suite import check_keys, validation_message
from evalsvc.spec.visible_text import check_visible
from evalsvc.spec.yaml_text import read_yaml_mapping


class Rule(BaseModel):
    """Limit of how much worse a metric may be.

    A metric is a regression if it is worse by more than the tolerance, which is the larger of `absolute` and
    `relative`, and by more than the noise. The noise is the distance from the difference to its one-sided bound. The
    bound misses the true difference as often as a normal variable exceeds `standard_errors` standard deviations: 3 are
    a level of 0.00135, 2 are a level of 0.023. The bound is that of Student's t, guarded against skew, or that of
    McNemar's exact test for items that are right or wrong, so the level also holds for few items. The level is that of
    one metric; see `Family`.

    If a value has no standard error, a tolerance that the rule states decides alone. Without such a tolerance, or with
    fewer than 8 independent items, the metric is not judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metric: Annotated[str, Field(min_length=1), AfterValidator(check_visible)]
    """Name of a metric, or a pattern for several metrics: `arc_*/acc`. The first rule that matches a metric applies.
    Patterns leave out companions, such as the perplexity of a loss, which would repeat the verdict of their metric."""
    direction: Literal["lower", "higher"] | None = None
    """Better direction [the metric's own]."""
    absolute: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Tolerated worsening in the metric's unit."""
    relative: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """Tolerated worsening as a share of the baseline's value. The default exceeds rounding on another device."""
    standard_errors: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """Level of the rule, as standard errors of a normal distribution; 0 turns the noise off. With 2, an unchanged
    metric is called worse in one build of 44, with 3 in one of 740; with several metrics a build fails more often."""
    missing: Literal["fail", "ignore"] = "fail"
    """Handling of a metric that the candidate or the baseline lacks."""
    left_out: float = Field(default=0.0, ge=0, le=1)
    """Largest share of the items of a side that the other side may lack; the difference leaves such items out. A task
    with `until` may also stop earlier on one side."""
    inconclusive: Literal["pass", "fail"] = "pass"
    """Handling of a metric within the noise, which may be worse by more than the tolerance. With `fail` the metric is
    not judged, and the gate does not pass."""
    max_noise: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest noise, in the metric's unit, with which a metric within the noise is still judged [any noise]."""

    @property
    def states_tolerance(self) -> bool:
        """Whether the rule states a tolerance; the default tolerance covers rounding only."""
        return not self.model_fields_set.isdisjoint(("absolute", "relative"))

    @property
    def level(self) -> float:
        """The probability that an unchanged metric is called worse."""
        return upper_tail(self.standard_errors, math.inf)

    def matches(self, name: str) -> bool:
        return name == self.metric or fnmatchcase(name, self.metric)

    def judges(self, name: str, known: Collection[str]) -> bool:
        """Return whether the rule matches a metric, by its whole name if its main metric is among the `known` names."""
        return self.matches(name) and (name == self.metric or main_metric(name, known) is None)


KEYS = ("rules", "family")

EVERYTHING = (Rule(metric="*"),)
"""Rules of a gate without a file of rules: every metric that has a better side is judged, except companions."""


@dataclass(frozen=True)
class Rules:
    rules: tuple[Rule, ...] = EVERYTHING
    family: Family = "none"
    """Scope of the rules' levels: `none` for each metric alone, `holm` for all metrics together."""


def read_rules(path: Path | None) -> Rules:
    """Read a YAML file `{rules: [{metric: …, …}, …], family: holm}`; without a file, return `EVERYTHING`."""
    if path is None:
        return Rules()
    content = read_yaml_mapping(path, "file of --rules", "rules: [{metric: pairs/*}]", InvalidRequest)
    check_keys(f"the rules {path}", content, KEYS, InvalidRequest)
    rules, family = content.get("rules"), content.get("family", "none")
    if not isinstance(rules, list) or not rules:
        raise InvalidRequest(f"{path} has no list `rules`; give at least one, e.g. `- metric: pairs/*`")
    if family not in get_args(Family):
        raise InvalidRequest(f"{path}: {UnknownName.among('family', str(family), get_args(Family)).message}")
    return Rules(tuple(_parse_rule(f"{path}, rule {index + 1}", rule) for index, rule in enumerate(rules)), family)


def _parse_rule(where: str, rule: object) -> Rule:
    if not isinstance(rule, Mapping):
        raise InvalidRequest(f"{where} is {rule!r}; write a mapping with the key `metric`, e.g. `- metric: pairs/*`")
    check_keys(where, rule, Rule.model_fields, InvalidRequest)
    try:
        return Rule.model_validate(dict(rule))
    except ValidationError as error:
        raise InvalidRequest(f"{where}: {validation_message(error)}") from None
