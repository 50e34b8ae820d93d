"""What the gate writes: the same judgement in every form, and nothing in it breaks the form."""

import json
import math

import pytest
from gate_documents import read_junit, result, value

from evalsvc.compare.gate import compare
from evalsvc.compare.gate_report import Outcome, Report
from evalsvc.compare.gate_rules import Rule
from evalsvc.compare.reports import (
    COLUMNS,
    WORDS,
    headline,
    levels,
    table,
    to_annotations,
    to_json,
    to_junit,
    to_markdown,
)
from evalsvc.compare.result import Result
from evalsvc.spec.protocol import MetricValue, Protocol


@pytest.fixture(scope="module")
def report() -> Report:
    errors = {"a/same": 0.01, "a/gone": 0.01, "a/unasked": 0.01, "b/worse": 0.001, "b/lost": None, "b/better": 0.001}
    errors |= {"b/limited": 0.01, "b/unsure": None, "b/noisy": 0.01}
    own = {"b/worse": (1.5, 0.001), "b/lost": (math.nan, None), "b/better": (0.5, 0.001), "b/unsure": (1.5, 0.01)}
    candidate = [value(name, *numbers) for name, numbers in own.items()]
    candidate += [value("a/same", 1.0), value("b/noisy", 1.01), value("c/new", 3.0)]
    candidate.append(value("b/limited", 1.0, protocol=Protocol({"limit": 8})))
    baseline = [value(name, 1.0, stderr) for name, stderr in errors.items()]
    rules = [Rule(metric="a/unasked", missing="ignore"), Rule(metric="*")]
    return compare(result(*candidate, name="after.json"), result(*baseline, name="before.json"), rules)


def failed(outcome: Outcome) -> Report:
    return Report("run-a@100", "run-a@0", problems=("nothing is there",), failed=outcome)


def test_the_gravest_come_first(report: Report) -> None:
    """Of annotations GitHub shows ten of a kind in a step."""
    assert headline(report) == (
        "regression: 2 worse, 1 missing, 1 other protocol, 1 not judged, 1 within noise, 1 better, "
        "1 within tolerance, 1 new, 1 ignored"
    )
    rows = table(report.comparisons)
    unusual = ["WORSE", "WORSE", "MISSING", "OTHER PROTOCOL", "NOT JUDGED"]
    harmless = ["within noise", "better", "within tolerance", "new", "ignored"]
    assert [row[0] for row in rows] == unusual + harmless
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert rows[0][:9] == ["WORSE", "b/worse", "1", "1.5", "+0.5", "± 0.0014", "unpaired", "100", "0.0043"]
    assert rows[1][2:8] == ["1", "nan", "+nan", "", "none", "100"]
    assert rows[2][2:9] == ["1", "", "", "", "none", "", ""]
    assert rows[4][COLUMNS.index("fails at")] == ""
    shown = [line.split("::")[1].split(" title=") for line in to_annotations(report)]
    errors = ["b/worse", "b/lost", "a/gone", "b/limited", "b/unsure"]
    assert shown == [*(["error", name] for name in errors), ["notice", "b/better"], ["warning", "a/unasked"]]


def test_protocol_and_basis_stand_in_every_row_of_every_form() -> None:
    """Several guidance scales stood in the report as lines of one name. An error that is not that of pairs is larger,
    and a verdict without any is another kind of verdict."""
    made = enumerate([(0.1, ("nll",)), (0.1, ()), (None, ())])
    fields = [(stderr, {"items": keys, "protocol": Protocol({"scale": scale})}) for scale, (stderr, keys) in made]
    sides = []
    for name, number in (("after", 9.0), ("before", 1.0)):
        items = {"t": [{"index": index, "nll": number + index % 3} for index in range(20)]}
        metrics = [value("t/x", number, stderr, **more) for stderr, more in fields]
        sides.append(result(*metrics, name=name, items=items))
    found = compare(*sides)
    expected = {"t/x (scale=0)": "paired", "t/x (scale=1)": "unpaired", "t/x (scale=2)": "none"}
    assert {row[1]: row[COLUMNS.index("basis")] for row in table(found.comparisons)} == expected
    written = json.loads(to_json(found))["comparisons"]
    assert {f"t/x (scale={one['differs']['scale']})": one["basis"] for one in written} == expected
    cells = [line.split(" | ") for line in to_markdown(found).splitlines() if "`t/" in line]
    assert {row[1].strip("`"): row[COLUMNS.index("basis")] for row in cells} == expected
    outputs = {case.get("name"): case.find("system-out").text for case in read_junit(to_junit(found))[0]}
    assert {name: text.partition("basis: ")[2].split("\n")[0] for name, text in outputs.items()} == expected
    assert {line.split("::")[1].removeprefix("error title=") for line in to_annotations(found)} == set(expected)


def test_one_cause_is_one_row_and_one_annotation() -> None:
    """NaN in one layer filled a table with twelve equal reasons, and all ten annotations that GitHub shows."""
    names = ("pairs/text", "pairs/image", "coco/fid", "coco/kid")
    for code, verdict in (("non_finite", "worse"), ("not_a_checkpoint", "missing")):
        errors = {"pairs": "nan.pt has NaN", "coco": "nan.pt has NaN", "arc": "no rows"}
        before = result(*(value(name, 1.0) for name in (*names, "arc/acc")), name="baseline")
        report = compare(result(value("x/y", 1.0), errors=errors, code=code), before)
        rows = [row for row in table(report.comparisons) if row[0] == WORDS[verdict]]
        reason = "the candidate's tasks pairs, coco failed: nan.pt has NaN"
        assert [(row[1], row[-1]) for row in rows] == [
            ("pairs/text, pairs/image, coco/fid and 1 more", reason),
            ("arc/acc", "the candidate's task arc failed: no rows"),
        ]
        assert len(to_annotations(report)) == 2
        assert to_junit(report).count(b"<testcase") == 6, "programs read each metric"


def test_json(report: Report) -> None:
    found = json.loads(to_json(report), parse_constant=pytest.fail)
    assert (found["outcome"], found["exit_code"], found["baseline"]) == ("regression", 1, "before.json")
    by_name = {one["metric"]: one for one in found["comparisons"]}
    noise, level = pytest.approx(0.004297, rel=1e-3), pytest.approx(0.00135, rel=1e-3)
    ends = {"low": pytest.approx(0.495703, abs=1e-6), "high": pytest.approx(0.504297, abs=1e-6)}
    counts = {"n": 100, "groups": None, "n_only_baseline": 0, "n_only_candidate": 0}
    error = {"stderr": pytest.approx(0.001414, rel=1e-3), "basis": "unpaired", "level": level, "p": None}
    limits = {"tolerance": 0.001, "noise": noise, "fails_at": noise}
    assert by_name["b/worse"]["difference"] == {"value": 0.5, **counts, **ends, **error, **limits}
    assert (by_name["b/lost"]["candidate"], by_name["b/lost"]["difference"]["value"]) == ("NaN", "NaN")
    assert by_name["a/gone"]["verdict"] == "missing"
    whole = {"if_independent": pytest.approx(1 - (1 - 0.0013498980) ** 4), "at_most": pytest.approx(4 * 0.0013498980)}
    assert found["alarms"] == {"family": "none", "metrics": 4, "lowest": level, "highest": level, **whole}
    failed_document = json.loads(to_json(failed(Outcome.TIME_OUT)))
    assert (failed_document["problems"], failed_document["alarms"]) == (["nothing is there"], None)


def many(count: int, *more: MetricValue) -> list[Result]:
    metrics = [value(f"t/{index}", 1.0) for index in range(count)]
    return [result(*metrics, *more, name=name) for name in ("after", "before")]


def test_the_level_of_the_gate_is_said() -> None:
    for count, family, standard_errors, words, chances in (
        (1, "none", [3], "1 metric, at a level of 0.00135", ()),
        (40, "none", [3], "40 metrics, each at a level of 0.00135", (0.053, 0.054)),
        (2, "none", [3, 2], "2 metrics, each at a level of 0.00135 to 0.0228", (0.024, 0.024)),
        (10, "holm", [2], "10 metrics, each at a level of 0.00228 or, by Holm's steps, more", (0.023, 0.023)),
    ):
        chance = "; an unchanged checkpoint fails with a chance of {} if the metrics are independent, and of {} at most"
        said = f"false alarms: {words}{chance.format(*chances) if chances else ''}"
        rules = [Rule(metric=f"t/{at}", standard_errors=number) for at, number in enumerate(standard_errors[:-1])]
        rules.append(Rule(metric="*", standard_errors=standard_errors[-1]))
        found = compare(*many(count), rules, family)
        assert levels(found) == said
        assert said in to_markdown(found)


def test_metrics_that_a_tolerance_alone_decides_are_not_in_the_chance() -> None:
    """The chance was said to be that of the gate, which fails by such metrics too, nobody knows how often."""
    alone = value("t/alone", 1.0, None)
    found = compare(*many(2, alone), [Rule(metric="*", absolute=0.1)])
    assert levels(found).endswith("0.0027 at most; by tolerance alone, with an unknown chance: t/alone")
    assert levels(compare(result(alone), result(alone))) == "", "chance decides nothing"


class TestJunit:
    def test_a_case_per_metric(self, report: Report) -> None:
        root = read_junit(to_junit(report))
        (suite,) = root
        assert suite.get("name") == "after.json against before.json"
        counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
        assert counts == {"tests": "10", "failures": "2", "errors": "3", "skipped": "2"}
        kinds = ("failure", "error", "skipped", "system-out")
        assert [[case.get("name") for case in suite if case[0].tag == kind] for kind in kinds] == [
            ["b/worse", "b/lost"],
            ["a/gone", "b/limited", "b/unsure"],
            ["a/unasked", "c/new"],
            ["a/same", "b/better", "b/noisy"],
        ]
        worse = next(case for case in suite if case.get("name") == "b/worse")
        assert worse.get("classname") == "b"
        assert worse.find("failure").get("message").startswith("worse by 0.5, beyond the tolerance 0.001 and the noise")
        assert "baseline: 1\ncandidate: 1.5\nchange: +0.5" in worse.find("system-out").text

    def test_what_failed_as_a_whole_is_one_error(self) -> None:
        """A report without a test would be shown as green, or as no report."""
        root = read_junit(to_junit(failed(Outcome.NO_BASELINE)))
        assert (root.get("tests"), root.get("errors")) == ("1", "1")
        assert root[0][0][0].attrib == {"type": "no_baseline", "message": "nothing is there"}

    def test_what_xml_cannot_hold(self) -> None:
        """Messages quote what they found, and a library's may hold anything."""
        problem = "a\x00b\x1b[31m <&\"'> \ud800 \uffff é\n"
        found = Report("<after>", "\x01", problems=(problem,), failed=Outcome.NO_BASELINE)
        root = read_junit(to_junit(found))
        assert root[0].get("name") == "<after> against \ufffd"
        assert root[0][0][0].get("message") == "a\ufffdb\ufffd[31m <&\"'> \ufffd \ufffd é\n"


class TestMarkdown:
    def test_what_is_within_noise_or_tolerance_is_folded(self, report: Report) -> None:
        loud, _, rest = to_markdown(report).partition("<details><summary>1 within noise</summary>")
        noisy, _, quiet = rest.partition("<details><summary>1 within tolerance</summary>")
        assert "| `b/noisy` |" in noisy
        assert "b/noisy" not in loud
        assert loud.startswith("### Gate: regression: 2 worse, 1 missing,")
        assert "`after.json` against `before.json`" in loud
        assert "| WORSE | `b/worse` | 1 | 1.5 | +0.5 |" in loud
        assert "| `a/same` |" in quiet
        assert "a/same" not in loud
        rows = [line for line in loud.splitlines() if line.startswith("|")]
        assert {row.count("|") for row in rows} == {len(COLUMNS) + 1}

        # The file is appended to: what comes next must not stick to a table.
        assert quiet.endswith("</details>\n\n")
        assert to_markdown(failed(Outcome.TIME_OUT)) == (
            "### Gate: time out: nothing is there\n\n`run-a@100` against `run-a@0`\n\n"
        )

    def test_markup_in_messages_is_text(self) -> None:
        found = compare(result(errors={"a": "<img src=x> a|b\n*c* `d`"}), result(value("a/x|y", 1.0)))
        (row,) = (line for line in to_markdown(found).splitlines() if "MISSING" in line)
        assert "`a/x\\|y`" in row
        assert "\\<img src=x\\> a\\|b \\*c\\* \\`d\\`" in row


def test_annotations_are_escaped() -> None:
    """As GitHub's own toolkit does; a metric such as `exact_match,strict-match` has a comma in its name."""
    baseline = result(value("gsm8k/exact_match,strict-match", 1.0))
    (line,) = to_annotations(compare(result(errors={"gsm8k": "50 %\r\n::set-output: 1"}), baseline))
    title, message = "gsm8k/exact_match%2Cstrict-match", "50 %25%0D%0A::set-output: 1"
    assert line == f"::error title={title}::the candidate's task gsm8k failed: {message}"
