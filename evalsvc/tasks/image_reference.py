"""The real images that samples are compared with: their features, computed in shards and kept in files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from evalsvc.data.images import ImageSource
from evalsvc.errors import DataChanged
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import KeptFolder
from evalsvc.metrics.frechet import Moments
from evalsvc.spec.images import Fit
from evalsvc.spec.protocol import canonical_json, digest
from evalsvc.tasks.image_features import FeaturePass, FeatureRows, Rows
from evalsvc.tasks.reference_statistics import (
    TapStatistics,
    is_known,
    keep_tap,
    load_reference,
    load_tap,
    reference_key,
)
from evalsvc.tasks.task import Context, cut

EXTRACTED_AT_ONCE = 32
"""Number of images between two checks for cancellation."""

Identities = Mapping[str, Mapping[str, str]]
"""Identities of features by key, see `FeaturePass.identity`."""


@dataclass(frozen=True)
class ReferenceSpec:
    name: str
    """Path of images, or name of imported statistics."""
    fit: Fit
    images: tuple[str | int, ...] | None = None
    """Names or indices of the selected images; None: all."""

    @property
    def imported(self) -> bool:
        return "/" not in self.name

    def indices(self, source: ImageSource) -> list[int]:
        """Return the index of each selected image once, in order."""
        if self.images is None:
            return list(range(len(source)))
        return list(dict.fromkeys(source.index(image) for image in self.images))


def lacks(context: Context, spec: ReferenceSpec, key: str, needs: str) -> str | None:
    """Return why the reference lacks what a metric `needs` of the features `key`; None if it has all."""
    if not spec.imported:
        return None
    if needs == "features":
        return f"the imported statistics {spec.name!r} have no features"
    moments = load_reference(spec.name, context.kept).moments
    if key in {f"inception/{tap}" for tap in moments}:
        return None
    return f"the imported statistics {spec.name!r} are of {' and '.join(map(str, sorted(moments)))} features"


@dataclass(frozen=True)
class ReferenceIdentity:
    digest: str
    """SHA-256 of the images' contents, or of imported numbers."""
    n: int | None
    fit: Fit | None

    def to_json(self) -> dict[str, JsonValue]:
        if self.fit is None:
            return {"imported": self.digest}
        return {"images": self.digest, "n": self.n, "fit": self.fit.to_json()}


@dataclass(frozen=True)
class ReferencePart:
    """A range of real images, whose features a shard extracts."""

    start: int
    stop: int
    digest: str
    keys: Sequence[str]


def identify_reference(context: Context, spec: ReferenceSpec) -> ReferenceIdentity:
    """Identify the current reference by its images' contents, read once per process and file."""
    if spec.imported:
        return ReferenceIdentity(load_reference(spec.name, context.kept).digest, None, None)
    source = context.images(spec.name)
    indices = spec.indices(source)
    return ReferenceIdentity(source.digest(indices), len(indices), spec.fit)


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
    names = context.kept.names()
    missing = [key for key, of in features.items() if not is_known(names, _key(identity, key, of), rows=key in rows)]
    if spec.imported or not missing:
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
) -> dict[str, TapStatistics]:
    """Return the reference's statistics by key: imported, kept, or from the features that the task's shards have
    `computed`, which are then kept. `rows` are the keys of features that are needed themselves."""
    if identity.fit is None:
        imported = load_reference(name, files)
        if imported.digest != identity.digest:
            raise DataChanged.since_planned(f"the reference {name!r}")
        return {f"inception/{tap}": moments for tap, moments in imported.moments.items()}
    names, statistics = files.names(), dict[str, TapStatistics]()
    computed_rows: Mapping[str, Rows] = {}
    for key, of in features.items():
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
    return statistics


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
