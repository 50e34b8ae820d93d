"""What a gate is asked to find: rules for metrics, and the file that has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evalsvc.errors import InvalidRequest, UnknownName, os_reason
from evalsvc.metrics.student import upper_tail
from evalsvc.spec.documents.comparisons import Family
from evalsvc.spec.suite import check_keys, validation_message


class Rule(BaseModel):
    """How much worse a metric may be.

    A metric is a regression if it is worse by more than the tolerance, which is the larger of `absolute` and
    `relative`, and by more than the noise. The noise is the distance from the difference to its one-sided bound, which
    misses the truth as often as a normal variable exceeds `standard_errors` standard deviations: 3 are a level of
    0.00135, 2 are 0.023. The bound is that of Student's t, guarded against skew; of items that are right or wrong, that
    of McNemar's exact test. So the level holds for few items, too, and it is the level of one metric: see `Family`.

    If the noise is not known (no standard error, fewer than 8 items), a tolerance that the rule states decides alone;
    without one, the metric is not judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    judges_companions: ClassVar[bool] = True
    """Whether the rule also judges perplexities and the like, which say of a change what their loss says."""

    metric: str = Field(min_length=1)
    """A metric's name, or a pattern for several: `arc_*/acc`. Of several rules the first that matches counts."""
    direction: Literal["lower", "higher"] | None = None
    """Which way is better [the metric's own]."""
    absolute: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """So much worse is tolerated, in the metric's unit."""
    relative: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """So much worse is tolerated, as a share of the baseline's value. Rounding on another device moves less."""
    standard_errors: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """The level, as standard errors of a normal distribution; 0: nothing is noise. An unchanged checkpoint is called
    worse on a metric in one build of 44 at 2, and in one of 740 at 3; with several metrics, more often."""
    missing: Literal["fail", "ignore"] = "fail"
    """What it means that the candidate, or the baseline, has no such value."""
    inconclusive: Literal["pass", "fail"] = "pass"
    """What it means that a metric is within the noise, so that it may be worse by more than the tolerance. `fail`: it
    is not judged, and the gate does not pass."""
    max_noise: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """With more noise than this, in the metric's unit, a metric within the noise is not judged [any noise]."""

    @property
    def states_tolerance(self) -> bool:
        """Whether the rule gives a tolerance of its own; the default one is for rounding only."""
        return not self.model_fields_set.isdisjoint(("absolute", "relative"))

    @property
    def level(self) -> float:
        """The chance that a metric that did not change is called worse."""
        return upper_tail(self.standard_errors, math.inf)

    def matches(self, name: str) -> bool:
        return name == self.metric or fnmatchcase(name, self.metric)


class DefaultRule(Rule):
    """The rule for a gate without rules."""

    judges_companions: ClassVar[bool] = False


EVERYTHING = (DefaultRule(metric="*"),)
"""Without rules: every metric that has a better side and is not shown next to another one, as a perplexity is."""


@dataclass(frozen=True)
class Rules:
    """A file of rules."""

    rules: tuple[Rule, ...] = EVERYTHING
    family: Family = "none"


def read_rules(path: Path | None) -> Rules:
    """Read a YAML file, `{rules: [{metric: …, …}, …], family: holm}`; None: `EVERYTHING`.

    Raises:
        InvalidRequest: says which key of which rule is wrong, with near misses.
    """
    if path is None:
        return Rules()
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"the rules {path} cannot be read: {os_reason(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the rules {path} are not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise InvalidRequest(f"the rules {path} are {type(content).__name__}; give a mapping with a list `rules`")
    check_keys(f"the rules {path}", content, ("rules", "family"), InvalidRequest)
    rules, family = content.get("rules"), content.get("family", "none")
    if not isinstance(rules, list) or not rules:
        raise InvalidRequest(f"{path} has no list `rules`; give at least one, e.g. `- metric: pairs/*`")
    if family not in get_args(Family):
        raise InvalidRequest(f"{path}: {UnknownName.among('family', str(family), get_args(Family)).message}")
    return Rules(tuple(_parse_rule(f"{path}, rule {index + 1}", rule) for index, rule in enumerate(rules)), family)


def _parse_rule(where: str, rule: object) -> Rule:
    if not isinstance(rule, Mapping):
        raise InvalidRequest(f"{where} is {rule!r}; it must be a mapping with the key `metric`")
    check_keys(where, rule, Rule.model_fields, InvalidRequest)
    try:
        return Rule.model_validate(dict(rule))
    except ValidationError as error:
        raise InvalidRequest(f"{where}: {validation_message(error)}") from None
