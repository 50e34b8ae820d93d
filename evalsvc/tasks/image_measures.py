"""Choosing and computing image metrics from the catalog. No metric is known here by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.reference_program import ReferenceProgram
from evalsvc.spec import catalog
from evalsvc.tasks.image_features import SCORES, ExtractorSpec, FeaturePass, Rows, kind_of
from evalsvc.tasks.image_reference import ReferenceSpec, lacks
from evalsvc.tasks.reference_statistics import TapStatistics
from evalsvc.tasks.task import Context

DIGITS = 7
"""Significant digits of the numbers in items, because 30,000 of them are stored per metric."""


@dataclass(frozen=True)
class Given:
    extractors: Sequence[ExtractorSpec]
    reference: ReferenceSpec | None
    texts: bool
    count: int

    def means(self, metric: ImageMetric) -> bool:
        """Return whether the task sets the extractor, captions and reference of a metric."""
        known = kind_of(metric.features) in {spec.kind for spec in self.extractors}
        compared = metric.needs == "nothing" or self.reference is not None
        return known and compared and (self.texts or metric.features not in SCORES)

    def lacks(self, context: Context, metric: ImageMetric) -> str | None:
        """Return why the metric cannot be measured; None if it can."""
        kind = kind_of(metric.features)
        if kind not in {spec.kind for spec in self.extractors}:
            return f"there is no `{kind}`"
        if metric.features in SCORES and not self.texts:
            return "there are no captions"
        if self.count < metric.min_images:
            return f"it needs {metric.min_images:,} images, but there are {self.count:,}"
        if metric.needs != "nothing":
            if self.reference is None:
                return "there is no `reference`"
            if reason := lacks(context, self.reference, metric.features, metric.needs):
                return reason
        return FeaturePass(context, self.extractors, [metric.features]).lacks(metric.features)


def load_metrics(names: Sequence[str] | None = None, program: str | None = None) -> list[ImageMetric]:
    """Return the metrics with these names [all but those on request], as `program` computes them if it does."""
    by_program = {} if program is None else load_program(program).metrics
    chosen = catalog.names("metrics") if names is None else names
    loaded = [by_program.get(name) or catalog.load("metrics", name) for name in chosen]
    return [metric for metric in loaded if names is not None or not metric.on_request]


def load_program(name: str) -> ReferenceProgram:
    program: ReferenceProgram = catalog.load("programs", name)
    return program


def needs_rows(metric: ImageMetric) -> bool:
    """Return whether a metric needs the real images' features, not only moments. A program computes its own moments."""
    return metric.needs == "features" or (metric.needs == "moments" and metric.program != "")


def measure(
    names: Sequence[str],
    features: Mapping[str, Rows],  # by key
    reference: Mapping[str, TapStatistics],  # by key
    seed: int,
    program: str | None = None,
) -> Iterator[tuple[ImageMetric, Estimate]]:
    """Yield the metrics that have enough images so far, in the order of `load_metrics`."""
    sets = {}
    for key, rows in features.items():
        real = reference.get(key)
        sets[key] = FeatureSets(rows, real, None if real is None else real.features, seed)
    for metric in load_metrics(names, program):
        if len(features[metric.features]) >= metric.min_images:
            yield metric, metric.estimate(sets[metric.features])


def rounded(estimate: Estimate) -> list[float] | None:
    if estimate.per_image is None or not np.isfinite(estimate.per_image).all():
        return None
    return [float(f"{share:.{DIGITS}g}") for share in estimate.per_image]
