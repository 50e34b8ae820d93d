"""Compare, gate and forgetting ask one comparison; those of forgetting are made where torch is."""

import math
import random
from collections.abc import Sequence

import pytest
from benchmark_results import results, with_bits
from gate_documents import document, read_document

from evalsvc.compare import gate
from evalsvc.compare.comparison import compare_results
from evalsvc.compare.result import Result
from evalsvc.language.results import Results
from evalsvc.tasks.forgetting.rows import benchmark_rows


def answers(seed: int, right: float, n: int = 60) -> list[float]:
    """Right or wrong, on questions that are hard or easy alike for all seeds."""
    shared, own = random.Random(7), random.Random(seed)
    return [float(0.6 * shared.random() + 0.4 * own.random() < right) for _ in range(n)]


def bits(seed: int, mean: float, n: int = 60) -> list[float]:
    shared, own = random.Random(8), random.Random(seed)
    return [mean + shared.gauss(0, 1) + 0.1 * own.gauss(0, 1) for _ in range(n)]


def measured(seed: int, right: float = 0.5, mean: float = 8.0, n: int = 60) -> Results:
    """Accuracies and bits per byte, over all ids and within text."""
    found = results(arc=answers(seed, right, n))
    return with_bits(found, "arc", bits(seed, mean, n), bits(seed + 100, mean - 1, n))


def with_an_infinity(found: Results) -> Results:
    """A document of infinite loss: the value is infinite, and its standard error no number."""
    losses = [math.inf, *(item["bits"] for item in found.items[1:])]
    return with_bits(results(arc=[item["acc"] for item in found.items]), "arc", losses, bits(3, 7.0))


ALONE, TWO_SUITES = ("text",), ("quick/text", "full/text")

TASKS = {"baseline in two suites": (TWO_SUITES, ALONE), "candidate in two suites": (ALONE, TWO_SUITES)}

PAIRS: dict[str, tuple[Results, Results]] = {
    "a little worse": (measured(1), measured(2, 0.45, 8.05)),
    "the same": (measured(1), measured(1)),
    "all right, all wrong": (results(arc=[1.0] * 30), results(arc=[0.0] * 30)),
    "items in another order": (measured(1), Results(measured(2).metrics, measured(2).items[::-1], {})),
    "one document": (measured(1, n=1), measured(2, 0.2, n=1)),
    "one-sided error": (measured(1), with_an_infinity(measured(2))),
    **dict.fromkeys(TASKS, (measured(1), measured(2, 0.4, 8.1))),
}


def as_document(found: Results, tasks: Sequence[str], name: str) -> Result:
    """As the service has it: the task that measured `found`, and of other suites tasks of the same name."""
    first, *others = tasks
    whole = document(*found.metrics, items={first: found.items}, task=first)
    for task in others:
        strange = results(arc=answers(99, 0.9, 25))
        whole["items"][task] = strange.items
    return read_document(name, whole)


@pytest.mark.parametrize("name", PAIRS)
def test_compare_the_gate_and_forgetting_say_the_same(name: str) -> None:
    """Three answers to one question: how far apart, with which error, and where that comes from."""
    base, own = PAIRS[name]
    base_tasks, own_tasks = TASKS.get(name, (ALONE, ALONE))
    before, after = as_document(base, base_tasks, "before"), as_document(own, own_tasks, "after")
    compared = {
        one.metric: (float(one.difference), one.stderr, one.basis, one.n)
        for one in compare_results(before, after).contrasts
        if one.difference is not None
    }
    judged = {
        one.metric: (one.difference.value, one.difference.stderr, one.difference.basis, one.difference.n)
        for one in gate.compare(after, before).comparisons
        if one.difference
    }
    rows = benchmark_rows(own, base)
    assert len(rows) == (2 if len(base.metrics) == 2 else 4)
    for row in rows:
        metric = f"{row.what}/{row.metric}{'_within' if row.scope == 'text' else ''}"
        assert compared[metric] == judged[metric]
        difference, stderr, basis, n = compared[metric]
        assert (row.change_basis, row.n) == (basis, n)
        assert row.change == pytest.approx(difference, rel=1e-9, abs=1e-12)
        assert row.change_stderr == (None if stderr is None else pytest.approx(stderr, rel=1e-9, abs=1e-12))
