"""Metrics of images: what every registered one promises, and each against its definition and other programs."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cleanfid import fid
from cleanfid.fid import kernel_distance
from prdc import compute_prdc
from scipy import linalg
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from evalsvc.errors import InvalidData, MissingPackage
from evalsvc.installation import pip_install
from evalsvc.metrics import mmd, prdc, reference_program, scores
from evalsvc.metrics.clean_fid import CLEAN_FID, frechet_distance
from evalsvc.metrics.fid import frechet_estimate
from evalsvc.metrics.frechet import Moments, counted_once
from evalsvc.metrics.frechet import frechet_distance as own_distance
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.mmd import cmmd, kid, pair_variance
from evalsvc.metrics.prdc import neighbourhoods, recall_of, squared_distances
from evalsvc.metrics.reconstruction import paired_frechet_shares
from evalsvc.metrics.scores import clip_score, inception_score, score_as_adm
from evalsvc.metrics.shares import share_stderr
from evalsvc.metrics.torch_fidelity import TORCH_FIDELITY
from evalsvc.spec import catalog

pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")

DIMENSIONS = 12
SMOKE = Path(__file__).parents[1] / "golden" / "fid" / "coco_smoke_features.npz"

Features = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def smoke_features() -> Features:
    """Inception's features of 85 photographs and of blurred copies, float32 [85, tap] by `images_2048` and so on;
    and `clean_fid_2048` and `torch_fidelity_2048`, the distances of the blurred ones that they find."""
    with np.load(SMOKE) as kept:
        return {name: kept[name].astype(np.float32) for name in kept.files}


@pytest.fixture(params=catalog.names("metrics"))
def metric(request: pytest.FixtureRequest) -> ImageMetric:
    found = catalog.load("metrics", request.param)
    assert isinstance(found, ImageMetric)
    assert found.name == request.param
    return found


def feature_sets(n: int, name: str = "", seed: int = 0) -> FeatureSets:
    random = np.random.default_rng(seed)
    if name.startswith("clip_s"):
        return FeatureSets(random.uniform(0, 40, (n, 1)).astype(np.float32))
    samples = random.gamma(0.5, 1.1, (n, DIMENSIONS)).astype(np.float32)
    real = np.random.default_rng(99).gamma(0.5, 1, (300, DIMENSIONS)).astype(np.float32)
    return FeatureSets(samples, Moments.of(real), real)


def test_shares_are_the_value_and_its_error(metric: ImageMetric) -> None:
    """A paired difference of two checkpoints rests on it. The same features give the same."""
    found, again = (metric.estimate(feature_sets(150, metric.name)) for _ in range(2))
    assert (found.value, found.stderr) == (again.value, again.stderr)
    assert json.dumps(found.details) == json.dumps(again.details)
    assert math.isfinite(found.value)
    assert 0 < found.stderr < max(1, abs(found.value))
    if found.per_image is not None:
        assert found.per_image.shape == (150,)
        assert found.per_image.mean() == pytest.approx(found.value, rel=1e-9)
        sampling = found.per_image.std(ddof=1) / math.sqrt(150)
        assert sampling == pytest.approx(found.details.get("sampling_stderr", found.stderr), rel=1e-9)
        assert sampling <= found.stderr * (1 + 1e-9)


def gamma(n: int, seed: int, scale: float = 1.0, dimensions: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, scale, (n, dimensions)).astype(np.float32)


def kid_far_from(seed: int, n: int, scale: float, shift: float) -> Estimate:
    return kid(FeatureSets(gamma(n, 10 + seed, scale) + shift, None, gamma(2 * n if not shift else n, 1) + shift))


def blocks_of_both_sides(seed: int) -> Estimate:
    found = kid(FeatureSets(gamma(600, 10 + seed, 1.2), None, gamma(600, 500 + seed)))
    return Estimate(found.value, found.details["block_stderr"], found.n)


def kid_of_torch_fidelity(seed: int) -> Estimate:
    sets = FeatureSets(gamma(200, 10 + seed, 1.5, 4), None, gamma(300, 1, 1.0, 4), seed)
    return TORCH_FIDELITY.metrics["kid"].estimate(sets)


def fid_of_normals(seed: int, shift: float) -> Estimate:
    reference = SimpleNamespace(mean=np.zeros(8), covariance=np.eye(8))
    return frechet_estimate(FeatureSets(np.random.default_rng(seed).normal(shift, 1, (200, 8)), reference))


def of_catalog(name: str) -> Callable[[int], Estimate]:
    return lambda seed: catalog.load("metrics", name).estimate(feature_sets(150, name, seed))


def fid_of_pairs(seed: int, moved: float, noise: float) -> Estimate:
    """Features and the same a little off; with `moved` 0 both sides have one distribution."""
    random, scales = np.random.default_rng(seed), np.array([1, 2, 3, 4])
    first = random.normal(size=(200, 4)) * scales
    second = (1 - moved / 2) * first + noise * random.normal(size=(200, 4)) + moved
    if moved == 0:
        second /= np.sqrt(1 + noise**2 / scales**2)
    shares = paired_frechet_shares(first, second)
    return Estimate(shares.value, Estimate.of_images(counted_once(shares, 4)).stderr, 200)


CASES: dict[str, tuple[Callable[[int], Estimate], int, float, float]] = {
    # The jackknife over groups is rather too large, by most where nearly all real images are found.
    **{
        name: (of_catalog(name), 80, 0.8, 1.6 if name in ("recall", "recall_k3", "coverage") else 1.15)
        for name in catalog.names("metrics")
    },
    "fid at zero": (lambda seed: fid_of_normals(seed, 0.0), 200, 0.85, 1.15),
    "fid away from zero": (lambda seed: fid_of_normals(seed, 0.3), 200, 0.85, 1.15),
    "pairs at zero": (lambda seed: fid_of_pairs(seed, 0.0, 3.0), 200, 0.83, 1.17),
    "pairs away from zero": (lambda seed: fid_of_pairs(seed, 0.2, 0.3), 200, 0.83, 1.17),
    "kid in blocks, at zero": (lambda seed: kid_far_from(seed, 200, 1.0, 0), 150, 0.83, 1.17),
    "kid in blocks, far from zero": (lambda seed: kid_far_from(seed, 600, 1.2, 3), 60, 0.7, 1.3),
    "kid's blocks on both sides": (blocks_of_both_sides, 60, 0.7, 1.3),
    "torch-fidelity's kid, of few subsets": (kid_of_torch_fidelity, 40, 0.8, 1.7),
}
"""Estimates by a seed, how many to draw, and least and most of the ratio of their error to their spread."""

BLOCKS = {"kid in blocks, at zero": 100, "kid in blocks, far from zero": 100, "kid's blocks on both sides": 50}


@pytest.mark.parametrize("case", CASES)
def test_the_error_is_the_spread_over_samples(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At zero a jackknife that counts the variance of pairs twice is √2 too large."""
    estimate, draws, least, most = CASES[case]
    monkeypatch.setattr(mmd, "BLOCK", BLOCKS.get(case, 20 if "torch" in case else mmd.BLOCK))
    monkeypatch.setattr(reference_program, "SUBSET_SIZE", 20)
    found = [estimate(seed) for seed in range(draws)]
    errors = np.sqrt(np.mean(np.square([one.stderr or 0.0 for one in found])))
    assert least < errors / np.std([one.value for one in found], ddof=1) < most


def test_says_what_it_reads(metric: ImageMetric) -> None:
    assert metric.features.partition("/")[0] in {"inception", "clip", "clip_s", "clip_score", "dinov2"}
    assert metric.estimator == f"{metric.name}/{metric.version}"
    if metric.needs != "nothing":
        with pytest.raises(InvalidData, match="give"):
            metric.estimate(FeatureSets(feature_sets(150).samples))


def test_sizes_that_do_not_fit() -> None:
    wrong = FeatureSets(feature_sets(50).samples, None, np.ones((9, 3), np.float32))
    with pytest.raises(InvalidData, match="12 and of 3 dimensions"):
        catalog.load("metrics", "kid").estimate(wrong)
    with pytest.raises(InvalidData, match="5 samples and 9 real images; give more than 5 each"):
        neighbourhoods(FeatureSets(np.ones((5, 2)), None, np.ones((9, 2))))
    rows = np.random.default_rng(0).normal(1000, 1, (50, 8)).astype(np.float32)
    assert squared_distances(rows, rows).min() == 0, "never negative"


def test_equal_answers_are_not_certain() -> None:
    """Other equal numbers are, and one image has no error."""
    errors = [Estimate.of_images(numbers).stderr for numbers in ([3.0], [3.0] * 20, [0] * 20, [1] * 20)]
    assert errors == [None, 0.0, share_stderr(0, 20), share_stderr(20, 20)]


def test_inception_score_is_torch_fidelitys() -> None:
    """In our order: theirs is shuffled by another generator."""
    rows = np.random.default_rng(0).normal(0, 2, (1234, 20)).astype(np.float32)
    order = np.random.default_rng(0).permutation(1234)
    theirs = isc_features_to_metric(torch.tensor(rows[order]), splits=10, shuffle=False)
    found = inception_score(FeatureSets(rows))
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found.details["split_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_inception_score_of_adm_is_over_splits_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last split is smaller and counts as much."""
    monkeypatch.setattr(scores, "SPLIT_SIZE", 500)
    rows = np.random.default_rng(0).normal(0, 2, (1234, 20))
    p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    parts = [p[:500], p[500:1000], p[1000:]]
    expected = np.mean([np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), 1))) for part in parts])
    assert score_as_adm(FeatureSets(rows.astype(np.float32))).value == pytest.approx(expected, rel=1e-6)


def test_clip_score_is_the_mean() -> None:
    found = clip_score(FeatureSets(np.array([[20.0], [30.0], [40.0]], np.float32)))
    assert (found.value, found.n, found.stderr) == (30.0, 3, pytest.approx(10 / np.sqrt(3)))


def test_kid_equals_the_definition() -> None:
    """The unbiased estimate, pair by pair, with unequal numbers."""
    x, y = gamma(12, 0), gamma(9, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(np.float64) @ b / 16 + 1) ** 3)

    expected = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    expected += np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    expected -= 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kid(FeatureSets(x, None, y)).value == pytest.approx(expected, rel=1e-9)


def test_kid_is_torch_fidelitys_and_clean_fids_on_real_features(smoke_features: Features) -> None:
    """One subset of all 85 images. In float64; in float32, as they are called, they are off by 3e-5 themselves."""
    images, blurred = (smoke_features[name].astype(np.float64) for name in ("images_2048", "blurred_2048"))
    found = kid(FeatureSets(blurred, None, images)).value
    theirs = kid_features_to_metric(
        torch.tensor(blurred), torch.tensor(images), kid_subsets=1, kid_subset_size=85, rng_seed=0, verbose=False,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1,
    )  # fmt: skip
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert found == pytest.approx(kernel_distance(blurred, images, num_subsets=1, max_subset_size=85), rel=1e-9)


def test_blocks_are_unbiased_and_near_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal distributions the mean over draws is zero, however small the blocks."""
    sets = FeatureSets(gamma(700, 0, 1.3), None, gamma(900, 1))
    whole = kid(sets)
    monkeypatch.setattr(mmd, "BLOCK", 50)
    blocked = kid(sets)
    assert blocked.details["blocks"] == 14
    assert abs(blocked.value - whole.value) < whole.stderr
    null = [kid(FeatureSets(gamma(100, seed), None, gamma(130, 1000 + seed))).value for seed in range(60)]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(60)


def test_kid_does_not_depend_on_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions often lie by classes; blocks of neighbours, of one class each, would make two equal sets far apart."""
    monkeypatch.setattr(mmd, "BLOCK", 100)
    classes = np.random.default_rng(0).gamma(0.5, 1, (30, 16))
    values = []
    for seed in range(20):
        real, samples = (np.repeat(classes, 20, 0) + gamma(600, place + 2 * seed) for place in (1000, 1001))
        sets = FeatureSets(samples.astype(np.float32), None, real.astype(np.float32), seed=seed)
        values.append(kid(sets).value)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(20)


def test_shares_are_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints are subtracted image by image: the share of an odd image is where the image is."""
    monkeypatch.setattr(mmd, "BLOCK", 50)
    samples, real = gamma(200, 0), gamma(300, 1)
    before = kid(FeatureSets(samples, None, real)).per_image
    samples[37] *= 10
    assert np.abs(kid(FeatureSets(samples, None, real)).per_image - before).argmax() == 37


def test_every_real_image_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples than real images, and more: the shorter list of blocks is repeated."""
    monkeypatch.setattr(mmd, "BLOCK", 20)
    for n, m in ((20, 95), (95, 20)):
        real = gamma(m, 1)
        value = kid(FeatureSets(gamma(n, 0), None, real)).value
        for row in range(m):
            moved = real.copy()
            moved[row] *= 3
            assert kid(FeatureSets(gamma(n, 0), None, moved)).value != value


def test_pair_variance_equals_centring_entry_by_entry() -> None:
    """The U-centred matrix, as printed."""
    random, n = np.random.default_rng(0), 11
    gram = random.normal(size=(n, n))
    gram += gram.T + np.add.outer(*[random.normal(size=n)] * 2)
    np.fill_diagonal(gram, 0)
    rows = gram.sum(1)
    centred = gram - np.add.outer(rows, rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    total = np.square(centred)[~np.eye(n, dtype=bool)].sum()
    assert pair_variance(rows, np.square(gram).sum()) == pytest.approx(total / (n * (n - 3)), rel=1e-12)
    assert pair_variance(np.zeros(3), 1.0) == 0


def slow_cmmd(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    """Pair by pair, from the definition."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x.astype(float), y.astype(float)))

    def mean(a: np.ndarray, b: np.ndarray, apart: bool) -> float:
        kernels = [[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a]
        return float(np.mean([k for i, row in enumerate(kernels) for j, k in enumerate(row) if not (apart and i == j)]))

    return 1000 * (mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False))


def test_cmmd_is_the_definition() -> None:
    """The value is that of the authors' program, with the pairs of an image with itself. Lengths do not count."""
    x, y = gamma(21, 0), gamma(17, 1, 1.3)
    found = cmmd(FeatureSets(x, None, y))
    assert found.value == pytest.approx(slow_cmmd(x, y, unbiased=False), rel=1e-5)
    assert found.details["unbiased"] == pytest.approx(slow_cmmd(x, y, unbiased=True), rel=1e-5)
    assert cmmd(FeatureSets(3 * x, None, y)).value == pytest.approx(found.value, rel=1e-4)


NAMES = ("precision", "recall", "density", "coverage")


def values(sets: FeatureSets) -> dict[str, float]:
    return {name: catalog.load("metrics", name).estimate(sets).value for name in NAMES}


@pytest.mark.parametrize("rows", [7, 1024])
def test_values_are_prdcs(smoke_features: Features, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any chunks; `prdc` has all distances at once."""
    monkeypatch.setattr(prdc, "CHUNK_ROWS", rows)
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


def test_is_what_it_is_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags without a group are those of the other samples alone, whose balls are larger than they were."""
    monkeypatch.setattr(prdc, "CHUNK_ROWS", 23)
    random = np.random.default_rng(0)
    real, samples = random.normal(size=(80, 3)), random.normal(0.6, 0.7, (90, 3))
    found = neighbourhoods(FeatureSets(samples, None, real, seed=4))
    # The first number that the seed gives is the division's, as no subset is drawn.
    groups = np.random.default_rng(4).permutation(np.arange(90) * prdc.GROUPS // 90)
    changed = 0
    for group in range(prdc.GROUPS):
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
    assert estimates[0].groups == prdc.GROUPS


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


def sets_of(features: Features, tap: int = 64, seed: int = 7) -> FeatureSets:
    real, samples = features[f"images_{tap}"], features[f"blurred_{tap}"]
    return FeatureSets(samples, Moments.of(real), real, seed)


def tensors(sets: FeatureSets) -> list[torch.Tensor]:
    return [torch.from_numpy(rows) for rows in (sets.samples, sets.reference_features)]


PROGRAMS = {
    "clean-fid 0.1.35": (CLEAN_FID, "kid"),
    "torch-fidelity 0.4.0": (TORCH_FIDELITY, "kid precision recall"),
}


@pytest.mark.parametrize("release", PROGRAMS)
def test_fid(release: str, smoke_features: Features) -> None:
    """Of imported statistics the mean is float64, where that of features is float32."""
    program, others = PROGRAMS[release]
    sets, metrics = sets_of(smoke_features), program.metrics
    found, own, expected = metrics["fid64"].estimate(sets), frechet_estimate(sets), 0.0
    if program is CLEAN_FID:
        expected = fid.fid_from_feats(sets.samples, sets.reference_features)
    else:
        statistics = map(fid_features_to_statistics, tensors(sets))
        expected = float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])
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


def test_a_scipy_that_clean_fid_does_not_work_with_is_told_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before images are sampled; and a root that is not real is an error of the data."""
    mean, message = np.zeros(2), r"clean-fid 0\.1\.35 computes no distance from these features: Imaginary"
    with pytest.raises(InvalidData, match=message):
        frechet_distance((mean, np.diag([-1.0, -4.0])), (mean, np.eye(2)))
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


@pytest.mark.usefixtures("many_cases")
def test_all_features_of_few_images_are_theirs(smoke_features: Features) -> None:
    """85 images on 2,048 features: the null space of the product adds 2e-6 to what the libraries compute."""
    images, blurred = smoke_features["images_2048"], smoke_features["blurred_2048"]
    first, second = Moments.of(blurred), Moments.of(images)
    found = own_distance(first.mean, first.covariance, second.mean, second.covariance)
    assert found == pytest.approx(float(smoke_features["torch_fidelity_2048"]), rel=1e-5)
    assert found == pytest.approx(float(smoke_features["clean_fid_2048"]), rel=1e-5)


def test_precision_and_recall_of_adm_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """From whole matrices of float16: a ball holds its border, on which many distances of float16 lie."""
    real, fake = (gamma(n, seed, 3.0, 64) for n, seed in ((90, 0), (110, 1)))

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float16), b.astype(np.float16)
        lengths = [np.square(side).sum(1, dtype=np.float32).astype(np.float16) for side in (a, b)]
        product = (a.astype(np.float32) @ b.T.astype(np.float32)).astype(np.float16)
        return np.maximum(lengths[0][:, None] - np.float16(2) * product + lengths[1], 0)

    radii = [np.sort(distances(side, side), axis=1)[:, 3] for side in (real, fake)]
    between = distances(real, fake)
    sets = FeatureSets(fake, None, real)
    expected = {"precision_k3": (between <= radii[0][:, None]).any(0), "recall_k3": (between <= radii[1]).any(1)}
    on_the_border = (between < radii[1]).any(1)
    assert on_the_border.mean() != expected["recall_k3"].mean(), "the borders matter here"
    found = {name: catalog.load("metrics", name).estimate(sets) for name in expected}
    assert {name: one.value for name, one in found.items()} == {name: flags.mean() for name, flags in expected.items()}
    monkeypatch.setattr(prdc, "CHUNK_DISTANCES", 1000)
    again = catalog.load("metrics", "recall_k3").estimate(FeatureSets(fake, None, real))
    assert (again.value, again.stderr) == (found["recall_k3"].value, found["recall_k3"].stderr), "in chunks"


def test_distances_beyond_float16_are_those_of_float32() -> None:
    rows = gamma(30, 0, 300.0)
    np.testing.assert_array_equal(prdc.rounded_distances(rows, rows), squared_distances(rows, rows))
