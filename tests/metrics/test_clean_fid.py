"""clean-fid's estimators are called as its program calls them; only the errors are evalsvc's."""

import re
import sys

import numpy as np
import pytest
from cleanfid import fid
from scipy import linalg

from evalsvc.errors import InvalidData, MissingPackage
from evalsvc.installation import pip_install
from evalsvc.metrics import mmd as own_kid
from evalsvc.metrics.clean_fid import CLEAN_FID, frechet_distance
from evalsvc.metrics.fid import frechet_estimate
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.spec import catalog

METRICS = CLEAN_FID.metrics


def sets_of(features: dict[str, np.ndarray], tap: int = 64, seed: int = 7) -> FeatureSets:
    real, samples = features[f"images_{tap}"], features[f"blurred_{tap}"]
    return FeatureSets(samples, Moments.of(real), real, seed)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
def test_fid(smoke_features: dict[str, np.ndarray]) -> None:
    sets = sets_of(smoke_features)
    expected = fid.fid_from_feats(sets.samples, sets.reference_features)
    found, own = METRICS["fid64"].estimate(sets), frechet_estimate(sets)
    assert found.value == expected == pytest.approx(own.value, rel=1e-4)
    assert found.stderr == own.stderr
    assert found.per_image is not None
    assert found.per_image.mean() == pytest.approx(expected, rel=1e-12)
    assert found.details == {"own_value": own.value}
    imported = METRICS["fid64"].estimate(FeatureSets(sets.samples, sets.reference))
    assert imported.value == pytest.approx(expected, rel=1e-4)


def test_no_more_images_than_features_are_refused(smoke_features: dict[str, np.ndarray]) -> None:
    assert [METRICS[name].min_images for name in ("fid", "fid64")] == [2049, 65]
    with pytest.raises(InvalidData, match="give more images than features"):
        METRICS["fid"].estimate(sets_of(smoke_features, 2048))


def test_a_root_that_is_not_real_is_an_error_of_the_data() -> None:
    mean, matrix = np.zeros(2), np.array([[0.0, 1.0], [-1.0, 0.0]])
    with pytest.raises(InvalidData, match=r"clean-fid 0\.1\.35 computes no distance from these features: Imaginary"):
        frechet_distance((mean, np.diag([-1.0, -4.0])), (mean, np.eye(2) + 0 * matrix))


def test_kid_leaves_the_global_generator_alone(smoke_features: dict[str, np.ndarray]) -> None:
    """The program draws with NumPy's global generator, so that its number depends on who drew before."""
    sets = sets_of(smoke_features)
    real = sets.reference_features[:60]
    np.random.seed(7)
    expected = fid.kernel_distance(sets.samples, real)
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    found = METRICS["kid"].estimate(FeatureSets(sets.samples, None, real, 7))
    assert np.random.get_state()[1].tolist() == before
    own = own_kid.kid(FeatureSets(sets.samples, None, real, 7))
    assert found.value == expected
    spread = found.details["subset_std"]
    assert found.stderr == pytest.approx(np.hypot(own.stderr, spread / 10))
    assert found.details == {"subsets": 100, "subset_size": 60, "subset_std": spread, "own_value": own.value}
    assert 0 < spread < abs(found.value)
    with pytest.raises(InvalidData, match="KID needs 2 images on each side"):
        METRICS["kid"].estimate(FeatureSets(sets.samples, None, real[:1]))


def test_protocols_name_program_release_and_estimator() -> None:
    found = {name: metric.estimator for name, metric in METRICS.items()}
    assert found == {name: f"{name}/1 by clean-fid 0.1.35" for name in ("fid", "fid64", "kid")}


def test_a_scipy_that_it_does_not_work_with_is_told_before_images_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "sqrtm", lambda matrix: matrix)
    monkeypatch.delitem(sys.modules, "evalsvc.metrics.clean_fid")
    with pytest.raises(MissingPackage, match=r"run: pip install 'scipy<1\.18'"):
        catalog.load("programs", "clean-fid")


@pytest.mark.parametrize(("name", "module"), [("clean-fid", "cleanfid"), ("torch-fidelity", "torch_fidelity")])
@pytest.mark.parametrize("group", ["features", "programs"])
def test_without_the_package(group: str, name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"features": "features", "programs": "metrics"}[group]
    for loaded in [key for key in sys.modules if key.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    for own in ("clean_fid", "torch_fidelity"):
        monkeypatch.delitem(sys.modules, f"evalsvc.{room}.{own}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=re.escape(pip_install("reference"))):
        catalog.load(group, name)
