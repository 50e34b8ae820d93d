import math

import pytest

from evalsvc.errors import InternalError
from evalsvc.protocol import Protocol
from evalsvc.tasks.loss_metrics import loss_items, loss_metrics, with_totals

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
