"""The real images that samples are compared with: their features, computed in shards and kept in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalsvc.data.images import ImageSource
from evalsvc.errors import DataChanged
from evalsvc.metrics.frechet import Moments
from evalsvc.spec.images import Fit
from evalsvc.spec.protocol import canonical_json, digest
from evalsvc.tasks.image_features import FeaturePass, FeatureRows, join_features
from evalsvc.tasks.reference_statistics import (
    ReferenceStatistics,
    TapStatistics,
    load_reference,
    reference_key,
    reference_path,
    save_reference,
)
from evalsvc.tasks.task import Context

EXTRACTED_AT_ONCE = 32
"""Images between two looks at whether the work was cancelled."""

Identities = Mapping[str, Mapping[str, str]]
"""Of features by key, see `FeaturePass.identity`."""


@dataclass(frozen=True)
class ReferenceSpec:
    """Which real images, and how they become squares."""

    name: str
    """A path of images, or the name of imported statistics."""
    fit: Fit
    images: tuple[str | int, ...] | None = None
    """Which of them, by name or index; None: all."""

    @property
    def imported(self) -> bool:
        return "/" not in self.name

    def indices(self, source: ImageSource) -> list[int]:
        """Each image once, in the order in which it is named. Raises InvalidData for one that is not there."""
        if self.images is None:
            return list(range(len(source)))
        return list(dict.fromkeys(source.index(image) for image in self.images))


def lacks(context: Context, spec: ReferenceSpec, key: str, needs: str) -> str | None:
    """Why the reference has not what a metric `needs` of the features `key`; None: it has."""
    if not spec.imported:
        return None
    if needs == "features":
        return f"the imported statistics {spec.name!r} have no features"
    found = load_reference(spec.name, context.statistics_folder()).moments
    if key in {f"inception/{tap}" for tap in found}:
        return None
    return f"the imported statistics {spec.name!r} are of {' and '.join(map(str, sorted(found)))} features"


def identify_reference(context: Context, spec: ReferenceSpec) -> dict[str, Any]:
    """What a protocol says of it. Reads every image's content, once per process and file."""
    if spec.imported:
        return {"imported": load_reference(spec.name, context.statistics_folder()).digest}
    source = context.images(spec.name)
    indices = spec.indices(source)
    return {"images": source.digest(indices), "n": len(indices), "fit": spec.fit.to_json()}


def reference_shards(
    context: Context, spec: ReferenceSpec, identity: Mapping[str, Any], features: Identities, shard_size: int
) -> Iterator[dict[str, Any]]:
    """The shards that compute what is not known of `features` yet."""
    missing = [] if spec.imported else [key for key in features if not _known(context, identity, key, features[key])]
    if not missing:
        return
    source = context.images(spec.name)
    indices = spec.indices(source)
    for start in range(0, len(indices), shard_size):
        stop = min(start + shard_size, len(indices))
        images = source.digest(indices[start:stop])
        part = {"part": "reference", "start": start, "stop": stop, "units": stop - start}
        yield {**part, "images": images, "keys": missing}


def reference_features(
    context: Context, spec: ReferenceSpec, features: FeaturePass, images: slice, planned: str
) -> dict[str, Any]:
    """Extract features of some of the images, packed, by key. Raises DataChanged unless their digest is as planned."""
    source = context.images(spec.name)
    indices = spec.indices(source)[images]
    if source.digest(indices) != planned:
        raise DataChanged.since_planned(source.path)
    rows, done = FeatureRows(), 0
    for batch in source.batches(indices, spec.fit, EXTRACTED_AT_ONCE):
        rows.add(range(done, done + len(batch)), features(batch))
        done += len(batch)
        context.report(done)
    return {"features": rows.packed()}


def read_reference(
    context: Context,
    name: str,
    identity: Mapping[str, Any],
    features: Identities,
    parts: Sequence[Mapping[str, Any]],
    compute: Callable[[Sequence[str]], Mapping[str, Any]],
) -> dict[str, TapStatistics]:
    """Return the reference's statistics by key: imported, kept from before, or from `parts`, its shards' outputs.

    `compute` makes what the worker that planned knew and this one does not, as a shard of all images would.
    """
    folder = context.statistics_folder()
    if "imported" in identity:
        return {f"inception/{tap}": found for tap, found in load_reference(name, folder).moments.items()}
    _keep(context, identity, features, parts)
    if missing := [key for key in features if not _known(context, identity, key, features[key])]:
        _keep(context, identity, features, [compute(missing)])
    kept = {key: load_reference(_key(identity, key, of), folder).moments for key, of in features.items()}
    return {key: next(iter(taps.values())) for key, taps in kept.items()}


def _keep(
    context: Context, identity: Mapping[str, Any], features: Identities, parts: Sequence[Mapping[str, Any]]
) -> None:
    for key, rows in join_features(parts).items():
        if not _known(context, identity, key, features[key]):
            moments = Moments.of(rows)
            found = TapStatistics(moments.n, moments.mean, moments.covariance, rows)
            statistics = ReferenceStatistics({rows.shape[1]: found}, foreign=False, source=str(identity["images"]))
            save_reference(statistics, _key(identity, key, features[key]), context.statistics_folder())


def _known(context: Context, identity: Mapping[str, Any], key: str, features: Mapping[str, str]) -> bool:
    return reference_path(_key(identity, key, features), context.statistics_folder()).exists()


def _key(identity: Mapping[str, Any], key: str, features: Mapping[str, str]) -> str:
    fit = identity["fit"]
    program = {name: value for name, value in features.items() if name not in ("extractor", "resize")}
    return reference_key(
        data=f"{identity['images']}/{identity['n']}",
        extractor=digest({**program, "extractor": features["extractor"]}) if program else features["extractor"],
        tap=key,
        resize=features["resize"],
        crop=canonical_json(fit),
        size=fit["size"],
    )
