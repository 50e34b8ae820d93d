"""Protocols, which decide whether two numbers are comparable, and metric values, which carry a protocol."""

from __future__ import annotations

import hashlib
import json
import math
import re
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
    """Return JSON with one spelling per value: sorted keys, no white space. NaN raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """Everything that changes a number beyond its stated tolerance, as JSON content.

    Values with different protocols are never in one series. Device, batch shape and shards do not change a number; they
    are provenance and are not part of the protocol.
    """

    content: Mapping[str, object]

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the content's digest."""
        return digest(self.content)[:16]


@dataclass(frozen=True)
class MetricValue:
    """A number, with everything that is needed to trust it."""

    name: str
    """Name, as `<task>/<metric>`."""
    value: float
    stderr: float | None
    """Standard error of `value`; None where it is not defined, as for a single item."""
    n: int
    """Number of independent items (sequences, images, questions) behind the value."""
    unit: str
    direction: Direction
    protocol: Protocol
    baseline: float | None = None
    """Value of a model that knows nothing (uniform over the ids); None if there is no such value."""
    items: tuple[str, ...] = ()
    """Keys of the task's items that the value is computed from: one key for the mean of a number, two keys for a ratio
    of sums, which is exponentiated if the unit is `perplexity`. Only items that have the keys count. Items with a
    `benchmark` count only if the name begins with that benchmark, unless the key holds a `/`: the number is then the
    item's linearised share of the value. Empty if the value is not computed from items; paired comparisons then do not
    apply."""
    groups: int | None = None
    """Number of independent groups of items behind the standard error: captions of one image form a group, and so do
    the samples that a jackknife leaves out together. None: every item is its own group."""
    grouped_by: str | None = None
    """Key of the task's items that holds the group of an item; None: every item is its own group."""
    drawn_from: int | None = None
    """Size of the population that the `n` items were drawn from without replacement, if the standard error takes this
    into account."""
    ends: tuple[float | None, float | None] | None = None
    """Lower and upper end of the interval of 95 %; two times None if there is no interval. A task sets the ends of an
    interval that does not follow from the items, such as Fieller's. None: the ends follow from the items, or from the
    error of a value without items; see `metrics.value_interval`."""

    def __post_init__(self) -> None:
        # Terminals display both.
        for field, text in (("name", self.name), ("unit", self.unit)):
            try:
                check_visible(text)
            except ValueError as error:
                raise InvalidData(f"the {field} of a metric, {error}") from None

    def to_json(self) -> dict[str, object]:
        """Return the value as JSON: NaN and infinities as strings, the protocol as its id."""
        low_high = {} if self.ends is None else dict(zip(("low", "high"), self.ends, strict=True))
        content = {name: value for name, value in vars(self).items() if name != "ends"} | {"protocol": self.protocol.id}
        return {**plain_json(content), **low_high}


_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


def plain_json(value: object) -> Any:
    """Convert `value` to what every JSON reader and every database can hold: NaN and infinities become strings, and NUL
    characters, which PostgreSQL refuses, and unpaired surrogates, which UTF-8 cannot encode, become U+FFFD."""
    if isinstance(value, Mapping):
        return {plain_json(str(key)): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, str):
        return _NOT_STORABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return number_to_json(value)
    if value is None or isinstance(value, int):
        return value
    raise TypeError(f"{type(value).__name__} {value!r:.80} is not JSON-able")


@overload
def number_to_json(value: float) -> Number: ...


@overload
def number_to_json(value: None) -> None: ...


def number_to_json(value: float | None) -> Number | None:
    """Return a finite number as it is, any other as `"NaN"`, `"Infinity"` or `"-Infinity"`, which JSON cannot
    express."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


ABSENT = object()

EXTERNAL = "external"
"""Value of the field `sampling` for external images, which no checkpoint of evalsvc sampled."""

Differences: TypeAlias = dict[str, tuple[object, object]]
"""Differences between two protocols, by dotted key."""


def differences(first: object, second: object, where: str = "") -> Differences:
    """Return the differences between two JSON-able values, by dotted key; a missing value is `ABSENT`."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        # In Python True equals 1 and 1 equals 1.0; in a protocol they are different values.
        return {} if _spelling(first) == _spelling(second) else {where: (first, second)}
    by_key: Differences = {}
    for key in {**first, **second}:
        dotted = f"{where}.{key}" if where else str(key)
        by_key |= differences(first.get(key, ABSENT), second.get(key, ABSENT), dotted)
    return by_key


def _spelling(value: object) -> object:
    """Return a key that only equal values share. An imported file may hold NaN, which the canonical form refuses."""
    return value if value is ABSENT else json.dumps(value, sort_keys=True)


def differences_to_json(by_key: Mapping[str, tuple[object, object]]) -> dict[str, dict[str, object]]:
    """Return `{key: {"a": …, "b": …}}`; a side that lacks the field is left out."""
    return {
        key: {side: value for side, value in zip("ab", values, strict=True) if value is not ABSENT}
        for key, values in by_key.items()
    }


def differences_from_json(content: Mapping[str, Mapping[str, object]]) -> Differences:
    """Convert the result of `differences_to_json` back."""
    return {key: (sides.get("a", ABSENT), sides.get("b", ABSENT)) for key, sides in content.items()}


def describe_differences(by_key: Mapping[str, tuple[object, object]]) -> str:
    """Return differences for people: `sampling.seed 0 → 1, limit (none) → 64`."""
    return ", ".join(f"{key} {short_json(old)} → {short_json(new)}" for key, (old, new) in by_key.items())


def distinguishing(contents: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Return the fields that distinguish several protocols of one metric, by the protocols' ids and by dotted key; none
    for a single protocol.

    If two protocols have different fields, as a measured and an imported one, only the fields of the side with fewer
    extra fields count. Where the fields do not distinguish a protocol for people, `protocol` holds its id. The
    field of `origin_of` is always among them.
    """
    if len(contents) < 2:
        return {identity: origin_of(content) for identity, content in contents.items()}
    leaves = {identity: dict(islice(_leaves(content), FIELDS + 1)) for identity, content in contents.items()}
    leaves = {identity: fields if len(fields) <= FIELDS else {} for identity, fields in leaves.items()}
    values: dict[_Path, set[object]] = {}
    for fields in leaves.values():
        for path, value in fields.items():
            values.setdefault(path, set()).add(_spelling(value))
    paths = {path for path, different in values.items() if len(different) > 1}
    # An empty protocol is shown by its id; otherwise every field of the other protocols would count as a difference.
    paths |= _fields_of_some({frozenset(fields) for fields in leaves.values() if fields})
    distinctive = {
        identity: {".".join(path): value for path, value in fields.items() if path in paths}
        for identity, fields in leaves.items()
    }
    words = {identity: describe_fields(fields) for identity, fields in distinctive.items()}
    counts = Counter(words.values())
    return {
        identity: origin_of(contents[identity])
        | (fields if fields and counts[words[identity]] == 1 else {**fields, "protocol": identity})
        for identity, fields in distinctive.items()
    }


def origin_of(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the field of external images, if a protocol or its distinguishing fields have it."""
    return {"sampling": EXTERNAL} if fields.get("sampling") == EXTERNAL else {}


def tell_apart(
    places: Iterable[tuple[str, str]], contents: Mapping[str, Mapping[str, object]]
) -> dict[tuple[str, str], dict[str, object]]:
    """Return the fields that distinguish the protocols of each metric, by metric and id of the protocol: those of
    `places`. A protocol that `contents` lacks is shown by its id. See `distinguishing`."""
    ids: dict[str, dict[str, Mapping[str, object]]] = {}
    for metric, identity in places:
        ids.setdefault(metric, {})[identity] = contents.get(identity, {})
    return {
        (metric, identity): fields
        for metric, known in ids.items()
        for identity, fields in distinguishing(known).items()
    }


_Path = tuple[str, ...]
"""Keys that lead to a value inside nested objects."""

FORMS = 32
"""Maximum number of different sets of fields for which protocols are distinguished by the presence of fields."""

FIELDS = 1_000
"""Maximum number of fields of a protocol that are compared. A larger one, which must be imported, is shown by its
id."""


def _leaves(content: Mapping[str, object], path: _Path = ()) -> Iterator[tuple[_Path, object]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _fields_of_some(forms: Set[frozenset[_Path]]) -> set[_Path]:
    """Return the fields that some protocols have and others lack; for each pair of protocols, those of one side."""
    paths: set[_Path] = set()
    for form, other in permutations(forms, 2) if len(forms) <= FORMS else ():
        only_form, only_other = form - other, other - form
        if not only_other or len(only_form) <= len(only_other):
            paths |= only_form
    return paths


def describe_fields(fields: Mapping[str, object]) -> str:
    """Return fields for people: `sampling.guidance_scale=3.0`."""
    origin = ["external images"] if origin_of(fields) else []
    others = (f"{key}={short_json(value)}" for key, value in fields.items() if not origin or key != "sampling")
    return ", ".join([*origin, *others])


def labelled(metric: str, differs: Mapping[str, object]) -> str:
    """Return the metric's name with the fields that distinguish its protocol: `coco/fid (limit=64)`."""
    return f"{metric} ({describe_fields(differs)})" if differs else metric


def labels(metrics: Iterable[Metric], contents: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return the names of metrics with the fields that distinguish their protocols; see `tell_apart`."""
    places = [(metric.name, metric.protocol) for metric in metrics]
    differs = tell_apart(places, contents)
    return [labelled(place[0], differs[place]) for place in places]


def short_json(value: object) -> str:
    """Return a value as JSON, shortened if it is long."""
    text = "(none)" if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:16] + "…" + text[-1] * (text[0] in '"[{')
