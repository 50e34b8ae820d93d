import numpy as np
import pytest

from evalsvc.metrics.clip_score import clip_score
from evalsvc.metrics.image_metric import FeatureSets


def test_is_the_mean() -> None:
    found = clip_score(FeatureSets(np.array([[20.0], [30.0], [40.0]], np.float32)))
    assert (found.value, found.n) == (30.0, 3)
    assert found.stderr == pytest.approx(10 / np.sqrt(3))
