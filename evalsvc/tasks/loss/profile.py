"""The loss by position in captions and images, with standard errors over sequences or groups of sequences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from evalsvc.errors import InternalError, InvalidData
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.ratio import Moments, Ratio
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.loss.metrics import TOLERANCE, Unigrams, choices_of

Grid = tuple[int, int]
"""Rows and columns of an image's codes, which are stored row by row."""

SINGLE_POSITIONS = 128
POSITION_STARTS = (*range(SINGLE_POSITIONS), *(SINGLE_POSITIONS << power for power in range(16)))
"""Starts of the bins of positions: single positions at first, then each bin as wide as all bins before it."""

MAX_CELLS = 1 << 14
"""Maximum number of cells of a grid, for an artifact of a few megabytes. Larger images are profiled by position."""

GROUPS = {
    "text_position": "text",
    "image_row": "image",
    "image_column": "image",
    "image_cell": "image",
    "image_position": "image",
}
"""Type of the targets of each group of bins."""


@dataclass(frozen=True)
class Bin:
    start: int
    stop: int
    """Range of positions, rows, columns or cells [start, stop)."""
    tokens: int
    loss: Ratio
    within: Ratio

    @property
    def label(self) -> str:
        return str(self.start) if self.stop == self.start + 1 else f"{self.start}-{self.stop - 1}"


Profile = Mapping[str, Sequence[Bin | None]]
"""Bins of each group in order; None for bins without targets."""


def find_grid(counts: set[int], columns: int | None, path: str) -> tuple[Grid | None, str | None]:
    """Find the grid of images of so many codes (not 0), square or of `columns` columns, or why there is none."""
    if columns is not None:
        odd = [count for count in sorted(counts) if count % columns]
        if odd:
            raise InvalidData(
                f"{path} has an image of {odd[0]} codes, which is not a multiple of {columns}; correct `image_columns`"
            )
    if len(counts) != 1:
        return None, f"images have {min(counts)} to {max(counts)} codes" if counts else None
    [count] = counts
    if count > MAX_CELLS:
        return None, f"images have {count:,} codes, but a grid has at most {MAX_CELLS:,}"
    if columns is None and math.isqrt(count) ** 2 != count:
        return None, f"images have {count} codes, which is not a square number; set image_columns"
    columns = columns or math.isqrt(count)
    return (count // columns, columns), None


def add_up(outputs: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> Profile:
    """Combine the `ProfileSums.columns` of all shards to a profile."""
    parts = {group: [output[group] for output in outputs if group in output] for group in GROUPS}
    return {group: _bins(group, sums) for group, sums in parts.items() if sums}


def _bins(group: str, parts: Sequence[Sequence[Sequence[float]]]) -> list[Bin | None]:
    columns = [[math.fsum(values) for values in zip(*column, strict=True)] for column in zip(*parts, strict=True)]
    last = max(place for place, n in enumerate(columns[0]) if n)
    edges = pairwise((*POSITION_STARTS, 2 * POSITION_STARTS[-1])) if "position" in group else None
    bins: list[Bin | None] = []
    for place, (n, c, x, cc, cx, xx, w, cw, ww, s) in enumerate(zip(*columns, strict=True)):
        start, stop = (place, place + 1) if edges is None else next(edges)
        loss, within = Moments(n, c, x, cc, cx, xx).ratio(), Moments(n, c, w, cc, cw, ww).ratio()
        if loss is not None and within is not None:
            # The moments are over independent units, which are fewer than the sequences if there are groups.
            units = int(n) if n < s else None
            loss, within = (replace(ratio, n=int(s), groups=units) for ratio in (loss, within))
            bins.append(Bin(start, stop, int(c), loss, within))
        elif place < last or edges is None:
            bins.append(None)
    return bins


def require_identity(profile: Profile, sums: Mapping[str, Sequence[float]]) -> None:
    """Raise InternalError unless every group adds up to the losses of its type, `sums` of each sequence."""
    for group, bins in profile.items():
        kind = GROUPS[group]
        filled = [entry for entry in bins if entry is not None]
        tokens = sum(entry.tokens for entry in filled)
        for prefix, name in (("nll", "loss"), ("within", "within")):
            total = math.fsum(entry.tokens * getattr(entry, name).value for entry in filled)
            expected = math.fsum(sums[f"{prefix}_{kind}"])
            if tokens != sum(sums[f"n_{kind}"]) or not math.isclose(total, expected, rel_tol=TOLERANCE):
                raise InternalError(
                    f"the {name} by {group} adds up to {total!r} over {tokens} tokens, that of the sequences to "
                    f"{expected!r}; this is a bug in evalsvc"
                )


def profile_metrics(
    task: str,
    profile: Profile,
    groups: Sequence[str],
    ids: Mapping[str, int],
    protocol: Mapping[str, object],
    grid: Grid | None,
) -> Iterator[MetricValue]:
    """Yield a metric for every bin of these groups, such as `<task>/image_row_07`; `ids` are as in `loss_metrics`."""
    for group in groups:
        bins = [entry for entry in profile.get(group, ()) if entry is not None]
        shaped = {**protocol, "grid": list(grid)} if grid and GROUPS[group] == "image" else protocol
        digits = len(str(bins[-1].start)) if bins else 0
        for entry in bins:
            name = f"{task}/{group}_{entry.start:0{digits}}" + (
                "" if entry.stop == entry.start + 1 else f"_{entry.stop - 1}"
            )
            yield entry.loss.as_metric(
                name, "nats/token", "lower", Protocol(shaped), math.log(choices_of(GROUPS[group], ids))
            )


def profile_artifact(
    profile: Profile, grid: Grid | None, ids: Mapping[str, int], unigrams: Mapping[str, Unigrams]
) -> Artifact:
    groups = {group: _columns(bins, exact=group != "image_cell") for group, bins in profile.items()}
    losses = {kind: {name: asdict(loss) for name, loss in by_name.items()} for kind, by_name in unigrams.items()}
    # PostgreSQL may change the order of keys in a plan; sort them, so that the digest stays the same.
    more = json.loads(json.dumps({"choices": dict(ids), "unigrams": losses}, sort_keys=True))
    content = {"version": 2, "unit": "nats/token", "grid": grid, **more, **groups}
    details = {"groups": list(groups), "grid": grid}
    text = json.dumps(content, allow_nan=False).encode()
    return Artifact("loss_profile", "loss_profile.json", "application/json", text, details)


def _columns(bins: Sequence[Bin | None], exact: bool) -> dict[str, list[float | None]]:

    def number(value: float | None) -> float | None:
        return value if exact or value is None else float(f"{value:.7g}")

    filled = [entry for entry in bins if entry is not None]
    return {
        "start": [entry.start for entry in filled],
        "stop": [entry.stop for entry in filled],
        "sequences": [entry.loss.n for entry in filled],
        "independent": [entry.loss.independent for entry in filled],
        "tokens": [entry.tokens for entry in filled],
        **{
            f"{name}{suffix}": [number(getattr(getattr(entry, name), field)) for entry in filled]
            for name in ("loss", "within")
            for suffix, field in (("", "value"), ("_stderr", "stderr"))
        },
    }
