import math

import numpy as np
import pytest

from evalsvc.errors import InternalError
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.protocol import Protocol
from evalsvc.tasks.loss.metrics import general_text_metrics, loss_items, loss_metrics, with_totals

SUMS = {
    "n_text": [4.0, 0.0, 2.0],
    "n_image": [8.0, 8.0, 0.0],
    "n_special": [3.0, 2.0, 1.0],
    "nll_text": [9.0, 0.0, 5.5],
    "nll_image": [70.0, 66.0, 0.0],
    "nll_special": [0.1, 0.3, 0.2],
    "within_text": [8.0, 0.0, 5.0],
    "within_image": [69.0, 65.0, 0.0],
    "image_mass": [0.4, 0.0, 0.1],
}
IDS = {"all": 112, "text": 80, "image": 16}


def test_a_total_that_is_not_the_weighted_mean_is_a_bug() -> None:
    """Σ n_t L_t / Σ n_t: a total over other tokens than the types' has happened to more than one training script."""
    sums = with_totals(SUMS)
    found = {metric.name: metric.value for metric in loss_metrics("x", sums, IDS, Protocol({}))}
    assert found["x/total"] == pytest.approx(math.fsum((9, 5.5, 70, 66, 0.1, 0.3, 0.2)) / 28)
    for name, change in (("nll_total", 1e-6), ("n_total", 1)):
        wrong = {**sums, name: [sums[name][0] + change, *sums[name][1:]]}
        with pytest.raises(InternalError, match=r"the total loss is .* that of its types .* this is a bug in evalsvc"):
            loss_metrics("x", wrong, IDS, Protocol({}))


def test_a_perplexity_is_compared_over_the_items_of_its_loss() -> None:
    """Both are one number, so what can be told of one can be told of the other."""
    found = {metric.name: metric for metric in loss_metrics("x", with_totals(SUMS), IDS, Protocol({}))}
    for name in ("text", "image_within", "total"):
        loss, perplexity = found[f"x/{name}"], found[f"x/{name}_perplexity"]
        assert len(loss.items) == 2
        assert perplexity.items == loss.items
        assert perplexity.unit == "perplexity"


def test_captions_of_one_image_are_one() -> None:
    """Errors are over groups of sequences, and the items say of which group each is; without any, nothing is said."""
    general = {"n_text": [5.0, 4.0, 3.0], "nll_text": [1.0, 2.5, 2.0], "within_text": [0.5, 1.0, 1.5]}
    sums, pair = with_totals(SUMS), (Protocol({}), Protocol({}))
    groups = [0, 0, 2]
    found = {metric.name: metric for metric in loss_metrics("x", sums, IDS, Protocol({}), groups)}
    expected = ratio_of_sums(sums["nll_total"], sums["n_total"], groups)
    assert expected is not None
    assert (found["x/total"].stderr, found["x/total"].n, found["x/total"].groups) == (expected.stderr, 3, 2)
    for name in ("total", "total_perplexity"):
        assert (found[f"x/{name}"].groups, found[f"x/{name}"].grouped_by) == (2, "group")
    assert found["x/image"].stderr is None, "of two captions of one image the image's loss is one number"
    text = general_text_metrics("x", general, sums, IDS, pair, ([0, 1, 1], groups))
    assert [(metric.groups, metric.grouped_by) for metric in text[:2]] == [(2, "group_general_text"), (4, None)]
    items = loss_items(sums, general, (groups, [0, 1, 1]))
    assert [(item["group"], item["group_general_text"]) for item in items] == [(0, 0), (0, 1), (2, 1)]
    plain = [*loss_metrics("x", sums, IDS, Protocol({})), *general_text_metrics("x", general, sums, IDS, pair)]
    assert {(metric.groups, metric.grouped_by) for metric in plain} == {(None, None)}
    assert not any("group" in key for item in loss_items(sums, general) for key in item if key != "n_general_text")


def test_the_error_of_captions_of_one_image_is_the_spread() -> None:
    """60 images with five captions each, which share half of what varies: counted as 300, the error is .45 of it."""
    generator = np.random.default_rng(0)
    values, errors, naive = [], [], []
    for _ in range(200):
        images = generator.normal(0, 1, 60).repeat(5)
        lengths = generator.integers(5, 20, 300).astype(float)
        sums = lengths * (4 + images + generator.normal(0, 0.3, 300))
        for groups, found in (([index // 5 for index in range(300)], errors), (None, naive)):
            ratio = ratio_of_sums(sums.tolist(), lengths.tolist(), groups)
            assert ratio is not None
            found.append(ratio.stderr)
        values.append(ratio.value)
    spread = np.std(values, ddof=1)
    assert 0.85 < np.mean(errors) / spread < 1.15
    assert np.mean(naive) / spread < 0.55


def test_general_text_stands_in_the_rows_of_the_same_index() -> None:
    """There may be more or fewer texts than sequences, and one of a single token has no numbers."""
    general = {"n_text": [5.0, 0.0, 3.0, 2.0], "nll_text": [1.0, 0.0, 2.0, 3.0], "within_text": [0.5, 0.0, 1.5, 2.5]}
    sums = with_totals(SUMS)
    plain, both = loss_items(sums, None), loss_items(sums, general)
    keys = ("n_general_text", "nll_general_text", "within_general_text")
    assert [tuple(item.get(key) for key in keys) for item in both] == [
        (5, 1.0, 0.5),
        (None, None, None),
        (3, 2.0, 1.5),
        (2, 3.0, 2.5),
    ]
    assert [{key: value for key, value in item.items() if key not in keys} for item in both] == [*plain, {"index": 3}]
    fewer = {name: column[:1] for name, column in general.items()}
    assert loss_items(sums, fewer)[1:] == plain[1:]
