"""Verdicts on the newest value of a run."""

import json
import random
from typing import Any

import pytest
from compared_runs import items, metrics
from gate_documents import document, read_document

from evalsvc.compare.comparison import Options, compare_results
from evalsvc.compare.newest import with_verdicts
from evalsvc.compare.result import Result
from evalsvc.spec.documents import BestPoint, HeadlineSeries, NewestVerdict, Point

METRIC = "arc/acc"


def result(name: str, seed: int, right: float) -> Result:
    rows = items(seed, right)
    found = document(*metrics(rows), items={"language-0": rows}, task="language-0")
    return read_document(name, json.loads(json.dumps(found)))


RESULTS = {"run@0": result("run@0", 1, 0.3), "run@10": result("run@10", 2, 0.7), "run@20": result("run@20", 3, 0.68)}


def point(step: int, value: float | None = None, import_: int | None = None, **fields: Any) -> Point:
    if value is None:
        [found] = RESULTS[f"run@{step}"].values[METRIC].values()
        return Point(step=step, value=found.value, stderr=found.stderr, n=found.n, groups=None, import_=None)
    return Point(step=step, value=value, import_=import_, **{"stderr": 0.01, "n": 400, "groups": None, **fields})


def series(latest: Point, best: Point | None, base: Point | None = None, of: int = 1, **fields: Any) -> HeadlineSeries:
    [protocol] = RESULTS["run@0"].values[METRIC]
    rest: dict[str, Any] = {"metric": METRIC, "variant": "raw", "protocol": protocol, "unit": "fraction"}
    rest |= {"direction": "higher", "baseline": None, "differs": {}, "x": [], "values": []}
    name = None if base is None else f"run@{base.step}"
    best_of = None if best is None else BestPoint(**vars(best), of=of)
    return HeadlineSeries(**rest | fields, latest=latest, best=best_of, base=base, base_name=name)


def verdicts(item: HeadlineSeries) -> list[NewestVerdict]:
    [found] = with_verdicts("run", [item], RESULTS.get)
    assert found.verdicts is not None
    return found.verdicts


def test_measured_values_are_paired_as_in_a_comparison() -> None:
    best, base = verdicts(series(point(20), point(10), point(0)))
    for found, other in ((best, "run@10"), (base, "run@0")):
        [row] = compare_results(RESULTS[other], RESULTS["run@20"], Options((METRIC,))).contrasts
        assert (found.checkpoint, found.basis) == (other, "paired")
        assert (found.difference, found.stderr, found.verdict) == (row.difference, row.stderr, row.verdict)
    assert (best.verdict, base.verdict) == ("indistinguishable", "better")


def test_imported_values_are_compared_by_their_own_errors() -> None:
    latest, best = point(20, 0.50, import_=1), point(10, 0.60, import_=1)
    [worse] = verdicts(series(latest, best))
    assert (worse.verdict, worse.basis, worse.difference) == ("worse", "unpaired", 0.50 - 0.60)
    [better] = verdicts(series(latest, best, direction="lower"))
    assert better.verdict == "better"
    [unknown] = verdicts(series(latest.model_copy(update={"stderr": None}), best))
    assert (unknown.verdict, unknown.basis, unknown.stderr) == ("no_error_known", "none", None)
    [few] = verdicts(series(latest.model_copy(update={"n": None}), best))
    assert few.verdict == "no_error_known", "nobody knows how many items are behind the error"


def test_the_newest_of_equal_values_is_rarely_worse_than_the_best_of_them() -> None:
    """Judged as if the best had not been chosen, .20 of the newest of 20 equal checkpoints were worse."""
    own, worse = random.Random(0), 0
    for _ in range(1000):
        values = [own.gauss(0.5, 0.01) for _ in range(20)]
        best = max(range(20), key=values.__getitem__)
        ends = (point(10 * step, values[step], import_=1, n=1000) for step in (19, best))
        worse += [found.verdict for found in verdicts(series(*ends, of=20))] == ["worse"]
    assert worse / 1000 < 0.025
    [found] = verdicts(series(point(20, 0.5, import_=1), point(10, 0.6, import_=1), of=20))
    assert (found.best_of, found.level) == (20, pytest.approx(1 - 0.05 / 19))
    assert found.verdict == "worse", "by seven errors of the difference"
    [best, base] = verdicts(series(point(20), point(10), point(0), of=3))
    assert (best.level, base.level, base.best_of) == (pytest.approx(1 - 0.05 / 2), 0.95, 1)


def test_a_value_has_no_verdict_against_itself() -> None:
    assert verdicts(series(point(20), point(20))) == []
    assert verdicts(series(point(0), None, point(0))) == []
    assert verdicts(series(point(20), None)) == []


def test_a_value_that_is_no_number() -> None:
    latest = point(20, 0.5, import_=1).model_copy(update={"value": "NaN"})
    [found] = verdicts(series(latest, point(10, 0.6, import_=1)))
    assert (found.difference, found.verdict) == ("NaN", "no_error_known")


def test_a_checkpoint_that_is_gone_leaves_the_values_errors() -> None:
    [found] = with_verdicts("run", [series(point(20), point(10))], lambda name: None)
    assert found.verdicts is not None
    assert [verdict.basis for verdict in found.verdicts] == ["unpaired"]
