"""What makes two numbers comparable: the protocol, and the metric value that carries it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["lower", "higher", "none"]
"""Which way is better. `none` is a description, such as a count or a probability mass."""


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value: sorted keys, no white space, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """Everything that moves a number beyond its stated tolerance, as JSON-able content.

    Two values with different protocols are never put in one series. What does not move the
    number (device, batch shape, shards) is provenance and does not belong here.
    """

    content: Mapping[str, Any]

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the content's digest."""
        return digest(self.content)[:16]


@dataclass(frozen=True)
class MetricValue:
    """One number with all that is needed to trust it."""

    name: str
    """`<task>/<metric>`."""
    value: float
    stderr: float | None
    """Standard error of `value`; None where it is not defined (one item)."""
    n: int
    """How many independent items (sequences, images, questions) the value rests on."""
    unit: str
    direction: Direction
    protocol: Protocol
    baseline: float | None = None
    """The value of a model that knows nothing (uniform over the ids); None where there is no such value."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able; NaN and infinities as strings, the protocol as its id."""
        return {
            "name": self.name,
            "value": number_to_json(self.value),
            "stderr": number_to_json(self.stderr),
            "n": self.n,
            "unit": self.unit,
            "direction": self.direction,
            "protocol": self.protocol.id,
            "baseline": number_to_json(self.baseline),
        }


def number_to_json(value: float | None) -> float | str | None:
    """A finite number as itself, the others as `"NaN"`, `"Infinity"`, `"-Infinity"`: JSON has no words for them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
