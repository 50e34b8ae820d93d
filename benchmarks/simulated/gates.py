"""Cells of the gate, of the gate that samples until it is decided, and of `until`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from statistics import NormalDist
from typing import get_args

import numpy as np

from evalsvc.compare.gate import compare
from evalsvc.compare.gate_report import Outcome, Report
from evalsvc.compare.gate_rules import EVERYTHING, Rule, Rules
from evalsvc.compare.result import Result
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.spec.looks import Spending, Until, schedule
from evalsvc.worker.trial import Both, Trial
from simulated.cells import Cell, Draw, Generator, Simulation
from simulated.data import PER_IMAGE, SHAPES, Shape, clustered, mean, metric, numbers, owners, result, skewed_down
from simulated.means import TOO_FEW, of_value

LEVELS = {2.0: 1 - NormalDist().cdf(2.0), 3.0: 1 - NormalDist().cdf(3.0)}
"""How often one metric fails by chance, by the rule's standard errors."""

STATED = {2.0: 20, 3.0: 50}
"""From so many items on the level of a rule is stated for skewed differences, too, by the rule's standard errors."""

METRICS = 40
"""Of the gate as a whole, independent of each other."""

SHARD = 128
"""Units of a shard: where the product may look follows from it."""


def verdict_of(report: Report) -> str:
    """Of a gate that judged one metric."""
    [comparison] = report.comparisons
    return comparison.verdict


def alarm_of(verdict: str) -> bool | None:
    return None if verdict == "not_judged" else verdict == "worse"


def changed(shape: Shape, random: Generator, n: int, shift: float = 0.0) -> tuple[list[float], list[float]]:
    """The items of a baseline and of a candidate whose mean is truly `shift` higher."""
    base = 3 + random.standard_normal(n)
    return base.tolist(), (base + shift + shape(random, n)).tolist()


# the gate


def gate_metric(shape: Shape, n: int, standard_errors: float) -> Simulation:
    """One metric of an unchanged checkpoint, lower is better."""
    rules = [Rule(metric="*", standard_errors=standard_errors)]

    def draw(random: Generator) -> Draw:
        base, own = changed(shape, random, n)
        report = compare(result("own", metric("t/x", own)), result("base", metric("t/x", base)), rules)
        verdict = verdict_of(report)
        return Draw(alarm=alarm_of(verdict), verdict=verdict)

    return draw


def gate_clusters(images: int, standard_errors: float) -> Simulation:
    """Captions of images, `PER_IMAGE` each, of an unchanged checkpoint."""
    rules, groups = [Rule(metric="*", standard_errors=standard_errors)], owners(images)

    def side(name: str, values: np.ndarray) -> Result:
        value, columns = metric("t/x", values, groups=images, grouped_by="image", stderr=mean(values, groups).stderr)
        return result(name, (value, {**columns, "image": groups}))

    def draw(random: Generator) -> Draw:
        base = 3 + random.standard_normal(len(groups))
        own = base + clustered(SHAPES["normal"], random, images)
        verdict = verdict_of(compare(side("own", own), side("base", base), rules))
        return Draw(alarm=alarm_of(verdict), verdict=verdict)

    return draw


def gate_answers(n: int, standard_errors: float, **limits: float) -> Simulation:
    """Questions that are right or wrong, of which 15 % are answered otherwise by an unchanged checkpoint."""
    rules = [Rule(metric="*", standard_errors=standard_errors, **limits)]

    def draw(random: Generator) -> Draw:
        base = random.random(n) < 0.6
        turned = random.random(n) < np.where(base, 0.075 / 0.6, 0.075 / 0.4)
        own = base ^ turned
        sides = (metric("t/x", answers, unit="fraction", direction="higher") for answers in (own, base))
        report = compare(*(result(name, side) for name, side in zip(("own", "base"), sides, strict=True)), rules)
        verdict = verdict_of(report)
        return Draw(alarm=alarm_of(verdict), verdict=verdict)

    return draw


def gate_whole(shape: Shape, n: int, family: str) -> Simulation:
    """All `METRICS` metrics of an unchanged checkpoint by the default rules."""

    def draw(random: Generator) -> Draw:
        pairs = [changed(shape, random, n) for _ in range(METRICS)]
        base, own = (
            result(name, *(metric(f"t/x{place}", pair[side]) for place, pair in enumerate(pairs)))
            for side, name in enumerate(("base", "own"))
        )
        outcome = compare(own, base, EVERYTHING, family).outcome
        return Draw(alarm=outcome == Outcome.REGRESSION, verdict=outcome.name.lower())

    return draw


# the gate that samples until it is decided


@cache
def looks(total: int) -> tuple[int, ...]:
    """After how many of `total` units the product looks."""
    return tuple(units for _, units in schedule([SHARD] * (total // SHARD)))


def until_decided(
    shape: Shape, total: int, standard_errors: float, spending: Spending, tolerance: float = 0.0, worse: float = 0.0
) -> Simulation:
    """One metric; `tolerance` in standard errors of all `total` items, truly worse by `worse` tolerances."""
    absolute = tolerance / math.sqrt(total)
    rules = Rules((Rule(metric="*", standard_errors=standard_errors, absolute=absolute, relative=0.0),))

    def draw(random: Generator) -> Draw:
        base, own = changed(shape, random, total, worse * absolute)
        trial = Trial("t", rules, spending=spending)
        for n in looks(total):
            sides = result("own", metric("t/x", own[:n])), result("base", metric("t/x", base[:n]))
            if trial.judge(Both(*sides, n, total, "images", last=n == total)):
                verdict = trial.comparisons[0].verdict
                return Draw(alarm=alarm_of(verdict) if worse <= 1 else None, verdict=verdict)
        raise AssertionError("the last look settles everything")

    return draw


def one_look(standard_errors: float, tolerance: float, worse: float) -> float:
    """How often one look at the end fails: the estimate must exceed the tolerance and the noise."""
    return 1 - NormalDist().cdf(max(tolerance, standard_errors) - worse * tolerance)


# `until: {stderr}`


def until_error(draw_items: Shape, truth: float, unit: str, total: int = 4_096) -> Simulation:
    """A task that stops when its error is that of a quarter of the items; value and interval at the stop."""

    @cache
    def target() -> float:
        random = np.random.default_rng(5)
        errors = [mean(draw_items(random, total // 4)).stderr or 0.0 for _ in range(200)]
        return float(np.median(errors))

    def draw(random: Generator) -> Draw:
        until, items = Until(stderr=target(), metric="x"), draw_items(random, total).tolist()
        for n in looks(total):
            value, _ = metric("t/x", items[:n], unit=unit)
            if n == total or until.reached([value.to_json()]):
                return of_value(mean(items[:n]), unit, truth, numbers(items[:n]))
        raise AssertionError("the last look ends the task")

    return draw


def answers(share: float) -> Shape:
    """Items that are right with this probability."""

    def draw(random: Generator, n: int) -> np.ndarray:
        return (random.random(n) < share).astype(float)

    return draw


# power


def power(kind: str, n: int, paired: bool) -> Simulation:
    """The gate's verdict, by default rules, on a checkpoint that is truly worse."""
    fields = {"items": ()} if not paired else {}

    def side(name: str, values: np.ndarray, **more: str) -> Result:
        return result(name, metric("t/x", values, **fields, **more))

    def draw(random: Generator) -> Draw:
        if kind.endswith("points"):
            lost = 0.01 * float(kind.split()[0].removeprefix("−"))
            place = random.random(n)
            only_base, only_own = (0.15 + lost) / 2, (0.15 - lost) / 2
            right = place > 0.4
            base, own = right | (place < only_base), right | ((place >= only_base) & (place < only_base + only_own))
            more = {"unit": "fraction", "direction": "higher"}
        else:
            # Sequences differ by half a nat, and one checkpoint from another by a tenth on each.
            base = 3 + 0.5 * random.standard_normal(n)
            shift = 0.02 if kind == "+.02 nats" else 2 * 0.1 / math.sqrt(n)
            own, more = base + shift + 0.1 * random.standard_normal(n), {}
        return Draw(verdict=verdict_of(compare(side("own", own, **more), side("base", base, **more))))

    return draw


def cells() -> Iterator[Cell]:
    yield from _single()
    yield from _whole()
    yield from _until_decided()
    yield from _until_error()
    yield from _power()


BEFORE = {8: "3 SE .0069 (n=10), .020 (n=5), .068 (n=2)", 20: "3 SE .0037", 100: "3 SE .0016"}


def _single() -> Iterator[Cell]:
    shapes = {**SHAPES, "−lognormal(1)": skewed_down}
    for standard_errors, nominal in LEVELS.items():
        family = f"gate, one metric, {standard_errors:g} SE"
        rare = standard_errors == 3
        for name, shape in shapes.items():
            for n in (TOO_FEW, MIN_ITEMS, 20, 100):
                reps = 500 if n < MIN_ITEMS else (40_000 if n <= 20 else 20_000) if rare else 8_000
                said = BEFORE.get(n, "") if rare and name == "normal" else ""
                cell = gate_metric(shape, n, standard_errors)
                claims, quick = n >= MIN_ITEMS, not rare or n < MIN_ITEMS
                few = n < STATED[standard_errors] and name not in ("normal", "t3", "sorted")
                why = f"the docs state the level of skewed differences from {STATED[standard_errors]} items on" * few
                yield Cell(family, name, f"{n}", cell, reps, nominal, claims, said, why, quick)
        for images in (MIN_ITEMS, 60):
            said = ".080±.004" if rare and images == 60 else ""
            size, cell = f"{images} × {PER_IMAGE}", gate_clusters(images, standard_errors)
            yield Cell(family, "clustered", size, cell, 20_000 if rare else 4_000, nominal, before=said, quick=not rare)
        for n in (20, 100, 300):
            cell = gate_answers(n, standard_errors)
            yield Cell(family, "0/1 answers", f"{n}", cell, 20_000 if rare else 4_000, nominal, quick=not rare)
        few = gate_answers(TOO_FEW, standard_errors, absolute=0.01)
        data, before = "0/1 answers, tolerance .01", ".273±.016"
        yield Cell(family, data, f"{TOO_FEW}", few, 500, nominal, claims=False, before=before)


def _whole() -> Iterator[Cell]:
    before = {8: ".240±.017 (n=10), .533 (n=5), .937 (n=2)", 20: ".136±.012", 100: ".061±.009"}
    together = {"none": 1 - (1 - LEVELS[3.0]) ** METRICS, "holm": LEVELS[3.0]}
    for family, nominal in together.items():
        for n in (MIN_ITEMS, 20, 100):
            said = before[n] if family == "none" else ""
            cell = gate_whole(SHAPES["normal"], n, family)
            title = f"gate of {METRICS} metrics, default rules"
            yield Cell(title, f"normal, family {family}", f"{n}", cell, 4_000, nominal, before=said, quick=n <= 20)


TOLERATED = {
    (4, 0.5): "pocock .124±.004 for .0228",
    (4, 0.8): "pocock .403±.005 for .210",
    (8, 0.5): "pocock .100±.003 for .0000",
    (8, 0.8): "pocock .398±.005 for .051",
    (8, 1.0): "pocock .781±.005 for .504",
}


def _until_decided() -> Iterator[Cell]:
    shapes = {name: SHAPES[name] for name in ("normal", "exponential", "lognormal(1)")}
    for spending in get_args(Spending):
        for name, shape in {**shapes, "−lognormal(1)": skewed_down}.items():
            for standard_errors, nominal in LEVELS.items():
                rare = standard_errors == 3
                said = ""
                if name == "−lognormal(1)" and spending == "pocock":
                    said = ".0086±.0010" if rare else ".050"
                cell = until_decided(shape, 1_024, standard_errors, spending)
                family = f"gate until decided, no tolerance, {standard_errors:g} SE"
                reps, quick = (16_000 if rare else 4_000), not rare and name == "normal"
                yield Cell(family, f"{name}, {spending}", "1,024", cell, reps, nominal, before=said, quick=quick)
        for name, shape in shapes.items():
            for tolerance in (4, 8):
                for worse in (0.5, 0.8, 1.0, 1.5):
                    said = TOLERATED.get((tolerance, worse), "") if name == "normal" else ""
                    cell = until_decided(shape, 2_048, 2.0, spending, tolerance, worse)
                    nominal = one_look(2.0, tolerance, worse) if worse <= 1 else None
                    family = f"gate until decided, tolerance {tolerance} SE, 2 SE"
                    data, quick = f"{name}, {spending}, worse by {worse:g}", name == "normal"
                    yield Cell(family, data, "2,048", cell, 1_000, nominal, before=said, quick=quick)


def _until_error() -> Iterator[Cell]:
    family = "until: {stderr} of a quarter of 4,096 items"
    for share, said in ((0.003, "coverage .507±.008, bias −.765"), (0.02, ".900, bias −.32"), (0.3, "")):
        cell = until_error(answers(share), share, "fraction")
        yield Cell(family, f"share {share:g}", "≤ 4,096", cell, 2_000, before=said)
    before = {"normal": ".952, bias 0", "lognormal(1)": ".938, bias −.16"}
    for name in ("normal", "exponential", "lognormal(1)"):
        cell = until_error(SHAPES[name], 0.0, "score")
        yield Cell(family, name, "≤ 4,096", cell, 2_000, before=before.get(name, ""))


def _power() -> Iterator[Cell]:
    before = {
        ("−5 points", 100): "paired .027±.004, called unchanged otherwise",
        ("−5 points", 300): "paired .217",
        ("−5 points", 1_000): "paired .881",
        ("−3 points", 300): "paired .055",
    }
    for kind in ("−3 points", "−5 points", "+.02 nats", "2 errors of the difference"):
        for n in (100, 300, 1_000):
            for paired in (True, False):
                said = before.get((kind, n), "") if paired else ""
                data = f"{kind}, {'paired' if paired else 'unpaired'}"
                cell = power(kind, n, paired)
                yield Cell("power of the gate, default rules", data, f"{n:,}", cell, 2_000, before=said)
