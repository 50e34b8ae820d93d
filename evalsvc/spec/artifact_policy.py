"""The rule for which artifacts of a run are kept; the others are pruned. Metrics and results per item always stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evalsvc.errors import InvalidRequest


@dataclass(frozen=True)
class Retention:
    """What any of these keeps is kept; None keeps nothing."""

    last: int | None = None
    """So many steps, the highest that have artifacts."""
    every: int | None = None
    """Steps that are multiples of this."""
    days: float | None = None
    """What was evaluated in so many days."""
    best: str | None = None
    """The steps at which this metric is best, in each of its series."""

    def to_json(self) -> dict[str, float | str]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def parse_retention(text: str) -> Retention | None:
    """The rule in a setting, as JSON; None where it is empty.

    Raises:
        InvalidRequest: it is no such rule.
    """
    if not text.strip():
        return None
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        return retention_of(content)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(
            f"EVALSVC_RETENTION {text[:160]!r} is no rule ({error}); write e.g. "
            '{"last": 10, "every": 1000, "days": 30, "best": "coco/fid"}'
        ) from None


def retention_of(content: Mapping[str, Any]) -> Retention:
    """A rule from its JSON. Raises ValueError, TypeError: it is none."""
    rule = Retention(**content)
    if not rule.to_json():
        raise ValueError("it keeps nothing; give one of last, every, days, best")
    for name in ("last", "every", "days"):
        value = getattr(rule, name)
        kinds = (int, float) if name == "days" else (int,)
        if value is not None and (type(value) not in kinds or not 0 < value < 2**63):
            raise ValueError(f"{name} is {value!r} and must be a number above 0")
    if rule.best is not None and not isinstance(rule.best, str):
        raise ValueError(f"best is {rule.best!r} and must be the name of a metric")
    return rule
