"""What is left of a base's abilities, from answers that are written out."""

import pytest
from benchmark_results import by_name, results

from evalsvc.language.results import Results
from evalsvc.metrics.paired import interval_of_centred
from evalsvc.tasks.comparison_rows import benchmark_rows
from evalsvc.tasks.retention import Retained, benchmark_metrics, centred, text_retained

BASE = {"task": "forgetting", "base": "ab" * 32}


def retained(own: Results, base: Results) -> Retained:
    return text_retained("forgetting", benchmark_rows(own, base), own, BASE)


def test_only_what_the_base_could_do_counts_as_retained() -> None:
    """Two standard errors above chance: of a coin flipped ten times nothing can be retained."""
    chances = {"hard": 0.25, "easy": 0.5, "open": 0.0}
    base = results(chances, hard=[1, 0, 0, 0] * 5, easy=[1, 1, 1, 0] * 10, open=[1, 0] * 10)
    own = results(chances, hard=[0, 0, 0, 0] * 5, easy=[1, 1, 0, 0] * 10, open=[1, 0, 1, 1] * 5)
    found = retained(own, base)
    assert (found.counted, found.at_chance) == (["easy", "open"], ["hard"])
    metric = by_name(found.metrics)["forgetting/text_retained"]
    assert metric.value == pytest.approx(((0.5 - 0.5) / (0.75 - 0.5) + 0.75 / 0.5) / 2)
    assert (metric.n, metric.unit, metric.direction, metric.baseline) == (60, "fraction", "higher", 0.0)
    assert metric.protocol.content["members"].keys() == {"easy/acc", "open/acc"}
    assert metric.protocol.content["base"] == BASE["base"]


def test_nothing_above_chance_gives_no_headline() -> None:
    found = retained(results(a=[1, 0, 0, 1]), results(a=[1, 0, 0, 0]))
    assert (found.metrics, found.counted, found.at_chance) == ([], [], ["a"])


def test_a_base_that_is_all_text_is_the_same_within_text() -> None:
    """The language model before it was widened has one softmax, which is both."""
    found = retained(results(a=[1, 1, 0, 1]), results(a=[1] * 4, within=False))
    assert by_name(found.metrics)["forgetting/text_retained_within"].value == pytest.approx((0.75 - 0.25) / 0.75)


def test_a_series_goes_on_where_the_table_says_what_the_options_say() -> None:
    """The table came later: a history of benchmarks whose chance it does not change must not break."""
    base, own = results(arc_easy=[1, 1, 1, 0] * 9, mine=[1, 1] * 9), results(arc_easy=[1, 1, 0, 0] * 9, mine=[1, 0] * 9)
    [metric, _] = retained(own, base).metrics
    members = {f"{name}/acc": by_name(own.metrics)[f"{name}/acc"].protocol.id for name in ("arc_easy", "mine")}
    assert metric.protocol.content == {**BASE, "members": members, "above_chance": 2.0}


def test_a_base_that_always_says_yes_has_nothing_to_lose() -> None:
    """BoolQ's .62 is far above ½ and knows nothing; the version of the table that says so is in the protocol."""
    chances = {"boolq": 0.5}
    yes, knows = [1.0] * 62 + [0.0] * 38, [1.0] * 90 + [0.0] * 10
    assert retained(results(chances, boolq=yes), results(chances, boolq=yes)).at_chance == ["boolq"]
    metric = by_name(retained(results(chances, boolq=yes), results(chances, boolq=knows)).metrics)
    assert metric["forgetting/text_retained"].value == pytest.approx(0)
    assert metric["forgetting/text_retained"].protocol.content["chance"] == {"boolq": {"value": 0.62, "table": 1}}


def test_of_each_benchmark_what_was_lost_gained_and_retained() -> None:
    own = results(a=[1, 1, 0, 0, 1, 0] * 4, b=[1, 0, 0, 0] * 4)
    base = results(a=[1, 1, 1, 1, 0, 0] * 4, b=[0, 1, 0, 0] * 4)
    found = by_name(list(benchmark_metrics("forgetting", benchmark_rows(own, base), own, BASE)))
    lost, gained, left = (found[f"forgetting/a_{name}"] for name in ("lost", "gained", "retained"))
    assert (lost.value, gained.value) == pytest.approx((2 / 6, 1 / 6))
    assert lost.stderr == pytest.approx((2 / 6 * 4 / 6 / 23) ** 0.5)
    assert (lost.direction, gained.direction, left.direction, left.baseline) == ("lower", "higher", "higher", 0.0)
    assert left.value == pytest.approx((0.5 - 0.25) / (4 / 6 - 0.25))
    assert left.protocol.content == {"benchmark": "a", **BASE, "chance": {"value": 0.25, "table": None}}
    assert lost.protocol.content == {"benchmark": "a", **BASE}
    assert "forgetting/b_retained" not in found, "of chance nothing can be retained"
    assert {name for name in found if name.endswith("_within")} == {
        *(f"forgetting/a_{name}_within" for name in ("lost", "gained", "retained")),
        *(f"forgetting/b_{name}_within" for name in ("lost", "gained")),
    }


def test_the_centred_mean_needs_no_base() -> None:
    """Runs with different bases are compared by it, so the base must not be in its protocol."""
    chances = {"boolq": 0.5, "lambada_openai": 0.0}
    own = results(chances, boolq=[1.0] * 8 + [0.0] * 2, lambada_openai=[1.0, 0.0] * 5)
    base = results(chances, boolq=[1.0] * 10, lambada_openai=[1.0] * 10)
    found = by_name(list(centred("forgetting", benchmark_rows(own, base), own, {"task": "forgetting"})))
    metric = found["forgetting/centred"]
    assert metric.value == pytest.approx(((0.8 - 0.62) / 0.38 + 0.5) / 2)
    errors = [by_name(own.metrics)[f"{name}/acc"].stderr or 0 for name in ("boolq", "lambada_openai")]
    assert metric.stderr == pytest.approx(((errors[0] / 0.38) ** 2 + errors[1] ** 2) ** 0.5 / 2)
    assert metric.protocol.content.keys() == {"task", "members", "chance"}
    assert metric.protocol.content["chance"]["boolq"] == {"value": 0.62, "table": 1}
    assert metric.n == 20


def test_the_headline_of_one_benchmark_has_that_ones_interval() -> None:
    base, own = [1, 1, 1, 0] * 10, [1, 1, 0, 0] * 10
    found = retained(results(a=own), results(a=base))
    expected = interval_of_centred(base, own, 0.25)
    assert expected is not None
    got = found.intervals["forgetting/text_retained"]
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
