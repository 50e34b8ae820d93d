import json
import math
import statistics
from collections import Counter
from pathlib import Path

import pytest

from evalsvc.language.questions import Selection, drawing_order, strata
from evalsvc.metrics.item_shares import finite_factor
from evalsvc.metrics.shares import standard_error

UNEVEN = ["a"] * 23 + ["b"] * 9 + ["c"] * 4 + ["d"]


def test_every_document_is_in_as_many_samples_as_any_other() -> None:
    """Of a stratum of one document as of one of 23; else the mean over a sample is biased."""
    seeds, size = 4000, 10
    counts = Counter(index for seed in range(seeds) for index in drawing_order(UNEVEN, str(seed))[:size])
    share = size / len(UNEVEN)
    error = math.sqrt(seeds * share * (1 - share))
    assert all(abs(counts[index] - seeds * share) < 4 * error for index in range(len(UNEVEN)))


def test_every_sample_is_allocated_in_proportion() -> None:
    """Also the smaller ones that it holds; a plain draw of 18 has 11 ± 4 of the first stratum."""
    for seed in range(200):
        order = drawing_order(UNEVEN, str(seed))
        assert sorted(order) == list(range(len(UNEVEN)))
        for size in range(1, len(order)):
            counts = Counter(UNEVEN[index] for index in order[:size])
            expected = {name: size * UNEVEN.count(name) / len(UNEVEN) for name in "abcd"}
            assert all(abs(counts[name] - expected[name]) < 2 for name in "abcd"), (seed, size)


def test_the_draw_is_the_same_everywhere() -> None:
    """A history breaks where another machine or version draws other documents."""
    assert drawing_order(UNEVEN, "stratified/1/arc_easy")[:8] == [29, 7, 8, 30, 3, 13, 0, 35]
    assert drawing_order(UNEVEN, "stratified/1/piqa")[:8] != [29, 7, 8, 30, 3, 13, 0, 35]
    assert drawing_order([], "x") == []


def test_strata_are_places_of_answers_and_lengths_of_questions() -> None:
    assert strata([0, 1, 0, 1, None], [10, 20, 30, 40, 50]) == [(0, 0), (1, 1), (0, 1), (1, 2), (None, 3)]
    assert strata([0, 0, 0], [7, 7, 7]) == [(0, 0)] * 3, "what is equally long is of one class"
    assert strata([None], [5]) == [(None, 0)]


def test_nothing_selected_is_false() -> None:
    assert [bool(each) for each in (Selection(), Selection(limit=1), Selection(sample=2))] == [False, True, True]


SEEDS, SIZE = 200, 200


@pytest.mark.parametrize(("answers", "explained"), [("longest", False), ("first", True)])
def test_the_error_of_a_sample_is_honest(shared: Path, answers: str, explained: bool) -> None:
    """Two who answer ARC-easy without a model: by the longest option, and always by the first, as the forgetful do.

    Over many draws the mean is that of all questions. It varies as the standard error of a sample from a finite
    benchmark says, and less where the strata explain who is right. It is never too small, and needs no strata.
    """
    lines = (shared / "golden" / "text_tasks" / "arc_easy.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    options = [[len(choice) for choice in row["choices"]] for row in rows]
    answered = [0 if answers == "first" else sizes.index(max(sizes)) for sizes in options]
    right = [float(answer == row["gold"]) for answer, row in zip(answered, rows, strict=True)]
    of = strata([row["gold"] for row in rows], [len(row["query"]) for row in rows])
    means, errors = [], []
    for seed in range(SEEDS):
        sample = [right[index] for index in drawing_order(of, str(seed))[:SIZE]]
        means.append(statistics.fmean(sample))
        errors.append(finite_factor(SIZE, len(rows)) * (standard_error(sample) or math.nan))
    spread = statistics.stdev(means)
    assert abs(statistics.fmean(means) - statistics.fmean(right)) < 4 * spread / math.sqrt(SEEDS)
    assert spread < 0.2 * statistics.fmean(errors) if explained else 0.9 < spread / statistics.fmean(errors) < 1.1
    truth = statistics.fmean(right)
    held = sum(abs(mean - truth) < 1.96 * error for mean, error in zip(means, errors, strict=True)) / SEEDS
    assert held == 1 if explained else 0.9 < held < 0.99
