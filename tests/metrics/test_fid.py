import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from evalsvc.errors import InvalidData
from evalsvc.metrics.fid import FD_DINOV2, FID, FID64
from evalsvc.metrics.frechet import Moments, frechet_distance, frechet_shares
from evalsvc.metrics.image_metric import FeatureSets


def theirs(first: np.ndarray, second: np.ndarray) -> float:
    """By torch-fidelity, which adds the means up in float32."""
    statistics = [fid_features_to_statistics(torch.tensor(side)) for side in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def test_is_torch_fidelitys_on_real_features(smoke_features: dict[str, np.ndarray]) -> None:
    images, blurred = smoke_features["images_64"], smoke_features["blurred_64"]
    found = FID64.estimate(FeatureSets(blurred, Moments.of(images)))
    assert found.value == pytest.approx(theirs(blurred, images), rel=1e-5)
    assert found.stderr is not None
    assert 0 < found.stderr < found.value / 3


@pytest.mark.usefixtures("many_cases")
def test_all_features_of_few_images_are_theirs(smoke_features: dict[str, np.ndarray]) -> None:
    """85 images on 2,048 features: the null space of the product adds 2e-6 to what the libraries compute."""
    images, blurred = smoke_features["images_2048"], smoke_features["blurred_2048"]
    first, second = Moments.of(blurred), Moments.of(images)
    found = frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    assert found == pytest.approx(float(smoke_features["torch_fidelity_2048"]), rel=1e-5)
    assert found == pytest.approx(float(smoke_features["clean_fid_2048"]), rel=1e-5)


def test_too_few_images_are_refused(smoke_features: dict[str, np.ndarray]) -> None:
    assert (FID.min_images, FID64.min_images, FD_DINOV2.min_images) == (2049, 65, 1025)
    images = smoke_features["images_2048"]
    with pytest.raises(InvalidData, match="85 images are too few for a distance on 2,048 features"):
        FID.estimate(FeatureSets(images, Moments.of(images[:, :])))


@pytest.mark.parametrize(("n", "once"), [(100, False), (255, False), (256, True)])
def test_pairs_are_counted_once_from_four_images_per_feature_on(n: int, once: bool) -> None:
    """With fewer the correction takes off too much: unchanged checkpoints are told apart twice as often as stated."""
    random = np.random.default_rng(1)
    features = random.standard_normal((n, 64)).astype(np.float32)
    reference = Moments.of(random.standard_normal((5_000, 64)))
    found, shares = FID64.estimate(FeatureSets(features, reference)), frechet_shares(features, reference).shares
    assert found.per_image is not None
    assert found.value == pytest.approx(float(shares.mean()))
    assert (float(found.per_image.std()) < 0.9 * float(shares.std())) == once
