"""What one difference says by a rule, how often it says it of nothing, and what would have been a regression."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
from gate_documents import PROTOCOL, result, value

from evalsvc.compare.contrast import contrast_results
from evalsvc.compare.gate_rules import Rule
from evalsvc.compare.gate_verdict import Difference, Gap, judge, tails
from evalsvc.compare.result import Result
from evalsvc.metrics import mcnemar
from evalsvc.metrics.intervals import critical_value
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.protocol import Protocol

NORMAL = Rule(metric="t/x", relative=0.0)
"""No tolerance."""

PLAIN = Rule(metric="t/x")
"""No tolerance of its own."""


def of_sides(
    rule: Rule,
    higher: bool,
    before: Ratio,
    after: Ratio,
    items: Sequence[Sequence[float | None]] = (),
    protocol: Protocol = PROTOCOL,
) -> Gap:
    """A metric of two results, with the items of both where it is made of items; a side lacks an item that is None."""
    made: dict[str, Any] = {"protocol": protocol, **({"items": ("x",)} if items else {})}
    direction = "higher" if higher else "lower"
    rows = [[{"index": index, "x": number} for index, number in enumerate(side)] for side in items] or [[], []]
    sides = [
        result(value("t/x", side.value, side.stderr, n=side.n, direction=direction, **made), items={"t": of_side})
        for side, of_side in zip((before, after), rows, strict=True)
    ]
    return gap_between(rule, *sides)


def gap_between(rule: Rule, before: Result, after: Result) -> Gap:
    [contrast] = contrast_results(before, after)
    return Gap(rule, contrast, contrast.distance)


def gap(differences: Sequence[float], rule: Rule = NORMAL, higher: bool = False, start: float = 10.0) -> Gap:
    """A metric of items, a mean whose candidate is so far from the baseline item by item."""
    items = [[start] * len(differences), [start + difference for difference in differences]]
    before, after = (Ratio(math.fsum(side) / len(side), 1.0, len(side)) for side in items)
    return of_sides(rule, higher, before, after, items)


def apart(difference: float, rule: Rule, stderr: float | None = 0.01, n: int = 100, higher: bool = False) -> Gap:
    """A metric of two samples, of equal errors whose common one is `stderr`."""
    error = None if stderr is None else stderr / math.sqrt(2)
    return of_sides(rule, higher, Ratio(1.0, error, n), Ratio(1.0 + difference, error, n))


def answers(both: int, lost: int, gained: int, rule: Rule, neither: int = 0) -> Gap:
    """A share of questions that are answered right."""
    counts = (both, lost, gained, neither)
    sides = [
        [mark for mark, count in zip(marks, counts, strict=True) for _ in range(count)]
        for marks in ((1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0))
    ]
    before, after = (Ratio(math.fsum(side) / len(side), 0.01, len(side)) for side in sides)
    return of_sides(rule, True, before, after, sides)


def said(of: Gap, **more: Any) -> tuple[str, str, Difference]:
    return judge(of, of.rule.level, of.rule.level, **more)


NOISE = 0.01 * critical_value(Rule(metric="x").level, 198)
"""Of 3 standard errors, by Student's t of two samples of 100."""


class TestFourVerdicts:
    @pytest.mark.parametrize("higher", [False, True])
    @pytest.mark.parametrize(
        ("worse", "tolerance", "verdict", "reason"),
        [
            (0.10, 0.0, "worse", "worse by 0.1, beyond the tolerance 0 and the noise 0.03"),
            (0.02, 0.0, "within_noise", "worse by 0.02, within the noise 0.03; worse by up to 0.0504 is not ruled out"),
            (0.10, 0.2, "within_tolerance", "worse by 0.1; worse by 0.13 at most, within the tolerance 0.2"),
            (0.10, 0.12, "within_noise", "worse by 0.1, within the tolerance 0.12; worse by up to 0.13 is not"),
            (0.02, 0.06, "within_tolerance", "worse by 0.02; worse by 0.0504 at most, within the tolerance 0.06"),
            (-0.02, 0.0, "within_noise", "better by 0.02, within the noise 0.03; worse by up to 0.0104 is not ruled"),
            (-0.10, 0.0, "better", "better by 0.1, beyond the tolerance 0 and the noise 0.03"),
            (-0.10, 0.2, "within_tolerance", "better by 0.1; better by 0.0696 at least, within the tolerance 0.2"),
        ],
    )
    def test_by_tolerance_and_noise(
        self, worse: float, tolerance: float, verdict: str, reason: str, higher: bool
    ) -> None:
        rule = Rule(metric="x", absolute=tolerance, relative=0)
        found = said(apart(-worse if higher else worse, rule, higher=higher))
        assert found[0] == verdict
        assert found[1].startswith(reason)

    @pytest.mark.parametrize("higher", [False, True])
    @pytest.mark.parametrize("tolerance", [0.0, 0.05])
    def test_what_fails_at_a_difference_does_not_fail_below_it(self, tolerance: float, higher: bool) -> None:
        rule, sign = Rule(metric="x", absolute=tolerance, relative=0), -1 if higher else 1
        _, _, difference = said(apart(0.02 * sign, rule, higher=higher))
        assert difference.noise == pytest.approx(NOISE, rel=1e-6)
        assert difference.fails_at == pytest.approx(max(tolerance, NOISE), rel=1e-6)
        for factor, worse in ((0.999, False), (1.001, True)):
            changed = apart(sign * factor * (difference.fails_at or 0.0), rule, higher=higher)
            assert (said(changed)[0] == "worse") is worse

    def test_equal_items_are_within_the_tolerance_and_equal_means_of_others_are_not(self) -> None:
        for alike in (gap([0.0] * 20), answers(15, 0, 0, PLAIN, 5), apart(0.0, PLAIN), apart(0.0, NORMAL, None)):
            assert said(alike)[:2] == ("within_tolerance", "equal")
        for by_chance in (gap([1.0, -1.0] * 10), answers(10, 5, 5, NORMAL)):
            verdict, reason, _ = said(by_chance)
            assert verdict == "within_noise"
            assert reason.startswith("equal in the mean, within the noise")

    @pytest.mark.parametrize(("n", "verdict"), [(20, "not_judged"), (880, "not_judged"), (892, "within_tolerance")])
    def test_equal_answers_are_within_a_stated_tolerance_only_if_there_are_enough(self, n: int, verdict: str) -> None:
        """20 of 20 alike passed a tolerance of 0.01 that had to be proved, by an interval that reached to 0.31."""
        rule = Rule(metric="t/x", absolute=0.01, relative=0, inconclusive="fail")
        found = said(answers(n, 0, 0, rule))
        assert (found[0], found[1] == "equal") == (verdict, verdict == "within_tolerance")
        assert said(answers(n, 0, 0, Rule(metric="t/x", absolute=0.5)))[:2] == ("within_tolerance", "equal")
        if n == 20:
            assert found[1].startswith("equal in every item, within the noise 0.31 (exact p 1); worse by up to 0.31 is")
            assert "the tolerance is 0.01; measure about 892 items, or give its rule" in found[1]
            noisy = said(answers(n, 0, 0, Rule(metric="t/x", absolute=0.01, max_noise=0.05)))
            assert noisy[0] == "not_judged"
            assert noisy[1].endswith("above max_noise 0.05; measure about 172 items")
        for tolerance, expected in ((0.02, "within_noise"), (0.04, "within_tolerance")):  # of two samples alike
            assert said(apart(0.0, Rule(metric="x", absolute=tolerance, relative=0)))[0] == expected

    def test_without_noise_the_tolerance_decides(self) -> None:
        for n in (3, 100):
            rule = Rule(metric="x", standard_errors=0, absolute=0.05)
            assert said(answers(n, 0, 0, rule))[:2] == said(apart(0.0, rule, n=n))[:2] == ("within_tolerance", "equal")
            assert said(apart(0.04, rule, n=n))[0] == "within_tolerance"
            verdict, _, difference = said(apart(0.06, rule, n=n))
            assert (verdict, difference.level) == ("worse", None)


class TestBeforeTheLastLook:
    """Many looks give an estimate many chances to be beyond the tolerance: the whole interval must be."""

    @pytest.mark.parametrize("higher", [False, True])
    @pytest.mark.parametrize(
        ("worse", "tolerance", "verdict", "at_the_end"),
        [
            (0.10, 0.08, "within_noise", "worse"),
            (0.12, 0.08, "worse", "worse"),
            (-0.10, 0.08, "within_tolerance", "better"),
            (-0.12, 0.08, "better", "better"),
            (0.10, 0.14, "within_tolerance", "within_tolerance"),
            (0.02, 0.0, "within_noise", "within_noise"),
        ],
    )
    def test_the_interval_decides(
        self, worse: float, tolerance: float, verdict: str, at_the_end: str, higher: bool
    ) -> None:
        rule = Rule(metric="x", absolute=tolerance, relative=0)
        metric = apart(-worse if higher else worse, rule, higher=higher)
        assert said(metric, last=False)[0] == verdict
        assert said(metric)[0] == at_the_end


class TestFewItems:
    def test_below_eight_items_no_noise_is_known(self) -> None:
        found = said(gap([1.0, 1.1, 1.2, 1.3, 1.1, 1.0, 1.2], PLAIN))
        assert found[0] == "not_judged"
        assert "7 items are too few, an interval needs 8" in found[1]
        assert (found[2].noise, found[2].low, found[2].level, found[2].fails_at) == (None, None, None, None)

    @pytest.mark.parametrize("n", [1, 2, 7])
    def test_below_eight_items_a_tolerance_decides_nothing(self, n: int) -> None:
        """An unchanged metric of 7 answers failed in 27 of 100 builds, without a word on false alarms."""
        rule = Rule(metric="x", absolute=0.01)
        found = [gap([1.0 + 0.1 * index for index in range(n)], rule), answers(n, 0, 0, rule), answers(0, n, 0, rule)]
        for verdict, reason, difference in map(said, found):
            assert (verdict, difference.fails_at, difference.level) == ("not_judged", None, None)
            assert reason.endswith("; measure more items")

    def test_one_item_with_nearly_all_of_the_weight_is_as_few(self) -> None:
        """It counted as ten items, whose noise is not known, so that the tolerance decided alone."""
        weights = [1e6] + [1.0] * 9
        items = [{"index": index, "x": weight, "w": weight} for index, weight in enumerate(weights)]
        more = [{**item, "x": 1.1 * item["x"] + item["index"]} for item in items]
        sides = [
            result(value("t/x", number, n=10, items=("x", "w")), items={"t": rows})
            for number, rows in ((1.0, items), (1.1, more))
        ]
        found = said(gap_between(Rule(metric="x", absolute=0.01), *sides))
        assert found[0] == "not_judged"
        assert "one item has nearly all of the weight" in found[1]

    def test_a_value_that_is_not_made_of_items_is_decided_by_its_tolerance(self) -> None:
        """Such as the use of a codebook by three images, or an imported value whose items nobody counted."""
        rule = Rule(metric="x", absolute=0.4)
        for metric in (apart(0.5, rule, None, n=3), apart(0.5, rule, n=0)):
            verdict, reason, difference = said(metric)
            assert (verdict, difference.fails_at) == ("worse", 0.4)
            assert "which alone decides" in reason

    @pytest.mark.parametrize(
        ("n", "verdict"), [(7, "not_judged"), (8, "within_noise"), (9, "within_noise"), (10, "worse")]
    )
    def test_the_same_difference_in_every_item_is_judged_by_the_sign_test(self, n: int, verdict: str) -> None:
        """An error of zero made it certain: 2 of 2 items were proof."""
        found = said(gap([0.5] * n, PLAIN))
        assert found[0] == verdict
        if n >= 8:
            assert "worse by 0.5 in every item alike" in found[1]
            assert f"(exact p {2 ** (1 - n):.2g})" in found[1]
        rounded = said(gap([1e-3] * 20, Rule(metric="x")))
        assert rounded[:2] == ("within_tolerance", "worse by 0.001 in every item alike, within the tolerance 0.01")

    @pytest.mark.parametrize(("lost", "verdict"), [(9, "within_noise"), (10, "worse")])
    def test_right_and_wrong_are_judged_by_the_exact_test(self, lost: int, verdict: str) -> None:
        """9 answers lost and none gained have p 0.0039, 10 have 0.0020; 3 standard errors are 0.0027 on two sides."""
        found = said(answers(190, lost, 0, NORMAL))
        assert found[0] == verdict
        assert found[2].p == pytest.approx(2.0 ** (1 - lost))
        assert (found[2].noise <= lost / (190 + lost)) == (verdict == "worse")


class TestLeftOut:
    """Items that only one side has are in no pair, and which items these are is no chance."""

    RIGHT = [1.0] * 43 + [0.0] * 5
    LOST = [1.0] * 5 + [None] * 43
    """Of an agreement of .104, the items that are right: those that are wrong are not in the file."""

    def agreement(self, rule: Rule = PLAIN, protocol: Protocol = PROTOCOL, turned: bool = False) -> Gap:
        sides = [(Ratio(43 / 48, 0.04, 48), self.RIGHT), (Ratio(5 / 48, 0.04, 48), self.LOST)]
        before, after = reversed(sides) if turned else sides
        return of_sides(rule, True, before[0], after[0], [before[1], after[1]], protocol)

    def test_a_side_without_its_wrong_answers_is_not_judged(self) -> None:
        """.896 against .104 was `equal`, and the gate passed."""
        verdict, reason, difference = said(self.agreement())
        assert (verdict, difference.level, difference.fails_at) == ("not_judged", None, None)
        assert (difference.n_only_baseline, difference.n_only_candidate) == (43, 0)
        assert reason == (
            "equal in the 5 items that both sides have, but the candidate lacks 43 of 48 items, and `left_out` of the "
            "rule allows a share of 0; measure what lacks items again"
        )
        verdict, reason, difference = said(self.agreement(turned=True))
        assert (verdict, difference.n_only_baseline, difference.n_only_candidate) == ("not_judged", 0, 43)
        assert "but the baseline lacks 43 of 48 items" in reason
        gaps = [self.agreement(), gap([0.1, -0.1] * 10, PLAIN)]
        assert tails(gaps, [PLAIN.level] * 2, "holm")[1] == pytest.approx(PLAIN.level), "chance does not decide it"

    @pytest.mark.parametrize("higher", [False, True])
    def test_a_loss_without_its_hardest_items_is_not_judged(self, higher: bool) -> None:
        """Worse by 1 on a tenth of the items, which the candidate lacked, was `better`; and so is the reverse."""
        base = [float(index % 7) for index in range(200)]
        other = [None if index < 20 else number - 0.02 - 0.01 * (index % 3) for index, number in enumerate(base)]
        verdict, reason, _ = said(of_sides(PLAIN, higher, Ratio(3.0, 0.1, 200), Ratio(3.08, 0.1, 200), [base, other]))
        assert verdict == "not_judged"
        assert "by 0.03 in the 180 items that both sides have, but the candidate lacks 20 of 200 items" in reason

    def test_a_rule_may_allow_a_share(self) -> None:
        base = [float(index % 7) for index in range(200)]
        other = [None if index < 20 else number for index, number in enumerate(base)]
        for share, verdict in ((0.09, "not_judged"), (0.1, "within_tolerance")):
            rule = Rule(metric="x", left_out=share)
            metric = of_sides(rule, False, Ratio(3.0, 0.1, 200), Ratio(3.1, 0.1, 180), [base, other])
            found = said(metric)
            assert found[0] == verdict
        assert found[1] == "equal in the 180 items that both sides have; the candidate lacks 20 of 200 items"

    def test_a_task_that_may_stop_early_has_no_number_of_items(self) -> None:
        """Both sides of a suite with `until` stop at a number of their own, as their protocol says."""
        until = Protocol({**PROTOCOL.content, "until": {"metric": "x", "stderr": 0.1}})
        base = [float(index % 7) for index in range(200)]
        sides = [[None if index >= end else number for index, number in enumerate(base)] for end in (200, 150)]
        found = said(of_sides(PLAIN, False, Ratio(3.0, 0.1, 200), Ratio(3.0, 0.1, 150), sides, until))
        words = "equal in the 150 items that both sides have; the candidate lacks 50 of 200 items"
        assert found[:2] == ("within_tolerance", words)
        sides[0][0] = None
        assert said(of_sides(PLAIN, False, Ratio(3.0, 0.1, 199), Ratio(3.0, 0.1, 150), sides, until))[0] == "not_judged"


class TestCertainty:
    def test_inconclusive_may_fail(self) -> None:
        rule = Rule(metric="x", absolute=0.04, relative=0, inconclusive="fail")
        verdict, reason, difference = said(apart(0.02, rule))
        assert (verdict, difference.fails_at) == ("not_judged", None)
        assert "worse by up to 0.0504 is not ruled out, and the tolerance is 0.04; measure about 231 items" in reason
        verdicts = [said(apart(worse, rule))[0] for worse in (0.1, 0.005, -0.03, -0.1)]
        assert verdicts == ["worse", "within_tolerance", "within_tolerance", "better"]
        beyond = said(apart(0.045, rule.model_copy(update={"standard_errors": 6})))
        assert beyond[0] == "not_judged"
        assert "measure more items, or give its rule a larger tolerance" in beyond[1]

    def test_too_much_noise_is_not_judged_and_the_items_that_it_takes_are_enough(self) -> None:
        rule = Rule(metric="x", max_noise=0.02, relative=0)
        verdict, reason, _ = said(apart(0.01, rule))
        assert verdict == "not_judged"
        wanted = math.ceil(100 * (NOISE / 0.02) ** 2)
        assert reason == f"worse by 0.01, but the noise 0.03 is above max_noise 0.02; measure about {wanted} items"
        assert said(apart(0.01, rule, 0.01 * math.sqrt(100 / wanted), wanted))[0] == "within_noise"
        assert said(apart(0.01, rule, 0.01 * math.sqrt(100 / (0.9 * wanted)), wanted))[0] == "not_judged"
        assert said(apart(0.1, rule))[0] == "worse"
        verdict, reason, _ = said(apart(0.01, Rule(metric="x", max_noise=0.02, absolute=0.5), None))
        assert verdict == "not_judged", "noise that is not known is not small"
        assert "max_noise needs the noise, which is not known: neither the baseline nor the candidate" in reason


class TestHolm:
    @pytest.mark.parametrize("seed", range(5))
    def test_of_equal_levels_it_is_that_of_corrected_p_values(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        rule = Rule(metric="x", standard_errors=1.5, relative=0)
        gaps = [apart(0.01 * shift, rule) for shift in random.normal(1, 2, size=12).tolist()]
        chosen = tails(gaps, [rule.level] * len(gaps), "holm")
        corrected = mcnemar.holm([metric.chance() for metric in gaps])
        for metric, tail, p in zip(gaps, chosen, corrected, strict=True):
            assert (said_worse(metric, tail)) == (p <= rule.level)

    def test_a_metric_of_a_larger_level_keeps_its_share(self) -> None:
        """Nothing is worse: each has its level over the number of metrics."""
        rules = [Rule(metric="x", standard_errors=number) for number in (2, 2, 3)]
        gaps = [apart(-0.01, rule) for rule in rules]
        levels = [rule.level for rule in rules]
        assert tails(gaps, levels, "holm") == pytest.approx([level / 3 for level in levels])
        assert tails(gaps, levels, "none") == levels

    def test_what_chance_does_not_decide_takes_no_share(self) -> None:
        rule = Rule(metric="x", absolute=0.5)
        gaps = [apart(0.01, rule), apart(0.01, rule, None), apart(math.inf, rule)]
        assert tails(gaps, [rule.level] * 3, "holm")[0] == pytest.approx(rule.level)

    def test_a_metric_that_is_far_worse_makes_room_for_the_next(self) -> None:
        rule = Rule(metric="x", standard_errors=2, relative=0)
        gaps = [apart(worse, rule) for worse in (0.022, 0.1)]
        chosen = tails(gaps, [rule.level] * 2, "holm")
        assert chosen == pytest.approx([rule.level, rule.level / 2])
        assert [said_worse(*pair) for pair in zip(gaps, chosen, strict=True)] == [True, True]


def said_worse(metric: Gap, tail: float) -> bool:
    return judge(metric, tail, tail)[0] == "worse"


class TestFalseAlarms:
    """An unchanged checkpoint, metric by metric: with the quantile of the normal distribution five times as many."""

    @pytest.mark.parametrize("n", [8, 20])
    @pytest.mark.parametrize("kind", ["normal", "t3"])
    def test_few_items_alarm_as_seldom_as_many(self, n: int, kind: Literal["normal", "t3"]) -> None:
        """8,000 metrics, of which the level lets 11 ± 3.3 be called worse; 27 are one and a half times the level and
        three of its errors. The bound of every metric is too slow for so many: those that are beyond 3 standard errors
        are judged, and no other can be worse."""
        random = np.random.default_rng(n)
        size = (8000, n)
        differences = random.standard_normal(size) if kind == "normal" else random.standard_t(3, size)
        t = differences.mean(1) / (differences.std(1, ddof=1) / math.sqrt(n))
        beyond = differences[t > 3]
        worse = [said(gap(row.tolist()))[0] == "worse" for row in beyond]
        assert sum(worse) <= 1.5 * 8000 * NORMAL.level + 3 * math.sqrt(8000 * NORMAL.level)
        if kind == "normal":
            assert sum(worse) >= 2, "a gate that calls nothing worse holds every level"
            assert len(beyond) > 1.5 * sum(worse)
