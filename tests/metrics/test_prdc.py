import numpy as np
import pytest
from prdc import compute_prdc

from evalsvc.errors import InvalidData
from evalsvc.metrics import prdc as module
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.metrics.prdc import neighbourhoods, squared_distances
from evalsvc.spec import catalog

NAMES = ("precision", "recall", "density", "coverage")


def values(sets: FeatureSets) -> dict[str, float]:
    return {name: catalog.load("metrics", name).estimate(sets).value for name in NAMES}


@pytest.mark.parametrize("rows", [7, 1024])
def test_are_prdcs_on_real_features(
    smoke_features: dict[str, np.ndarray], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any chunks; `prdc` has all distances at once."""
    monkeypatch.setattr(module, "CHUNK_ROWS", rows)
    images, blurred = smoke_features["images_2048"], smoke_features["blurred_2048"]
    found = values(FeatureSets(blurred, None, images))
    assert found == pytest.approx(compute_prdc(images, blurred, nearest_k=5), abs=1e-12)
    assert 0 < found["precision"] < 1, "numbers at an end would show nothing"
    random = np.random.default_rng(0)
    real, samples = random.normal(size=(300, 6)), random.normal(0.4, 0.8, (210, 6))
    expected = compute_prdc(real, samples, nearest_k=5)
    assert values(FeatureSets(samples, None, real)) == pytest.approx(expected, abs=1e-12)


def test_no_more_balls_than_allowed() -> None:
    """Every sample is looked up all the same, so precision and density have a share for each."""
    random = np.random.default_rng(0)
    sets = FeatureSets(random.normal(size=(90, 4)), None, random.normal(size=(70, 4)), seed=3)
    found = neighbourhoods(sets, balls=40)
    assert (len(found.held), len(found.recalled), found.sampled_balls) == (90, 40, 40)
    again = neighbourhoods(sets, balls=40)
    assert (found.recalled == again.recalled).all()


def test_squared_distances_are_never_negative() -> None:
    rows = np.random.default_rng(0).normal(1000, 1, (50, 8)).astype(np.float32)
    assert squared_distances(rows, rows).min() == 0


def test_is_what_it_is_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags without a group are those of the other samples alone, whose balls are larger than they were."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 23)
    random = np.random.default_rng(0)
    real, samples = random.normal(size=(80, 3)), random.normal(0.6, 0.7, (90, 3))
    found = neighbourhoods(FeatureSets(samples, None, real, seed=4))
    # The first number that the seed gives is the division's, as no subset is drawn.
    groups = np.random.default_rng(4).permutation(np.arange(90) * module.GROUPS // 90)
    changed = 0
    for group in range(module.GROUPS):
        rest = neighbourhoods(FeatureSets(samples[groups != group], None, real))
        assert (found.recalled_without[group] == rest.recalled).all()
        assert (found.covered_without[group] == rest.covered).all()
        changed += int((rest.recalled & ~found.recalled).sum())
    assert changed > 0, "no ball has grown over a real image"


@pytest.mark.parametrize("name", ["recall", "coverage"])
def test_errors_do_not_depend_on_the_order_of_the_prompts(name: str) -> None:
    """Groups of prompts in the order of their classes would each be a class, and the error many times too large."""
    random = np.random.default_rng(0)
    centres = random.normal(0, 3, (20, 4))
    real, samples = (np.repeat(centres, 20, 0) + random.normal(size=(400, 4)) for _ in range(2))
    estimates = [
        catalog.load("metrics", name).estimate(FeatureSets(samples[order], None, real))
        for order in (np.arange(400), random.permutation(400))
    ]
    assert estimates[0].value == estimates[1].value
    assert estimates[0].stderr == pytest.approx(estimates[1].stderr, rel=0.5)
    assert estimates[0].groups == module.GROUPS


@pytest.mark.parametrize("name", ["precision", "recall", "coverage"])
def test_all_found_is_not_certain(name: str) -> None:
    """An error of zero would make a difference of one image significant."""
    random = np.random.default_rng(0)
    real = random.normal(size=(60, 2))
    same = catalog.load("metrics", name).estimate(FeatureSets(np.repeat(real, 4, 0), None, real))
    apart = catalog.load("metrics", name).estimate(FeatureSets(random.normal(50, 1, (240, 2)), None, real))
    assert (same.value, apart.value) == (1 if name != "recall" else same.value, 0)
    assert same.stderr > 0
    assert apart.stderr > 0


def test_too_few() -> None:
    with pytest.raises(InvalidData, match="5 samples and 9 real images; give more than 5 each"):
        neighbourhoods(FeatureSets(np.ones((5, 2)), None, np.ones((9, 2))))
