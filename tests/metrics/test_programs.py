"""Estimators of published programs are called as the programs call them; only the errors are evalsvc's."""

import re
import sys

import numpy as np
import pytest
import torch
from cleanfid import fid
from scipy import linalg
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from evalsvc.errors import InvalidData, MissingPackage
from evalsvc.installation import pip_install
from evalsvc.metrics import reference_program
from evalsvc.metrics.clean_fid import CLEAN_FID, frechet_distance
from evalsvc.metrics.fid import frechet_estimate
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets, ImageMetric
from evalsvc.metrics.mmd import kid
from evalsvc.metrics.prdc import neighbourhoods, recall_of
from evalsvc.metrics.shares import share_stderr
from evalsvc.metrics.torch_fidelity import TORCH_FIDELITY
from evalsvc.spec import catalog

pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")

Features = dict[str, np.ndarray]


def sets_of(features: Features, tap: int = 64, seed: int = 7) -> FeatureSets:
    real, samples = features[f"images_{tap}"], features[f"blurred_{tap}"]
    return FeatureSets(samples, Moments.of(real), real, seed)


def tensors(sets: FeatureSets) -> list[torch.Tensor]:
    return [torch.from_numpy(rows) for rows in (sets.samples, sets.reference_features)]


def torch_fidelitys(sets: FeatureSets) -> float:
    statistics = [fid_features_to_statistics(rows) for rows in tensors(sets)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


PROGRAMS = {
    "clean-fid 0.1.35": (CLEAN_FID, lambda sets: fid.fid_from_feats(sets.samples, sets.reference_features), "kid"),
    "torch-fidelity 0.4.0": (TORCH_FIDELITY, torch_fidelitys, "kid precision recall"),
}


@pytest.mark.parametrize("release", PROGRAMS)
def test_fid(release: str, smoke_features: Features) -> None:
    """Of imported statistics the mean is float64, where that of features is float32."""
    program, compute, others = PROGRAMS[release]
    sets, metrics = sets_of(smoke_features), program.metrics
    found, own, expected = metrics["fid64"].estimate(sets), frechet_estimate(sets), compute(sets)
    assert found.value == expected == pytest.approx(own.value, rel=1e-4)
    assert (found.stderr, found.details) == (own.stderr, {"own_value": own.value})
    assert found.per_image.mean() == pytest.approx(expected, rel=1e-12), "comparisons are over the images' shares"
    imported = FeatureSets(sets.samples, sets.reference)
    assert metrics["fid64"].estimate(imported).value == pytest.approx(expected, rel=1e-4)
    names = ["fid", "fid64", *others.split()]
    assert {name: metric.estimator for name, metric in metrics.items()} == {
        name: f"{name}/1 by {release}" for name in names
    }
    assert [metrics[name].min_images for name in ("fid", "fid64")] == [2049, 65]
    with pytest.raises(InvalidData, match="give more images than features"):  # torch-fidelity gives a number for them
        metrics["fid"].estimate(sets_of(smoke_features, 2048))


def require_kid(metric: ImageMetric, sets: FeatureSets, expected: float, spread: float, size: int) -> None:
    """Images are in the subsets as often as it happens, and have no shares."""
    found, own = metric.estimate(sets), kid(sets)
    assert (found.value, found.per_image) == (expected, None)
    assert found.stderr == pytest.approx(np.hypot(own.stderr, spread / 10))
    assert found.details == {"subsets": 100, "subset_size": size, "subset_std": spread, "own_value": own.value}
    assert found.value == pytest.approx(own.value, abs=4 * spread / 10)
    with pytest.raises(InvalidData, match="KID needs 2 images on each side, not "):
        metric.estimate(FeatureSets(sets.samples, None, sets.samples[:1]))


def test_kid_of_torch_fidelity(smoke_features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program refuses subsets larger than a side, and its generator seeds from 2³² on."""
    metric, large = TORCH_FIDELITY.metrics["kid"], sets_of(smoke_features, seed=2**40 + 7)
    found = metric.estimate(large)
    assert (found.details["subset_size"], found.value) == (85, pytest.approx(kid(large).value, rel=1e-3))
    monkeypatch.setattr(reference_program, "SUBSET_SIZE", 50)
    sets = sets_of(smoke_features)
    expected = kid_features_to_metric(*tensors(sets), kid_subset_size=50, rng_seed=7, verbose=False)
    mean, spread = (expected[f"kernel_inception_distance_{name}"] for name in ("mean", "std"))
    require_kid(metric, sets, mean, spread, 50)


def test_kid_of_clean_fid_leaves_the_global_generator_alone(smoke_features: Features) -> None:
    """The program draws with NumPy's global generator, so that its number depends on who drew before."""
    sets = sets_of(smoke_features)
    sets = FeatureSets(sets.samples, None, sets.reference_features[:60], 7)
    np.random.seed(7)
    expected = fid.kernel_distance(sets.samples, sets.reference_features)
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    spread = CLEAN_FID.metrics["kid"].estimate(sets).details["subset_std"]
    assert np.random.get_state()[1].tolist() == before
    assert 0 < spread < abs(expected)
    require_kid(CLEAN_FID.metrics["kid"], sets, expected, spread, 60)


def test_precision_and_recall(smoke_features: Features) -> None:
    """As in torch-fidelity's default mode, which holds all distances at once."""
    sets = sets_of(smoke_features)
    expected = prc_features_to_metric(*tensors(sets), verbose=False)
    precision, recall = (TORCH_FIDELITY.metrics[name].estimate(sets) for name in ("precision", "recall"))
    assert (precision.value, recall.value) == (expected["precision"], expected["recall"])
    assert 0 < precision.value < 1
    assert precision.stderr == share_stderr(round(precision.value * 85), 85)
    balls = neighbourhoods(sets, 3)
    assert (balls.held > 0).mean() == pytest.approx(precision.value, abs=1e-6)
    own = recall_of(balls)
    assert (recall.stderr, recall.groups, recall.value) == (own.stderr, own.groups, pytest.approx(own.value))


def test_a_root_that_is_not_real_is_an_error_of_the_data() -> None:
    mean = np.zeros(2)
    with pytest.raises(InvalidData, match=r"clean-fid 0\.1\.35 computes no distance from these features: Imaginary"):
        frechet_distance((mean, np.diag([-1.0, -4.0])), (mean, np.eye(2)))


def test_a_scipy_that_clean_fid_does_not_work_with_is_told_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before images are sampled."""
    monkeypatch.setattr(linalg, "sqrtm", lambda matrix: matrix)
    monkeypatch.delitem(sys.modules, "evalsvc.metrics.clean_fid")
    with pytest.raises(MissingPackage, match=r"run: pip install 'scipy<1\.18'"):
        catalog.load("programs", "clean-fid")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("clean-fid", "cleanfid", "clean-fid"), ("torch-fidelity", "torch_fidelity", "reference")],
)
@pytest.mark.parametrize(("group", "room"), [("features", "features"), ("programs", "metrics")])
def test_without_the_package(
    group: str, room: str, name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [key for key in sys.modules if key.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    for own in ("clean_fid", "torch_fidelity"):
        monkeypatch.delitem(sys.modules, f"evalsvc.{room}.{own}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=re.escape(pip_install(extra))):
        catalog.load(group, name)
