"""Feature extractors: images to vectors whose distribution is compared."""

from __future__ import annotations

from pathlib import Path

from evalsvc.features.extractor import FeatureExtractor
from evalsvc.spec import catalog

__all__ = ["FeatureExtractor", "load_extractor"]


def load_extractor(kind: str, path: str | Path, *, device: str = "cpu") -> FeatureExtractor:
    """The extractor in a file or folder. `kind` is `inception`, `clip`, `dinov2`, or one that a package adds.

    Raises:
        UnknownName: there is no such kind; near misses are named.
        MissingPackage: the kind needs a package that is not installed.
        CheckpointError: the file cannot be read, or holds another network.
        InvalidModelConfig: the folder's configuration is incomplete, or is of another network.
        NonFinite: NaN or infinity in the weights.
    """
    extractor: FeatureExtractor = catalog.load("features", kind).from_path(Path(path), device=device)
    return extractor
