"""A row for each number of base and checkpoint, from answers that are written out."""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from benchmark_results import by_name, results, with_bits

from evalsvc.compare.text_pages import what_is_gone
from evalsvc.language.results import Results
from evalsvc.metrics.item_numbers import item_numbers
from evalsvc.metrics.mcnemar import mcnemar
from evalsvc.metrics.ratio import interval_of_centred
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.documents.text_reports import ForgettingRow
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.forgetting.retention import RATIO, Differences, Retained, add_retention, centred, text_retained
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


def keyed(after: Results, before: Results) -> dict[tuple[str, str, str], ForgettingRow]:
    rows = benchmark_rows(after, before)
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
    row = keyed(results(a=worse, **quiet), results(a=base, **quiet))["a", "acc", "all"]
    assert (row.p, row.p_corrected) == pytest.approx((2 / 128, 20 * 2 / 128)), "within text is a family of its own"
    assert row.verdict == "indistinguishable"
    much = [0.0] * 14 + [1.0] * 26
    assert keyed(results(a=much, **quiet), results(a=base, **quiet))["a", "acc", "all"].verdict == "lost"
    row = benchmark_rows(results(a=[0.5, 1.0, 0.25, 0.0] * 3), results(a=[1.0, 0.5, 0.5, 0.0] * 3))[0]
    assert (row.lost, row.gained, row.verdict) == (6, 3, "indistinguishable"), "answers that are right in part"


def test_losses_are_counted_text_by_text() -> None:
    pairs = Pairs([10.0, 20.0, 30.0], [12.0, 26.0, 29.0], [5, 10, 10])
    row = row_of("text", "loss", "all", "nats/token", pairs)
    assert (row.base, row.checkpoint, row.change) == pytest.approx((60 / 25, 67 / 25, 7 / 25))
    assert (row.lost, row.gained, row.n, row.chance, row.p) == (2, 1, 3, None, None)
    assert corrected([row])[0].verdict == "too few"


def loss_rows_of(changes: Sequence[float], groups: Sequence[int] | None = None) -> ForgettingRow:
    pairs = Pairs([3.0] * len(changes), [3 + change for change in changes], [1] * len(changes), groups=groups)
    [row] = corrected([row_of("text", "loss", "all", "nats/token", pairs)])
    return row


def test_a_loss_is_judged_by_the_mean_that_is_printed() -> None:
    """Most texts a little better and few much worse: the sign test says gained where the mean is worse."""
    row = loss_rows_of([-0.01 - 0.0001 * n for n in range(150)] + [0.4 + 0.002 * n for n in range(50)])
    assert (row.lost, row.gained, row.verdict, row.change_low > 0) == (50, 150, "lost", True)
    assert loss_rows_of([math.inf, *([0.1] * 8)]).verdict == "lost"
    row = loss_rows_of([1.0 + 0.01 * n for n in range(35)], [n % 7 for n in range(35)])
    assert (row.n, row.p, row.change_low, row.verdict) == (35, None, None, "too few"), "documents"


def test_verdict_and_interval_of_a_loss_say_the_same() -> None:
    rng, verdicts = random.Random(4), set()
    for _ in range(300):
        row = loss_rows_of([rng.lognormvariate(0, 1) - 1.4 for _ in range(rng.choice((8, 20, 60)))])
        verdicts.add(row.verdict)
        assert row.verdict == (
            "lost" if row.change_low > 0 else "gained" if row.change_high < 0 else "indistinguishable"
        )
    assert len(verdicts) == 3


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
    found = keyed(own, base)
    changes = [found["a", "bits_per_byte", scope].change for scope in ("all", "text")]
    assert changes == pytest.approx([parts.total.value, parts.knowledge.value])
    assert parts.knowledge.share + parts.expectation.share == pytest.approx(1)


def said(after: Results, before: Results) -> str:
    found, parts, back = keyed(after, before), benchmark_parts(after, before), recovered(after, before)
    return what_is_gone(found["a", "acc", "all"], found, parts[0] if parts else None, back.get("a", 1.0))


@pytest.mark.parametrize(
    ("own", "within", "base", "words"),
    [
        (WRONG, WRONG, RIGHT, "answers: knowledge"),
        (WRONG, RIGHT, RIGHT, "answers: expectation of an image"),
        (WRONG, HALF, RIGHT, "answers: knowledge, expectation of an image"),
        (RIGHT, WRONG, RIGHT, "answers, with text ids only"),
        (RIGHT, RIGHT, RIGHT, "nothing that is seen"),
        (RIGHT, RIGHT, WRONG, "nothing: more right answers"),
        # 5 lost within text are not seen, nor that they differ from the 7 over all ids.
        ([0.0] * 7 + [1.0] * 33, [0.0] * 5 + [1.0] * 35, RIGHT, "answers: not decided which"),
        (WRONG, None, RIGHT, "answers: knowledge"),
    ],
)
def test_knowledge_and_expectation_are_told_apart(own: Any, within: Any, base: Any, words: str) -> None:
    scopes: Any = False if within is None else {"a": within}  # a model of text alone has one
    assert said(results(a=own, within=scopes), results(a=base, within=within is not None)) == words
    assert recovered(results(a=RIGHT, within={"a": WRONG}), results(a=RIGHT))["a"] == 1, "none has come back"


@pytest.mark.parametrize(
    ("bits", "within", "words"),
    [
        (30, 30, "bits: knowledge"),
        (30, 7.9, "bits: expectation of an image"),
        (30, 15, "bits: knowledge, expectation of an image"),
        (30, 29.6, "bits: knowledge"),  # a hundredth of it is no cause
        (5, 5, "nothing: better bits"),
    ],
)
def test_a_base_at_chance_is_judged_by_its_bits(bits: float, within: float, words: str) -> None:
    noise = [n % 4 / 10 for n in range(40)]
    before = with_bits(results(a=HALF), "a", [8.0] * 40, [8.0] * 40)
    own = with_bits(results(a=HALF), "a", [bits + n for n in noise], [within + n / 2 for n in noise])
    assert said(own, before) == words


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
    """Not for a benchmark of somebody's own that only has the name of one in the table. A row that was added without a
    version would give two meanings to one protocol; whoever adds one looks here."""
    table = json.loads(BASELINES.read_text())
    assert table["rows"].keys() == {path.stem for path in BASELINES.parent.glob("[!_]*.yaml")}
    assert all(0 <= row["options"] <= row["baseline"] < 1 for row in table["rows"].values())
    assert random_baseline("boolq", 0.5) == Baseline(0.62, 1)
    assert random_baseline("arc_easy", 0.2512) == Baseline(0.25, 1), "some of ARC's questions have three options"
    for name, options in (("cloze", 0.25), ("boolq", 0.25), ("lambada_openai", 0.5)):
        assert random_baseline(name, options) == Baseline(options, None)


BASE = {"task": "forgetting", "base": "ab" * 32}
HEADLINE = "forgetting/text_retained"


def retained(own: Results, base: Results) -> Retained:
    return text_retained("forgetting", benchmark_rows(own, base), own, base, BASE)


def check_items(metric: MetricValue, items: Sequence[Mapping[str, Any]]) -> None:
    """A metric's items are of its value and error; else a paired error is that of another number."""
    numbers = item_numbers(items, metric.name, metric.items)
    [column] = numbers.columns
    assert len(column) == metric.n
    assert statistics.fmean(column) == pytest.approx(metric.value, abs=1e-6)
    assert standard_error(column) == pytest.approx(metric.stderr, rel=1e-5)


def test_every_benchmark_counts_as_retained() -> None:
    """Also where the base is at chance: a choice by the same answers would take those where it was lucky."""
    chances = {"hard": 0.25, "easy": 0.5, "open": 0.0}
    base = results(chances, hard=[1, 0, 0, 0] * 5, easy=[1, 1, 1, 0] * 10, open=[1, 0] * 10)
    own = results(chances, hard=[1, 1, 0, 0] * 5, easy=[1, 1, 0, 0] * 10, open=[1, 0, 1, 1] * 5)
    found = retained(own, base)
    assert (found.counted, found.at_chance) == (["hard", "easy", "open"], ["hard"])
    metric = by_name(found.metrics)[HEADLINE]
    assert (metric.value, metric.n) == (pytest.approx((0.25 / 0.75 + 0 + 0.75) / (0 + 0.5 + 0.5)), 80)
    assert metric.protocol.content["members"].keys() == {"hard/acc", "easy/acc", "open/acc"}
    check_items(metric, own.items)


def test_the_same_answers_leave_an_error_and_one_benchmark_has_the_headlines_interval() -> None:
    same = results(a=[1, 1, 1, 0] * 10)
    [metric, _], row = retained(same, same).metrics, benchmark_rows(same, same)[0]
    low, high = metric.ends
    assert (metric.value, row.retained) == (1, 1)
    assert metric.stderr == pytest.approx(row.retained_stderr) == pytest.approx(row.change_stderr / 0.5)
    assert 0.8 < low < 1 < high < 1.2
    own = [1, 1, 0, 0] * 10
    expected = interval_of_centred([1, 1, 1, 0] * 10, own, 0.25)
    assert retained(results(a=own), same).metrics[0].ends == pytest.approx((expected.low, expected.high))


def test_few_questions_at_chance_and_a_base_that_is_all_text() -> None:
    """The language model before it was widened has one softmax, which is the same within text."""
    found = retained(results(a=[1, 0, 0, 1]), results(a=[1, 0, 0, 0]))
    assert (found.metrics, found.counted, found.at_chance) == ([], ["a"], ["a"]), "nothing is above chance"
    found = retained(results(a=[1, 1, 0, 1]), results(a=[1] * 4, within=False))
    assert {metric.ends for metric in found.metrics} == {(None, None)}, "four questions are too few"
    assert by_name(found.metrics)[f"{HEADLINE}_within"].value == pytest.approx((0.75 - 0.25) / 0.75)


def test_a_series_goes_on_where_the_table_says_what_the_options_say() -> None:
    """The table came later: a history of benchmarks whose chance it does not change must not break."""
    base, own = results(arc_easy=[1, 1, 1, 0] * 9, mine=[1, 1] * 9), results(arc_easy=[1, 1, 0, 0] * 9, mine=[1, 0] * 9)
    [metric, _] = retained(own, base).metrics
    members = {f"{name}/acc": by_name(own.metrics)[f"{name}/acc"].protocol.id for name in ("arc_easy", "mine")}
    assert metric.protocol.content == {**BASE, "members": members, "estimator": RATIO, "above_chance": 2.0}


def test_a_base_that_always_says_yes_has_nothing_to_lose() -> None:
    """BoolQ's .62 is far above ½ and knows nothing; the version of the table that says so is in the protocol."""
    chances = {"boolq": 0.5}
    yes, knows = [1.0] * 62 + [0.0] * 38, [1.0] * 90 + [0.0] * 10
    assert retained(results(chances, boolq=yes), results(chances, boolq=yes)).at_chance == ["boolq"]
    metric = by_name(retained(results(chances, boolq=yes), results(chances, boolq=knows)).metrics)[HEADLINE]
    assert metric.value == pytest.approx(0)
    assert metric.protocol.content["chance"] == {"boolq": {"value": 0.62, "table": 1}}


def test_of_each_benchmark_what_was_lost_gained_and_retained() -> None:
    own = results(a=[1, 1, 0, 0, 1, 0] * 4, b=[1, 0, 0, 0] * 4)
    base = results(a=[1, 1, 1, 1, 0, 0] * 4, b=[0, 1, 0, 0] * 4)
    differences = Differences("forgetting")
    add_retention(differences, benchmark_rows(own, base), own, base, BASE)
    found = by_name(differences.metrics)
    rows = [{"benchmark": "forgetting", "index": index, **row} for index, row in differences.numbers.items()]
    for metric in found.values():
        check_items(metric, rows)
    assert "forgetting/b_retained" not in found, "of chance nothing can be retained"
    of_both = ["a_lost", "a_gained", "a_retained", "b_lost", "b_gained"]
    assert found.keys() == {f"forgetting/{name}{scope}" for name in of_both for scope in ("", "_within")}
    lost, gained, left = (found[f"forgetting/{name}"] for name in of_both[:3])
    assert (lost.value, gained.value) == pytest.approx((2 / 6, 1 / 6))
    assert lost.stderr == pytest.approx((2 / 6 * 4 / 6 / 23) ** 0.5)
    assert left.value == pytest.approx((0.5 - 0.25) / (4 / 6 - 0.25))
    content = {"benchmark": "a", **BASE, "comparison": "forgetting/2"}
    assert left.protocol.content == {**content, "chance": {"value": 0.25, "table": None}}
    assert lost.protocol.content == gained.protocol.content == content


def test_the_centred_mean_needs_no_base() -> None:
    """Runs with different bases are compared by it, so the base must not be in its protocol."""
    chances = {"boolq": 0.5, "lambada_openai": 0.0}
    own = results(chances, boolq=[1.0] * 8 + [0.0] * 2, lambada_openai=[1.0, 0.0] * 5)
    base = results(chances, boolq=[1.0] * 10, lambada_openai=[1.0] * 10)
    found = by_name(list(centred("forgetting", benchmark_rows(own, base), own, {"task": "forgetting"})))
    metric = found["forgetting/centred"]
    check_items(metric, own.items)
    assert (metric.value, metric.n) == (pytest.approx(((0.8 - 0.62) / 0.38 + 0.5) / 2), 20)
    errors = [by_name(own.metrics)[f"{name}/acc"].stderr or 0 for name in ("boolq", "lambada_openai")]
    assert metric.stderr == pytest.approx(((errors[0] / 0.38) ** 2 + errors[1] ** 2) ** 0.5 / 2)
    assert metric.protocol.content.keys() == {"task", "members", "chance"}
    assert metric.protocol.content["chance"]["boolq"] == {"value": 0.62, "table": 1}


def changes(own: Results, base: Results, protocol: Mapping[str, Any] = BASE) -> Differences:
    differences = Differences("forgetting")
    differences.add_changes(own, base, protocol)
    return differences


def test_a_change_is_paired_over_documents() -> None:
    differences = changes(results(a=[1, 0, 0, 1], b=[0, 1]), results(a=[1, 1, 1, 1], b=[1, 1]))
    found = by_name(differences.metrics)
    assert set(found) == {f"forgetting/{name}_acc{suffix}_change" for name in "ab" for suffix in ("", "_within")}
    change = found["forgetting/a_acc_change"]
    assert (change.value, change.n, change.items) == (-0.5, 4, ("a_acc_change",))
    assert change.stderr == pytest.approx(math.sqrt(4 * 0.25 / (4 * 3)))
    assert change.protocol.content == {"benchmark": "a", **BASE, "comparison": "forgetting/2"}
    assert differences.numbers[1].items() >= {"a_acc_change": -1, "a_acc_within_change": -1, "b_acc_change": 0}.items()
    assert differences.numbers[3] == {"a_acc_change": 0, "a_acc_within_change": 0}
    differences = changes(results(a=[-math.inf, 1]), results(a=[-math.inf, 0]))
    assert (differences.metrics[0].value, differences.numbers[0]["a_acc_change"]) == (0.5, 0), "the same infinity"


def test_a_ratio_keeps_its_weights() -> None:
    """Bits per byte: the bytes are the document's, whoever answers. Version 2 of a comparison is that of answers."""

    def of(*bits: float) -> Results:
        rows = enumerate(zip(bits, (4, 12), strict=True))
        items = [{"benchmark": "a", "index": index, "bits": value, "bytes": size} for index, (value, size) in rows]
        metric = MetricValue("a/bits_per_byte", 0, 0, 2, "bits/byte", "lower", Protocol({}), items=("bits", "bytes"))
        return Results([metric], items, {})

    differences = changes(of(8, 40), of(8, 8), {**BASE, "comparison": "forgetting/1"})
    [change] = differences.metrics
    assert change.protocol.content["comparison"] == "forgetting/1"
    assert (change.name, change.value) == ("forgetting/a_bits_per_byte_change", 2.0)
    assert change.items == ("a_bits_change", "a_bytes")
    assert differences.numbers == {0: {"a_bits_change": 0, "a_bytes": 4}, 1: {"a_bits_change": 32, "a_bytes": 12}}
