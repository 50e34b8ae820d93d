"""Feature extractors, from images to vectors whose distributions are compared."""

from __future__ import annotations

from pathlib import Path

from evalsvc.features.extractor import FeatureExtractor
from evalsvc.spec import catalog

__all__ = ["FeatureExtractor", "load_extractor"]


def load_extractor(kind: str, path: str | Path, *, device: str = "cpu") -> FeatureExtractor:
    """Load the extractor in a file or folder. `kind` is a name of the catalog's group `features`."""
    extractor: FeatureExtractor = catalog.load("features", kind).from_path(Path(path), device=device)
    return extractor
