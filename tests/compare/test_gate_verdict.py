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

NORMAL, PLAIN = Rule(metric="t/x", relative=0.0), Rule(metric="t/x")
"""Without tolerance, and with none of its own."""


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
        ("worse", "tolerance", "verdict", "early", "reason"),
        [
            (0.10, 0.0, "worse", "worse", "worse by 0.1, beyond the tolerance 0 and the noise 0.03"),
            (
                0.02,
                0.0,
                "within_noise",
                "within_noise",
                "worse by 0.02, within the noise 0.03; worse by up to 0.0504 i",
            ),
            (0.10, 0.2, "within_tolerance", "within_tolerance", "worse by 0.1; worse by 0.13 at most, within the tol"),
            (0.10, 0.12, "within_noise", "within_noise", "worse by 0.1, within the tolerance 0.12; worse by up to 0."),
            (0.02, 0.06, "within_tolerance", "within_tolerance", "worse by 0.02; worse by 0.0504 at most, within the"),
            (-0.02, 0.0, "within_noise", "within_noise", "better by 0.02, within the noise 0.03; worse by up to 0.01"),
            (-0.10, 0.0, "better", "better", "better by 0.1, beyond the tolerance 0 and the noise 0.03"),
            (-0.10, 0.2, "within_tolerance", "within_tolerance", "better by 0.1; better by 0.0696 at least, within"),
            (0.10, 0.08, "worse", "within_noise", "worse by 0.1, beyond the tolerance 0.08"),
            (0.12, 0.08, "worse", "worse", "worse by 0.12, beyond"),
            (-0.10, 0.08, "better", "within_tolerance", "better by 0.1, beyond"),
            (-0.12, 0.08, "better", "better", "better by 0.12, beyond"),
        ],
    )
    def test_by_tolerance_and_noise_and_before_the_last_look_by_the_whole_interval(
        self, worse: float, tolerance: float, verdict: str, early: str, reason: str, higher: bool
    ) -> None:
        """Many looks give an estimate many chances to be beyond the tolerance."""
        rule = Rule(metric="x", absolute=tolerance, relative=0)
        metric = apart(-worse if higher else worse, rule, higher=higher)
        found = said(metric)
        assert (found[0], said(metric, last=False)[0]) == (verdict, early)
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


class TestFewItems:
    @pytest.mark.parametrize("n", [1, 2, 7])
    def test_below_eight_items_no_noise_is_known_and_a_tolerance_decides_nothing(self, n: int) -> None:
        """An unchanged metric of 7 answers failed in 27 of 100 builds, without a word on false alarms."""
        rule, shifts = Rule(metric="x", absolute=0.01), [1.0 + 0.1 * index for index in range(n)]
        for few in (gap(shifts, PLAIN), gap(shifts, rule), answers(n, 0, 0, rule), answers(0, n, 0, rule)):
            verdict, reason, found = said(few)
            assert (verdict, found.noise, found.low, found.level, found.fails_at) == ("not_judged", *[None] * 4)
            assert reason.endswith("; measure more items")

    def test_one_item_with_nearly_all_of_the_weight_is_as_few(self) -> None:
        """It counted as ten items, whose noise is not known, so that the tolerance decided alone."""
        items = [{"index": index, "x": weight, "w": weight} for index, weight in enumerate([1e6] + [1.0] * 9)]
        more = [{**item, "x": 1.1 * item["x"] + item["index"]} for item in items]
        sides = [
            result(value("t/x", number, n=10, items=("x", "w")), items={"t": rows})
            for number, rows in ((1.0, items), (1.1, more))
        ]
        found = said(gap_between(Rule(metric="x", absolute=0.01), *sides))
        assert (found[0], "one item has nearly all of the weight" in found[1]) == ("not_judged", True)

    @pytest.mark.parametrize("tolerance", ["absolute", "relative"])
    def test_where_no_noise_is_known_the_tolerance_that_the_rule_states_decides_alone(self, tolerance: str) -> None:
        """The use of a codebook by three images, or an imported value whose items nobody counted."""
        for stated, verdict in ((0.0, "worse"), (0.4, "worse"), (0.6, "within_tolerance")):
            rule = Rule.model_validate({"metric": "x", tolerance: stated})
            for metric in (apart(0.5, rule, None, n=3), apart(0.5, rule, n=0)):
                found, reason, difference = said(metric)
                assert (found, difference.fails_at) == (verdict, max(rule.absolute, rule.relative))
                assert "which alone decides: " in reason

    @pytest.mark.parametrize(
        ("n", "verdict"), [(7, "not_judged"), (8, "within_noise"), (9, "within_noise"), (10, "worse")]
    )
    def test_items_that_are_all_worse_are_judged_by_the_sign_test(self, n: int, verdict: str) -> None:
        """An error of zero made it certain: 2 of 2 items were proof. 3 standard errors are 0.0027 on two sides."""
        found, p = said(gap([0.5] * n, PLAIN)), 2.0 ** (1 - n)
        assert found[0] == verdict
        if n >= 8:
            assert ("worse by 0.5 in every item alike" in found[1], f"(exact p {p:.2g})" in found[1]) == (True, True)
            asked = said(gap([0.5] * n, Rule(metric="t/x", inconclusive="fail")))[0]
            assert asked == {"within_noise": "not_judged"}.get(verdict, verdict)
            lost = said(answers(190, n, 0, NORMAL))
            assert (lost[0], lost[2].p) == (verdict, pytest.approx(p))
            assert (lost[2].noise <= n / (190 + n)) == (verdict == "worse")
        rounded = said(gap([1e-3] * 20, Rule(metric="x")))
        assert rounded[:2] == ("within_tolerance", "worse by 0.001 in every item alike, within the tolerance 0.01")


BASE = [float(index % 7) for index in range(200)]


class TestLeftOut:
    """Items that only one side has are in no pair, and which items these are is no chance."""

    def compared(self, rule: Rule, *sides: Sequence[float | None], higher: bool = False, until: bool = False) -> Gap:
        content = {**PROTOCOL.content, **({"until": {"metric": "x", "stderr": 0.1}} if until else {})}
        means = [Ratio(3.0 + 0.08 * place, 0.1, len(items)) for place, items in enumerate(sides)]
        return of_sides(rule, higher, means[0], means[1], sides, Protocol(content))

    def test_a_side_without_its_wrong_answers_is_not_judged(self) -> None:
        """.896 against .104 was `equal`, and the gate passed: answers that are wrong were not in the file."""
        right, lost = [1.0] * 43 + [0.0] * 5, [1.0] * 5 + [None] * 43
        gaps = [of_sides(PLAIN, True, Ratio(43 / 48, 0.04, 48), Ratio(5 / 48, 0.04, 48), [right, lost])]
        gaps.append(of_sides(PLAIN, True, Ratio(5 / 48, 0.04, 48), Ratio(43 / 48, 0.04, 48), [lost, right]))
        for metric, lacks, counts in zip(gaps, ("candidate", "baseline"), ((43, 0), (0, 43)), strict=True):
            verdict, reason, difference = said(metric)
            assert (verdict, difference.level, difference.fails_at) == ("not_judged", None, None)
            assert (difference.n_only_baseline, difference.n_only_candidate) == counts
            assert reason == (
                f"equal in the 5 items that both sides have, but the {lacks} lacks 43 of 48 items, and `left_out` of "
                "the rule allows a share of 0; measure what lacks items again"
            )
        gaps = [gaps[0], gap([0.1, -0.1] * 10, PLAIN)]
        assert tails(gaps, [PLAIN.level] * 2, "holm")[1] == pytest.approx(PLAIN.level), "chance does not decide it"

    @pytest.mark.parametrize("higher", [False, True])
    def test_a_loss_without_its_hardest_items_is_not_judged_unless_the_rule_allows_it(self, higher: bool) -> None:
        """Worse by 1 on a tenth of the items, which the candidate lacked, was `better`; and so is the reverse."""
        other = [None if at < 20 else number - 0.02 - 0.01 * (at % 3) for at, number in enumerate(BASE)]
        verdict, reason, _ = said(self.compared(PLAIN, BASE, other, higher=higher))
        assert verdict == "not_judged"
        assert "by 0.03 in the 180 items that both sides have, but the candidate lacks 20 of 200 items" in reason
        alike = [*[None] * 20, *BASE[20:]]
        for share, expected in ((0.09, "not_judged"), (0.1, "within_tolerance")):
            found = said(self.compared(Rule(metric="x", left_out=share), BASE, alike, higher=higher))
            assert found[0] == expected
        assert found[1] == "equal in the 180 items that both sides have; the candidate lacks 20 of 200 items"

    def test_a_task_that_may_stop_early_has_no_number_of_items(self) -> None:
        """Both sides of a suite with `until` stop at a number of their own, as their protocol says."""
        shorter = [*BASE[:150], *[None] * 50]
        found = said(self.compared(PLAIN, BASE, shorter, until=True))
        words = "equal in the 150 items that both sides have; the candidate lacks 50 of 200 items"
        assert found[:2] == ("within_tolerance", words)
        assert said(self.compared(PLAIN, [None, *BASE[1:]], shorter, until=True))[0] == "not_judged"


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
        rule, wanted = Rule(metric="x", max_noise=0.02, relative=0), math.ceil(100 * (NOISE / 0.02) ** 2)
        reason = f"worse by 0.01, but the noise 0.03 is above max_noise 0.02; measure about {wanted} items"
        assert said(apart(0.01, rule))[:2] == ("not_judged", reason)
        for share, verdict in ((1.0, "within_noise"), (0.9, "not_judged")):
            assert said(apart(0.01, rule, 0.01 * math.sqrt(100 / (share * wanted)), wanted))[0] == verdict
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
        worse = [judge(metric, tail, tail)[0] == "worse" for metric, tail in zip(gaps, chosen, strict=True)]
        assert worse == [p <= rule.level for p in corrected]

    def test_each_metric_has_its_share_and_what_chance_does_not_decide_has_none(self) -> None:
        rules = [Rule(metric="x", standard_errors=number) for number in (2, 2, 3)]
        gaps, levels = [apart(-0.01, rule) for rule in rules], [rule.level for rule in rules]
        assert tails(gaps, levels, "holm") == pytest.approx([level / 3 for level in levels]), "nothing is worse"
        assert tails(gaps, levels, "none") == levels
        far = [apart(worse, Rule(metric="x", standard_errors=2, relative=0)) for worse in (0.022, 0.1)]
        assert tails(far, levels[:2], "holm") == pytest.approx([levels[0], levels[0] / 2]), "makes room for the next"
        rule = Rule(metric="x", absolute=0.5)
        gaps = [apart(0.01, rule), apart(0.01, rule, None), apart(math.inf, rule)]
        assert tails(gaps, [rule.level] * 3, "holm")[0] == pytest.approx(rule.level)


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
