"""A row for each number of base and checkpoint, from answers that are written out."""

import json
import math
import random
from collections.abc import Sequence

import pytest
from benchmark_results import results, with_bits

from evalsvc.compare.text_pages import what_is_gone
from evalsvc.language.results import Results
from evalsvc.metrics.mcnemar import mcnemar
from evalsvc.spec.documents.text_reports import ForgettingRow
from evalsvc.tasks.forgetting.rows import (
    BASELINES,
    Baseline,
    Pairs,
    accuracy_pairs,
    benchmark_parts,
    benchmark_rows,
    corrected,
    random_baseline,
    recovered,
    row_of,
)

RIGHT, WRONG = [1.0] * 40, [0.0] * 40
HALF = [1.0, 0.0] * 20


def keyed(rows: list[ForgettingRow]) -> dict[tuple[str, str, str], ForgettingRow]:
    found = {row.key: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_row_has_all_that_is_needed_to_trust_it() -> None:
    base, own = [1, 1, 1, 1, 1, 1, 0, 0] * 4, [1, 1, 0, 0, 0, 0, 1, 0] * 4
    [row, within] = benchmark_rows(results(a=own), results(a=base))
    assert (row.key, within.key) == (("a", "acc", "all"), ("a", "acc", "text"))
    assert (row.n, row.base, row.checkpoint, row.change) == (32, 0.75, 0.375, -0.375)
    assert (row.lost, row.gained, row.chance, row.chance_table) == (16, 4, 0.25, None)
    assert row.p == mcnemar([bool(each) for each in base], [bool(each) for each in own]).p == row.p_corrected
    assert row.verdict == "lost"
    assert (row.centred_base, row.centred, row.retained) == pytest.approx((2 / 3, 1 / 6, 0.25))
    assert (row.retained_low or 0) < 0.25 < (row.retained_high or 0)
    margin = 1.96 * (row.change_stderr or 0)
    assert (row.change_low, row.change_high) == pytest.approx((-0.375 - margin, -0.375 + margin), abs=0.05)


def test_verdicts_count_how_many_benchmarks_were_looked_at() -> None:
    """Of twenty benchmarks one is lost by chance at p = .05; here one with p = .016 is not, and one with 1e-4 is."""
    worse, base = [0.0] * 7 + [1.0] * 33, RIGHT
    assert benchmark_rows(results(a=worse), results(a=base))[0].verdict == "lost"
    quiet = {f"b{number}": RIGHT for number in range(19)}
    found = keyed(benchmark_rows(results(a=worse, **quiet), results(a=base, **quiet)))
    row = found["a", "acc", "all"]
    assert (row.p, row.p_corrected) == pytest.approx((2 / 128, 20 * 2 / 128)), "within text is a family of its own"
    assert row.verdict == "indistinguishable"
    much = [0.0] * 14 + [1.0] * 26
    found = keyed(benchmark_rows(results(a=much, **quiet), results(a=base, **quiet)))
    assert found["a", "acc", "all"].verdict == "lost"


def test_answers_that_are_right_in_part_are_compared_too() -> None:
    row = benchmark_rows(results(a=[0.5, 1.0, 0.25, 0.0] * 3), results(a=[1.0, 0.5, 0.5, 0.0] * 3))[0]
    assert (row.lost, row.gained, row.verdict) == (6, 3, "indistinguishable")


def test_losses_are_counted_text_by_text() -> None:
    pairs = Pairs([10.0, 20.0, 30.0], [12.0, 26.0, 29.0], [5, 10, 10])
    row = row_of("text", "loss", "all", "nats/token", pairs)
    assert (row.base, row.checkpoint, row.change) == pytest.approx((60 / 25, 67 / 25, 7 / 25))
    assert (row.lost, row.gained, row.n, row.chance, row.p) == (2, 1, 3, None, None)
    assert corrected([row])[0].verdict == "too few"
    assert row_of("text", "loss", "all", "", Pairs([1.0] * 8, [2.0] * 8, [1] * 8)).p == pytest.approx(2 / 256)


def loss_rows_of(changes: Sequence[float], groups: Sequence[int] | None = None) -> ForgettingRow:
    pairs = Pairs([3.0] * len(changes), [3 + change for change in changes], [1] * len(changes), groups=groups)
    [row] = corrected([row_of("text", "loss", "all", "nats/token", pairs)])
    return row


def test_a_loss_is_judged_by_the_mean_that_is_printed() -> None:
    """Most texts a little better and few much worse: the sign test says gained where the mean is worse."""
    row = loss_rows_of([-0.01 - 0.0001 * n for n in range(150)] + [0.4 + 0.002 * n for n in range(50)])
    assert (row.lost, row.gained, row.verdict) == (50, 150, "lost")
    assert row.change > 0
    assert row.change_low > 0


def test_verdict_and_interval_of_a_loss_say_the_same() -> None:
    rng, verdicts = random.Random(4), set()
    for _ in range(300):
        row = loss_rows_of([rng.lognormvariate(0, 1) - 1.4 for _ in range(rng.choice((8, 20, 60)))])
        verdicts.add(row.verdict)
        expected = "lost" if row.change_low > 0 else "gained" if row.change_high < 0 else "indistinguishable"
        assert row.verdict == expected
    assert verdicts == {"lost", "gained", "indistinguishable"}


def test_windows_of_too_few_documents_have_no_verdict() -> None:
    row = loss_rows_of([1.0 + 0.01 * n for n in range(35)], [n % 7 for n in range(35)])
    assert (row.n, row.p, row.change_low, row.verdict) == (35, None, None, "too few")


def test_a_loss_that_became_infinite_is_lost() -> None:
    assert loss_rows_of([math.inf, *([0.1] * 8)]).verdict == "lost"


def test_a_sample_has_the_error_of_a_part_of_the_whole() -> None:
    """120 of 150 documents leave out a fifth: the error of everything is √.2 of that of 120 from far more."""
    base, own = [1.0, 1.0, 0.0, 1.0] * 30, [1.0, 0.0, 0.0, 1.0] * 30
    whole = benchmark_rows(results(a=own), results(a=base))[0]
    part = benchmark_rows(results(a=own, drawn_from=150), results(a=base, drawn_from=150))[0]
    for side in ("base_stderr", "checkpoint_stderr", "change_stderr", "retained_stderr"):
        assert getattr(part, side) == pytest.approx(getattr(whole, side) * math.sqrt(0.2)), side
    assert part.retained_low > whole.retained_low


def test_a_changed_loss_is_the_sum_of_its_parts() -> None:
    """log p(id) = log p(id | text) + log p(text), so nothing is left over."""
    base = with_bits(results(a=HALF), "a", [8.0] * 40, [8.0] * 40)
    bits, within = [30.0 + n % 3 for n in range(40)], [14.0 - n % 5 for n in range(40)]
    own = with_bits(results(a=HALF), "a", bits, within, mass=0.5)
    [parts] = benchmark_parts(own, base)
    assert parts.total.value == pytest.approx(parts.knowledge.value + parts.expectation.value)
    assert parts.knowledge.value == pytest.approx((12 - 8) / 10)
    assert (parts.base_image_mass, parts.image_mass) == (0.0, 0.5)
    found = keyed(benchmark_rows(own, base))
    assert found["a", "bits_per_byte", "all"].change == pytest.approx(parts.total.value)
    assert found["a", "bits_per_byte", "text"].change == pytest.approx(parts.knowledge.value)
    assert parts.knowledge.share + parts.expectation.share == pytest.approx(1)


def gone(own: list[float], within: list[float], base: list[float] = RIGHT) -> str:
    after, before = results(a=own, within={"a": within}), results(a=base)
    return said(after, before)


def said(after: Results, before: Results) -> str:
    found = keyed(benchmark_rows(after, before))
    parts = benchmark_parts(after, before)
    back = recovered(after, before)
    return what_is_gone(found["a", "acc", "all"], found, parts[0] if parts else None, back.get("a", 1.0))


def test_knowledge_and_expectation_are_told_apart() -> None:
    assert gone(WRONG, WRONG) == "answers: knowledge"
    assert gone(WRONG, RIGHT) == "answers: expectation of an image"
    assert gone(WRONG, HALF) == "answers: knowledge, expectation of an image"
    assert gone(RIGHT, WRONG) == "answers, with text ids only"
    assert gone(RIGHT, RIGHT) == "nothing that is seen"
    assert gone(RIGHT, RIGHT, WRONG) == "nothing: more right answers"


def test_answers_that_go_within_text_do_not_come_back_there() -> None:
    assert recovered(results(a=RIGHT, within={"a": WRONG}), results(a=RIGHT))["a"] == 1


def test_a_loss_that_is_not_seen_within_text_need_not_come_back_there() -> None:
    """7 of 40 lost over all ids and 5 within text: the second is not seen, nor that it differs from the first."""
    assert gone([0.0] * 7 + [1.0] * 33, [0.0] * 5 + [1.0] * 35) == "answers: not decided which"


def test_a_base_at_chance_is_judged_by_its_bits() -> None:
    def of(bits: float, within: float) -> str:
        noise = [n % 4 / 10 for n in range(40)]
        before = with_bits(results(a=HALF), "a", [8.0] * 40, [8.0] * 40)
        own = with_bits(results(a=HALF), "a", [bits + n for n in noise], [within + n / 2 for n in noise])
        return said(own, before)

    assert of(30, 30) == "bits: knowledge"
    assert of(30, 7.9) == "bits: expectation of an image"
    assert of(30, 15) == "bits: knowledge, expectation of an image"
    assert of(30, 29.6) == "bits: knowledge", "a hundredth of it is no cause"
    assert of(5, 5) == "nothing: better bits"


def test_what_is_all_text_has_no_expectation() -> None:
    before, after = results(a=RIGHT, within=False), results(a=WRONG, within=False)
    assert said(after, before) == "answers: knowledge"
    assert [row.scope for row in benchmark_rows(after, before)] == ["all"]


def test_corrections_do_not_mix_kinds() -> None:
    pairs = Pairs([1.0] * 8, [2.0] * 8, [1] * 8)
    rows = [row_of(what, "loss", "all", "", pairs) for what in ("x", "y")]
    few, other = row_of("w", "loss", "all", "", Pairs([1.0], [2.0], [1])), row_of("z", "bits", "all", "", pairs)
    found = corrected([*rows, few, other])
    assert found[2].p_corrected is None, "a test that is not made counts for none"
    assert [row.p_corrected for row in (*found[:2], found[3])] == pytest.approx([1 / 64, 1 / 64, 1 / 128])


def test_documents_that_both_have_in_the_order_of_the_checkpoint() -> None:
    own, base = results(a=[1.0, 0.0, 1.0], b=[0.0]), results(a=[0.0, 1.0])
    pairs = accuracy_pairs(Results(own.metrics, own.items[::-1], own.notes), base, "a", "")
    assert (pairs.indices, pairs.checkpoint, pairs.base) == ([1, 0], [0.0, 1.0], [1.0, 0.0])
    assert accuracy_pairs(own, base, "b", "") is None, "the base has no such document"


def test_the_more_frequent_answer_counts_where_the_table_says_so() -> None:
    assert random_baseline("boolq", 0.5) == Baseline(0.62, 1)
    assert random_baseline("arc_easy", 0.2512) == Baseline(0.25, 1), "some of ARC's questions have three options"


@pytest.mark.parametrize(("name", "options"), [("cloze", 0.25), ("boolq", 0.25), ("lambada_openai", 0.5)])
def test_what_is_not_in_the_table_has_chance(name: str, options: float) -> None:
    """Also a benchmark of somebody's own that only has the name of one in the table."""
    assert random_baseline(name, options) == Baseline(options, None)


def test_the_table_is_of_the_benchmarks_beside_it() -> None:
    """A row that was added without a version would give two meanings to one protocol; whoever adds one looks here."""
    table = json.loads(BASELINES.read_text())
    names = {path.stem for path in BASELINES.parent.glob("[!_]*.yaml")}
    assert table["rows"].keys() == names
    assert all(0 <= row["options"] <= row["baseline"] < 1 for row in table["rows"].values())
    assert table["version"] == 1
    assert random_baseline("piqa", 0.5) == Baseline(0.5, 1)
