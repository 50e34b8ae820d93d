"""Retention rules for artifacts. Artifacts that a rule does not keep are pruned; metrics and results per item always
stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evalsvc.errors import InvalidRequest


@dataclass(frozen=True)
class Retention:
    """A retention rule. An artifact that matches any field is kept; a field of None keeps nothing."""

    last: int | None = None
    """Number of the highest steps with artifacts to keep."""
    every: int | None = None
    """Divisor of the steps to keep."""
    days: float | None = None
    """Age in days up to which evaluations keep their artifacts."""
    best: str | None = None
    """Name of a metric. The best step of each of its series is kept."""

    def to_json(self) -> dict[str, float | str]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def parse_retention(text: str) -> Retention | None:
    """Parse the rule in EVALSVC_RETENTION, which is JSON; return None if it is empty."""
    if not text.strip():
        return None
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        return retention_of(content)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(
            f"EVALSVC_RETENTION {text[:160]!r} is not a retention rule ({error}); write e.g. "
            '{"last": 10, "every": 1000, "days": 30, "best": "coco/fid"}'
        ) from None


def retention_of(content: Mapping[str, Any]) -> Retention:
    """Convert JSON to a rule. Raises ValueError or TypeError for anything else."""
    rule = Retention(**content)
    if not rule.to_json():
        raise ValueError("it keeps nothing; set at least one of last, every, days, best")
    for name in ("last", "every", "days"):
        value = getattr(rule, name)
        kinds = (int, float) if name == "days" else (int,)
        if value is not None and (type(value) not in kinds or not 0 < value < 2**63):
            raise ValueError(f"{name} is {value!r} and must be a number above 0")
    if rule.best is not None and not isinstance(rule.best, str):
        raise ValueError(f"best is {rule.best!r} and must be the name of a metric")
    return rule
