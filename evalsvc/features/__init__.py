"""Feature extractors: images to vectors whose distribution is compared."""

from __future__ import annotations

from pathlib import Path

from evalsvc.features.inception import Inception
from evalsvc.inception_weights import read_inception

__all__ = ["Inception", "load_extractor"]


def load_extractor(path: str | Path, *, device: str = "cpu") -> Inception:
    """FID's Inception network from any of its published files; see `inception_weights.py`.

    Raises:
        CheckpointError: the file cannot be read, or holds another network.
        NonFinite: NaN or infinity in the weights.
    """
    return Inception(read_inception(Path(path)), device=device)
