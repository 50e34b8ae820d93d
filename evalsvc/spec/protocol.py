"""What makes two numbers comparable: the protocol, and the metric value that carries it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import islice, permutations
from typing import Any, TypeAlias, overload

from evalsvc.errors import InvalidData
from evalsvc.spec.documents.fields import Direction as Direction
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.results import Metric
from evalsvc.spec.visible_text import check_visible


def canonical_json(value: object) -> str:
    """JSON with one spelling per value: sorted keys, no white space, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """Everything that moves a number beyond its stated tolerance, as JSON-able content.

    Two values with different protocols are never put in one series. What does not move the
    number (device, batch shape, shards) is provenance and does not belong here.
    """

    content: Mapping[str, object]

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
    ratio of their sums; where the unit is `perplexity`, e to that ratio. Only items that have the keys count, and of
    those with a `benchmark` only the ones whose benchmark is the first half of the name, unless the key holds a `/`:
    such a number is what an item of any benchmark adds to the value, its linearised share. Empty: the value is not made
    of items, and paired comparisons do not apply."""
    groups: int | None = None
    """How many independent groups of items the standard error rests on: captions of one image are one group, and so are
    the samples that a jackknife leaves out together. None: every item is one."""
    grouped_by: str | None = None
    """The key of the task's items that names the group of each; None: every item is its own."""
    drawn_from: int | None = None
    """Of how many items the `n` are a sample without replacement, where the standard error counts on that."""

    def __post_init__(self) -> None:
        """Raise InvalidData for a name or unit with a control character: both are shown on terminals."""
        for field, text in (("name", self.name), ("unit", self.unit)):
            try:
                check_visible(text)
            except ValueError as error:
                raise InvalidData(f"the {field} of a metric, {error}") from None

    def to_json(self) -> dict[str, object]:
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
            "groups": self.groups,
            "grouped_by": self.grouped_by,
            "drawn_from": self.drawn_from,
        }


def plain_json(value: object) -> Any:
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


@overload
def number_to_json(value: float) -> Number: ...


@overload
def number_to_json(value: None) -> None: ...


@overload
def number_to_json(value: float | None) -> Number | None: ...


def number_to_json(value: float | None) -> Number | None:
    """A finite number as itself, the others as `"NaN"`, `"Infinity"`, `"-Infinity"`: JSON has no words for them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


ABSENT = object()


Differences: TypeAlias = dict[str, tuple[object, object]]
"""What differs between two protocols, by dotted key."""


def differences(one: object, other: object, where: str = "") -> Differences:
    """What differs between two JSON-able values, by dotted key; `ABSENT` where one side has none."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        # True equals 1 for Python, and 1 equals 1.0; of a protocol they are different values.
        return {} if _spelling(one) == _spelling(other) else {where: (one, other)}
    found: Differences = {}
    for key in {**one, **other}:
        dotted = f"{where}.{key}" if where else str(key)
        found |= differences(one.get(key, ABSENT), other.get(key, ABSENT), dotted)
    return found


def _spelling(value: object) -> object:
    """What only equal values share. A file that somebody wrote may hold NaN, which the canonical form refuses."""
    return value if value is ABSENT else json.dumps(value, sort_keys=True)


def differences_to_json(found: Mapping[str, tuple[object, object]]) -> dict[str, dict[str, object]]:
    """`{key: {"a": …, "b": …}}`; a side that lacks the field is left out."""
    return {
        key: {side: value for side, value in zip("ab", values, strict=True) if value is not ABSENT}
        for key, values in found.items()
    }


def differences_from_json(found: Mapping[str, Mapping[str, object]]) -> Differences:
    """What `differences_to_json` was given."""
    return {key: (sides.get("a", ABSENT), sides.get("b", ABSENT)) for key, sides in found.items()}


def describe_differences(found: Mapping[str, tuple[object, object]]) -> str:
    """For people: `sampling.seed 0 → 1, limit (none) → 64`."""
    return ", ".join(f"{key} {short_json(old)} → {short_json(new)}" for key, (old, new) in found.items())


def distinguishing(contents: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Return the fields that tell several protocols of one metric apart, by the protocols' ids and by dotted key.

    `contents` are the protocols by id. Every field stands as its own protocol has it. Of two protocols of another
    form, such as a measured one and an imported one, the fields that only one of them has are told from the side that
    has fewer. Where the fields do not tell a protocol apart for people, `protocol` has its id. One protocol alone has
    nothing to be told apart from.
    """
    if len(contents) < 2:
        return {identity: {} for identity in contents}
    leaves = {identity: _fields(content) for identity, content in contents.items()}
    values: dict[_Path, set[object]] = {}
    for fields in leaves.values():
        for path, value in fields.items():
            values.setdefault(path, set()).add(_spelling(value))
    told = {path for path, different in values.items() if len(different) > 1}
    # A protocol of which nothing is known is told by its id: all that others have would tell it from them.
    told |= _told_by_presence({frozenset(fields) for fields in leaves.values() if fields})
    found = {
        identity: {".".join(path): value for path, value in fields.items() if path in told}
        for identity, fields in leaves.items()
    }
    words = {identity: describe_fields(fields) for identity, fields in found.items()}
    counts = Counter(words.values())
    return {
        identity: fields if fields and counts[words[identity]] == 1 else {**fields, "protocol": identity}
        for identity, fields in found.items()
    }


def tell_apart(
    places: Iterable[tuple[str, str]], contents: Mapping[str, Mapping[str, object]]
) -> dict[tuple[str, str], dict[str, object]]:
    """Return the fields that tell the protocols of each metric apart, by metric and id of the protocol.

    `places` are names of metrics with the ids of their protocols, `contents` the protocols by id; one that is not
    there is told by its id. A metric with one protocol has no such fields. See `distinguishing`.
    """
    ids: dict[str, dict[str, Mapping[str, object]]] = {}
    for metric, identity in places:
        ids.setdefault(metric, {})[identity] = contents.get(identity, {})
    return {
        (metric, identity): fields
        for metric, known in ids.items()
        for identity, fields in distinguishing(known).items()
    }


_Path = tuple[str, ...]
"""The keys that lead to a value inside nested objects."""

FORMS = 32
"""With more different sets of fields than this, protocols are not told apart by which fields they have."""


FIELDS = 1_000
"""A protocol with more fields, which somebody has imported, is told apart by its id alone."""


def _fields(content: Mapping[str, object]) -> dict[_Path, object]:
    found = dict(islice(_leaves(content), FIELDS + 1))
    return found if len(found) <= FIELDS else {}


def _leaves(content: Mapping[str, object], path: _Path = ()) -> Iterator[tuple[_Path, object]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _told_by_presence(forms: Set[frozenset[_Path]]) -> set[_Path]:
    """Return the fields that some protocols have and others lack, of each two protocols those of one side."""
    told: set[_Path] = set()
    for one, other in permutations(forms, 2) if len(forms) <= FORMS else ():
        only_one, only_other = one - other, other - one
        if not only_other or len(only_one) <= len(only_other):
            told |= only_one
    return told


def describe_fields(found: Mapping[str, object]) -> str:
    """For people: `sampling.guidance_scale=3.0`."""
    return ", ".join(f"{key}={short_json(value)}" for key, value in found.items())


def labelled(metric: str, differs: Mapping[str, object]) -> str:
    """Return the metric's name for people, with what tells its protocol apart: `coco/fid (limit=64)`."""
    return f"{metric} ({describe_fields(differs)})" if differs else metric


def labels(metrics: Iterable[Metric], contents: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return the names of metrics for people; see `tell_apart`."""
    places = [(metric.name, metric.protocol) for metric in metrics]
    differs = tell_apart(places, contents)
    return [labelled(place[0], differs[place]) for place in places]


def short_json(value: object) -> str:
    """As JSON; of long values, such as digests, the beginning."""
    text = "(none)" if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:16] + "…"
