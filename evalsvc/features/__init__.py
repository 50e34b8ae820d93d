"""Feature extractors, from images to vectors whose distributions are compared."""

from evalsvc.features.extractor import FeatureExtractor, load_extractor

__all__ = ["FeatureExtractor", "load_extractor"]
