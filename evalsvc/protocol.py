"""What makes two numbers comparable: the protocol, and the metric value that carries it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
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
    items: tuple[str, ...] = ()
    """What of the task's items the value is made of: one key, and it is the mean of that number; two, and it is the
    ratio of their sums. Only items that have the keys count, and of those with a `benchmark` only the ones whose
    benchmark is the first half of the name. Empty: it is not made of items, and paired comparisons do not apply."""

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
            "items": list(self.items),
        }


def plain_json(value: Any) -> Any:
    """`value` as every JSON and every database can hold it.

    NaN and infinities become strings, tuples lists, and NUL characters, which PostgreSQL keeps in no text, U+FFFD.

    Raises:
        TypeError: something in it is not JSON-able.
    """
    if isinstance(value, Mapping):
        return {plain_json(str(key)): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, float):
        return number_to_json(value)
    if value is None or isinstance(value, int):
        return value
    raise TypeError(f"{type(value).__name__} {value!r:.80} is not JSON-able")


def number_to_json(value: float | None) -> float | str | None:
    """A finite number as itself, the others as `"NaN"`, `"Infinity"`, `"-Infinity"`: JSON has no words for them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


ABSENT = object()


def differences(one: Any, other: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two JSON-able values, by dotted key; `ABSENT` where one side has none."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return {} if one == other else {where: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**one, **other}:
        dotted = f"{where}.{key}" if where else str(key)
        found |= differences(one.get(key, ABSENT), other.get(key, ABSENT), dotted)
    return found


def differences_to_json(found: Mapping[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    """`{key: {"a": …, "b": …}}`; a side that lacks the field is left out."""
    return {
        key: {side: value for side, value in zip("ab", values, strict=True) if value is not ABSENT}
        for key, values in found.items()
    }


def differences_from_json(found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """What `differences_to_json` was given."""
    return {key: (sides.get("a", ABSENT), sides.get("b", ABSENT)) for key, sides in found.items()}


def describe_differences(found: Mapping[str, tuple[Any, Any]]) -> str:
    """For people: `sampling.seed 0 → 1, limit (none) → 64`."""
    return ", ".join(f"{key} {short_json(old)} → {short_json(new)}" for key, (old, new) in found.items())


def distinguishing(contents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each of several protocols, by dotted key, the fields in which they are not all alike; without those it lacks.

    It is what tells series of one metric apart for people, who cannot tell ids apart.
    """
    found = [differences(contents[0], content) for content in contents]
    first = {key: old for pairs in found for key, (old, _) in pairs.items()}
    fields = [{key: pairs[key][1] if key in pairs else old for key, old in first.items()} for pairs in found]
    return [{key: value for key, value in own.items() if value is not ABSENT} for own in fields]


def describe_fields(found: Mapping[str, Any]) -> str:
    """For people: `sampling.guidance_scale=3.0`."""
    return ", ".join(f"{key}={short_json(value)}" for key, value in found.items())


def short_json(value: Any) -> str:
    """As JSON; of long values, such as digests, the beginning."""
    text = "(none)" if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:16] + "…"
