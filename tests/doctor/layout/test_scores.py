"""Description lengths: what a candidate is charged for beside its losses."""

import math
import statistics
from array import array
from collections import Counter
from itertools import pairwise

import pytest
from bigram_witness import BigramWitness

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.checkup import in_errors, margin
from evalsvc.doctor.layout.search import Candidate, Sizes, propose, score
from evalsvc.metrics.shares import standard_error

RECORDS = [Record(array("i", [1, 2]), array("i", [0, 3, code]), "line 1") for code in (1, 2, 2)]
ROWS = 21


def candidate(template: str) -> Candidate:
    found = propose(ROWS, RECORDS, Sizes((10,), 4, ()), {})[0]
    return next(item for item in found if item.label == f"image-then-special 10 ({template})")


def witness() -> BigramWitness:
    return BigramWitness.trained(candidate("text, image").layout, RECORDS, ROWS)


def test_total_is_the_sum_of_all_parts() -> None:
    full = candidate("text, image")
    (sequence, *_) = sequences = full.sequences(RECORDS)
    scored = score(witness(), full, sequences)
    losses = -math.fsum(math.log(witness().probability(before, [after])) for before, after in pairwise(sequence))
    end = witness().probability(sequence[-1], [])
    assert end == 0  # every row has a meaning, so nothing is charged for the end
    assert scored.totals[0] == pytest.approx(losses)


def test_first_token_that_is_no_marker_costs_its_block() -> None:
    """Else a template without a marker in front had one token less to pay for."""
    bare = candidate("text, image; bare")
    scored = score(witness(), bare, bare.sequences(RECORDS), enough=-math.inf)
    assert list(scored.ends) == [math.log(10)] * 3


def test_expecting_more_behind_the_end_is_charged() -> None:
    """Else `no doc` could not be told from a run that has it: it only leaves out what costs nothing."""
    short = candidate("text, image; no doc")
    sequences = short.sequences(RECORDS)
    expected = witness().probability(sequences[0][-1], [14, 15])  # doc and /doc
    assert expected > 0.9
    assert score(witness(), short, sequences).ends[0] == pytest.approx(-math.log(1 - expected))


def test_certainty_is_not_charged_infinitely() -> None:
    """A probability of 1, to the last bit, would make a candidate infinitely bad, and its margin NaN."""
    short = candidate("text, image; no doc")
    sequences = short.sequences(RECORDS)
    sure = BigramWitness({sequences[0][-1]: Counter({15: 1})}, ROWS, smoothing=1e-30)
    assert score(sure, short, sequences[:1]).ends == [pytest.approx(12 * math.log(10))]


def test_behind_is_paired() -> None:
    """Sequences differ by more than candidates do."""
    full, short = (
        score(witness(), item, item.sequences(RECORDS))
        for item in (candidate("text, image"), candidate("text, image; no doc"))
    )
    found = margin(full, short)
    differences = [theirs - ours for theirs, ours in zip(short.totals, full.totals, strict=True)]
    assert found.behind == pytest.approx(sum(differences) / 3)
    assert found.behind_nats_per_token == pytest.approx(found.behind / 5), "text and image tokens count"
    # The same marker is left out of every sequence, however hard the sequence is: nearly no error is left.
    assert found.behind_standard_errors > 1_000 * abs(
        in_errors(statistics.fmean(full.totals), standard_error(full.totals))
    )


@pytest.mark.parametrize(
    ("difference", "stderr", "expected"),
    [(2.0, 0.5, 4.0), (2.0, None, 0.0), (math.nan, 1.0, 0.0), (1.0, 0.0, math.inf), (-1.0, 0.0, -math.inf)],
)
def test_margins_in_standard_errors(difference: float, stderr: float | None, expected: float) -> None:
    assert in_errors(difference, stderr) == expected
