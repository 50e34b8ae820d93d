"""The real images that samples are compared with: their features, computed in shards and kept in files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from pydantic import JsonValue

from evalsvc.data.archives import ARRAY, npz_names
from evalsvc.data.images import ImageSource
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import KeptFolder
from evalsvc.files.opened import Allow, OpenFile, open_file
from evalsvc.metrics.frechet import Moments
from evalsvc.spec.images import Fit
from evalsvc.spec.names import NAME
from evalsvc.spec.protocol import canonical_json, digest
from evalsvc.tasks.image_features import FeaturePass, FeatureRows, Rows
from evalsvc.tasks.reference_statistics import (
    FOREIGN,
    ReferenceStatistics,
    TapStatistics,
    foreign_statistics,
    is_known,
    keep_tap,
    load_reference,
    load_tap,
    reference_key,
)
from evalsvc.tasks.task import Context, cut

EXTRACTED_AT_ONCE = 32
"""Number of images between two checks for cancellation."""

MAX_CATEGORIES = 100

Identities = Mapping[str, Mapping[str, str]]
"""Identities of features by key, see `FeaturePass.identity`."""


@dataclass(frozen=True)
class ReferenceSpec:
    name: str
    """Path of images, or name of imported statistics."""
    fit: Fit
    images: tuple[str | int, ...] | None = None
    """Names or indices of the selected images; None: all."""

    def indices(self, source: ImageSource) -> list[int]:
        """Return the index of each selected image once, in order."""
        if self.images is None:
            return list(range(len(source)))
        return list(dict.fromkeys(source.index(image) for image in self.images))


def stated_in(path: Path, allow: Allow) -> ReferenceStatistics:
    """Return the moments that a file of real images states: an .npz file may hold `mu` and `sigma`, images, or both."""
    if path.suffix != ".npz":
        return ReferenceStatistics({}, foreign=True, source=path.name, images=True)
    file = open_file(path, "reference", allow)
    with file.stream:
        return _stated_in(path, file)


@lru_cache(maxsize=2)
def _stated_in(path: Path, file: OpenFile) -> ReferenceStatistics:
    names = npz_names(file, str(path))
    if ARRAY in names and names.isdisjoint(FOREIGN):
        return ReferenceStatistics({}, foreign=True, source=path.name, images=True)
    file.stream.seek(0)
    return replace(foreign_statistics(file.stream, str(path)), images=ARRAY in names)


def stated_by(context: Context, name: str) -> ReferenceStatistics:
    """Return the moments that a reference states, imported or in an .npz file, and whether it has images."""
    if "/" not in name:
        return load_reference(name, context.kept)
    return stated_in(Path(context.dataset(name)), context.readable)


def lacks(context: Context, spec: ReferenceSpec, key: str, needs: str) -> str | None:
    """Return why the reference lacks what a metric `needs` of the features `key`; None if it has all."""
    stated = stated_by(context, spec.name)
    if stated.images or (needs != "features" and key in stated.by_key()):
        return None
    if needs == "features":
        return f"the imported statistics {spec.name!r} have no features"
    return f"the imported statistics {spec.name!r} are of {' and '.join(map(str, sorted(stated.moments)))} features"


@dataclass(frozen=True)
class ReferenceIdentity:
    digest: str
    """SHA-256 of the images' contents, or of imported numbers."""
    n: int | None
    fit: Fit | None
    stated: str = ""
    """Digest of the moments that a file states with its images."""

    def to_json(self) -> dict[str, JsonValue]:
        if self.fit is None:
            return {"imported": self.digest}
        moments: dict[str, JsonValue] = {"moments": self.stated} if self.stated else {}
        return {"images": self.digest, "n": self.n, "fit": self.fit.to_json(), **moments}


def categories_of(source: ImageSource) -> dict[str, tuple[int, int]]:
    """Return the range [start, stop) of the images in each folder."""
    ranges: dict[str, tuple[int, int]] = {}
    for folder, images in groupby(range(len(source)), lambda index: source.name(index).rpartition("/")[0]):
        indices = list(images)
        if folder in ranges:
            raise InvalidData(f"{source.path}: images of {folder[:80]!r} lie apart; sort the rows by folder")
        ranges[folder] = indices[0], indices[-1] + 1
    named = all(NAME.fullmatch(name) and name != "infinity" for name in ranges)  # fid_infinity is another metric
    if not 2 <= len(ranges) <= MAX_CATEGORIES or not named:
        raise InvalidData(
            f"{source.path} has images in {len(ranges):,} folders, such as {min(ranges)[:80]!r}; `by_category` needs a "
            f"folder per category, 2 to {MAX_CATEGORIES}, named by letters, digits, '.', '_' and '-'"
        )
    return ranges


@dataclass(frozen=True)
class ReferencePart:
    """A range of real images, whose features a shard extracts."""

    start: int
    stop: int
    digest: str
    keys: Sequence[str]


def identify_reference(context: Context, spec: ReferenceSpec) -> ReferenceIdentity:
    """Identify the current reference by its images' contents, read once per process and file."""
    stated = stated_by(context, spec.name)
    if not stated.images:
        return ReferenceIdentity(stated.digest, None, None)
    source = context.images(spec.name)
    indices = spec.indices(source)
    return ReferenceIdentity(source.digest(indices), len(indices), spec.fit, stated.digest if stated.moments else "")


def reference_parts(
    context: Context,
    spec: ReferenceSpec,
    identity: ReferenceIdentity,
    features: Identities,
    rows: Collection[str],
    shard_size: int,
) -> Iterator[ReferencePart]:
    """Yield ranges of the real images, for those of `features` that are not kept in files. `rows` are the keys of
    features that are needed themselves, not only their moments."""
    names, stated = context.kept.names(), stated_by(context, spec.name).by_key()
    missing = [
        key
        for key, of in features.items()
        if (key in rows or key not in stated) and not is_known(names, _key(identity, key, of), rows=key in rows)
    ]
    if identity.fit is None or not missing:
        return
    source = context.images(spec.name)
    indices = spec.indices(source)
    for start, stop in cut(len(indices), shard_size):
        yield ReferencePart(start, stop, source.digest(indices[start:stop]), missing)


def reference_features(
    context: Context, spec: ReferenceSpec, features: FeaturePass, part: ReferencePart
) -> dict[str, Rows]:
    source = context.images(spec.name)
    indices = spec.indices(source)[part.start : part.stop]
    if source.digest(indices) != part.digest:
        raise DataChanged.since_planned(source.path)
    features_by_index, done = FeatureRows(), 0
    for batch in source.batches(indices, spec.fit, EXTRACTED_AT_ONCE):
        features_by_index.add(range(done, done + len(batch)), features(batch))
        done += len(batch)
        context.report(done)
    return features_by_index.joined()


def read_reference(
    files: KeptFolder,
    name: str,
    identity: ReferenceIdentity,
    features: Identities,
    rows: Collection[str],
    computed: Callable[[], Mapping[str, Rows]],
    stated: ReferenceStatistics,
) -> dict[str, TapStatistics]:
    """Return the reference's statistics by key: `stated`, kept, or from the features that the task's shards have
    `computed`, which are then kept. `rows` are the keys of features that are needed themselves."""
    if (stated.digest if stated.moments else "") != (identity.digest if identity.fit is None else identity.stated):
        raise DataChanged.since_planned(f"the reference {name!r}")
    if identity.fit is None:
        return stated.by_key()
    names, statistics = files.names(), stated.by_key()
    computed_rows: Mapping[str, Rows] = {}
    for key, of in features.items():
        if key in stated.by_key() and key not in rows:
            continue
        kept_as, lost = _key(identity, key, of), "there is no file"
        if is_known(names, kept_as, rows=key in rows):
            try:
                statistics[key] = load_tap(files, kept_as, rows=key in rows)
                continue
            except FileLost as error:
                lost = str(error)
        if key not in (computed_rows := computed_rows or computed()):
            raise DataChanged(
                f"statistics of the real images {name} ({key}) were kept when this evaluation was planned and cannot "
                f"be read now: {lost}; delete {kept_as}*.npz in the folder `statistics` of the service's data folder "
                "if they are there, and evaluate again"
            )
        moments = Moments.of(computed_rows[key])
        statistics[key] = TapStatistics(moments.n, moments.mean, moments.covariance, computed_rows[key])
        keep_tap(files, kept_as, statistics[key], identity.digest)
    return statistics | {key: replace(tap, features=statistics[key].features) for key, tap in stated.by_key().items()}


def _key(identity: ReferenceIdentity, key: str, features: Mapping[str, str]) -> str:
    fit = {} if identity.fit is None else identity.fit.to_json()
    program = {name: value for name, value in features.items() if name not in ("extractor", "resize")}
    return reference_key(
        data=f"{identity.digest}/{identity.n}",
        extractor=digest({**program, "extractor": features["extractor"]}) if program else features["extractor"],
        tap=key,
        resize=features["resize"],
        crop=canonical_json(fit),
        size=None if identity.fit is None else identity.fit.size,
    )
