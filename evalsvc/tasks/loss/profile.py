"""Where in a caption and in an image the loss is: by place, with errors over sequences or groups of them."""

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
from evalsvc.tasks.loss.loss_map import LossGrid, loss_map
from evalsvc.tasks.loss.yardsticks import TOLERANCE, Unigrams

Grid = tuple[int, int]
"""Rows and columns of an image's codes, which come row by row."""

SINGLE_POSITIONS = 128
POSITION_STARTS = (*range(SINGLE_POSITIONS), *(SINGLE_POSITIONS << power for power in range(16)))
"""Where the bins of positions begin: one position each at first, then each bin as wide as all before it."""

MAX_CELLS = 1 << 14
"""Of a grid; an artifact is then at most a megabyte or two. Larger images are profiled by position."""

GROUPS = {
    "text_position": "text",
    "image_row": "image",
    "image_column": "image",
    "image_cell": "image",
    "image_position": "image",
}
"""Of which type the targets of a group of bins are."""


@dataclass(frozen=True)
class Bin:
    """The losses at some places."""

    start: int
    stop: int
    """Places, rows, columns or cells [start, stop)."""
    tokens: int
    loss: Ratio
    """Over all ids, nats/token."""
    within: Ratio
    """Over the ids of the type."""

    @property
    def label(self) -> str:
        """`7`, or `128-255`."""
        return str(self.start) if self.stop == self.start + 1 else f"{self.start}-{self.stop - 1}"


Profile = Mapping[str, Sequence[Bin | None]]
"""By group, the bins in order; None where there is no target."""


def find_grid(counts: set[int], columns: int | None, path: str) -> tuple[Grid | None, str | None]:
    """Find the grid of images with so many codes (not 0), square or with so many `columns`; or say why there is none.

    Raises InvalidData where images of the data file `path` do not have this many columns.
    """
    if columns is not None:
        odd = [count for count in sorted(counts) if count % columns]
        if odd:
            raise InvalidData(f"{path} has an image of {odd[0]} codes, which are no rows of image_columns, {columns}")
    if len(counts) != 1:
        return None, f"images have {min(counts)} to {max(counts)} codes" if counts else None
    [count] = counts
    if count > MAX_CELLS:
        return None, f"images have {count:,} codes, a grid has {MAX_CELLS:,} at most"
    if columns is None and math.isqrt(count) ** 2 != count:
        return None, f"images have {count} codes, which are no square; give image_columns"
    columns = columns or math.isqrt(count)
    return (count // columns, columns), None


def add_up(outputs: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> Profile:
    """The profile of all shards from `ProfileSums.columns` of each."""
    parts = {group: [output[group] for output in outputs if group in output] for group in GROUPS}
    return {group: _bins(group, some) for group, some in parts.items() if some}


def _bins(group: str, parts: Sequence[Sequence[Sequence[float]]]) -> list[Bin | None]:
    columns = [[math.fsum(values) for values in zip(*column, strict=True)] for column in zip(*parts, strict=True)]
    last = max(place for place, n in enumerate(columns[0]) if n)
    edges = pairwise((*POSITION_STARTS, 2 * POSITION_STARTS[-1])) if "position" in group else None
    bins: list[Bin | None] = []
    for place, (n, c, x, cc, cx, xx, w, cw, ww, s) in enumerate(zip(*columns, strict=True)):
        start, stop = (place, place + 1) if edges is None else next(edges)
        loss, within = Moments(n, c, x, cc, cx, xx).ratio(), Moments(n, c, w, cc, cw, ww).ratio()
        if loss is not None and within is not None:
            # The moments are over independent units, which are fewer than the sequences where groups are.
            units = int(n) if n < s else None
            loss, within = (replace(ratio, n=int(s), groups=units) for ratio in (loss, within))
            bins.append(Bin(start, stop, int(c), loss, within))
        elif place < last or edges is None:
            bins.append(None)
    return bins


def require_identity(profile: Profile, sums: Mapping[str, Sequence[float]]) -> None:
    """Raise InternalError unless every group adds up to its type's losses, `sums` of each sequence."""
    for group, bins in profile.items():
        kind = GROUPS[group]
        some = [one for one in bins if one is not None]
        tokens = sum(one.tokens for one in some)
        for prefix, name in (("nll", "loss"), ("within", "within")):
            total = math.fsum(one.tokens * getattr(one, name).value for one in some)
            expected = math.fsum(sums[f"{prefix}_{kind}"])
            if tokens != sum(sums[f"n_{kind}"]) or not math.isclose(total, expected, rel_tol=TOLERANCE):
                raise InternalError(
                    f"the {name} by {group} adds up to {total!r} over {tokens} tokens, that of the sequences to "
                    f"{expected!r}; this is a bug in evalsvc"
                )


def profile_metrics(
    task: str, profile: Profile, groups: Sequence[str], ids: int, protocol: Mapping[str, object], grid: Grid | None
) -> Iterator[MetricValue]:
    """A metric for every bin of these groups, `<task>/image_row_07`; `ids` are those of the table."""
    for group in groups:
        bins = [one for one in profile.get(group, ()) if one is not None]
        shaped = {**protocol, "grid": list(grid)} if grid and GROUPS[group] == "image" else protocol
        digits = len(str(bins[-1].start)) if bins else 0
        for one in bins:
            name = f"{task}/{group}_{one.start:0{digits}}" + ("" if one.stop == one.start + 1 else f"_{one.stop - 1}")
            yield one.loss.as_metric(name, "nats/token", "lower", Protocol(shaped), math.log(ids))


def profile_artifacts(
    profile: Profile, grid: Grid | None, ids: Mapping[str, int], unigrams: Mapping[str, Unigrams], label: str
) -> list[Artifact]:
    """Return the profile as JSON in columns, a group each, and a picture of the grid; `label` names the checkpoint."""
    groups = {group: _columns(bins, exact=group != "image_cell") for group, bins in profile.items()}
    losses = {kind: {name: asdict(loss) for name, loss in found.items()} for kind, found in unigrams.items()}
    # A plan that was in PostgreSQL has its keys in another order, and the digest is to be the same.
    more = json.loads(json.dumps({"choices": dict(ids), "unigrams": losses}, sort_keys=True))
    content = {"version": 2, "unit": "nats/token", "grid": grid, **more, **groups}
    details = {"groups": list(groups), "grid": grid}
    text = json.dumps(content, allow_nan=False).encode()
    found = [Artifact("loss_profile", "loss_profile.json", "application/json", text, details)]
    if grid is not None and "image_cell" in profile:
        cells = profile["image_cell"]
        means = [None if cell is None else cell.loss.value for cell in cells]
        sequences = max(cell.loss.n for cell in cells if cell is not None)
        found.append(loss_map(LossGrid(means, *grid, sequences, label)))
    return found


def _columns(bins: Sequence[Bin | None], exact: bool) -> dict[str, list[float | None]]:
    """Those of cells, of which there are many, with the seven digits of the float32 that they come from."""

    def number(value: float | None) -> float | None:
        return value if exact or value is None else float(f"{value:.7g}")

    some = [one for one in bins if one is not None]
    return {
        "start": [one.start for one in some],
        "stop": [one.stop for one in some],
        "sequences": [one.loss.n for one in some],
        "independent": [one.loss.independent for one in some],
        "tokens": [one.tokens for one in some],
        **{
            f"{name}{suffix}": [number(getattr(getattr(one, name), field)) for one in some]
            for name in ("loss", "within")
            for suffix, field in (("", "value"), ("_stderr", "stderr"))
        },
    }
