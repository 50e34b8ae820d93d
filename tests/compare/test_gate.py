"""The gate's judgement: what is worse, by how much more than noise, and what it refuses to judge."""

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from app_in_process import App, app_in_process
from gate_documents import document, result, value
from paired_items import paired_difference

from evalsvc.cli import app
from evalsvc.client import Client
from evalsvc.compare.gate import Comparison, Outcome, Report, compare, run_gate
from evalsvc.compare.gate_rules import EVERYTHING, Rule, read_rules
from evalsvc.compare.result import Result
from evalsvc.compare.source import Service
from evalsvc.errors import InvalidData, InvalidRequest, UnknownName
from evalsvc.messages import ShardError
from evalsvc.spec.protocol import MetricValue, Protocol


def judge(before: MetricValue, after: MetricValue, **rule: Any) -> Comparison:
    (comparison,) = compare(result(after), result(before), [Rule(metric=before.name, **rule)]).comparisons
    return comparison


def report(candidate: Sequence[MetricValue], baseline: Sequence[MetricValue], *rules: Rule) -> Report:
    return compare(result(*candidate), result(*baseline, name="baseline"), rules or (Rule(metric="*"),))


def verdicts(found: Report) -> dict[str, str]:
    return {comparison.metric: comparison.verdict for comparison in found.comparisons}


class TestVerdict:
    @pytest.mark.parametrize(
        ("direction", "after", "verdict"),
        [("lower", 1.1, "worse"), ("lower", 0.9, "better"), ("higher", 0.9, "worse"), ("higher", 1.1, "better")],
    )
    def test_direction(self, direction: str, after: float, verdict: str) -> None:
        found = judge(value("a/b", 1.0, direction=direction), value("a/b", after, direction=direction))
        assert found.verdict == verdict
        assert found.reason.startswith(f"{verdict} by 0.1, beyond the tolerance 0.001 and the noise 0.043")

    def test_a_rule_may_turn_the_direction(self) -> None:
        assert judge(value("a/b", 1.0), value("a/b", 0.5), direction="higher").verdict == "worse"

    @pytest.mark.parametrize(
        ("rule", "verdict"),
        [
            ({"absolute": 0.29}, "worse"),
            ({"absolute": 0.31}, "within_noise"),
            ({"relative": 0.14}, "worse"),
            ({"relative": 0.16}, "within_noise"),
            ({"absolute": 0.31, "relative": 0.01}, "within_noise"),
            ({"absolute": 0.01, "relative": 0.16}, "within_noise"),
        ],
    )
    def test_the_larger_tolerance_counts(self, rule: dict[str, float], verdict: str) -> None:
        assert judge(value("a/b", 2.0), value("a/b", 2.3), **rule).verdict == verdict

    @pytest.mark.parametrize(("standard_errors", "verdict"), [(2.0, "worse"), (2.2, "within_noise"), (0, "worse")])
    def test_noise_of_two_independent_values(self, standard_errors: float, verdict: str) -> None:
        """0.105 is 2.1 of their common errors, √(0.03² + 0.04²)."""
        found = judge(value("a/b", 1.0, 0.03), value("a/b", 1.105, 0.04), standard_errors=standard_errors)
        assert found.verdict == verdict
        assert found.difference is not None
        assert (found.difference.basis, found.difference.stderr) == ("unpaired", pytest.approx(0.05))

    def test_without_errors_the_tolerance_alone_decides(self) -> None:
        found = judge(value("a/fid", 10.0, None), value("a/fid", 10.5, None), absolute=0.4)
        assert found.verdict == "worse"
        assert found.reason == (
            "worse by 0.5, beyond the tolerance 0.4, which alone decides: neither the baseline nor the candidate has a "
            "standard error"
        )
        assert judge(value("a/fid", 10.0, None), value("a/fid", 10.5, None), absolute=0.6).verdict == "within_tolerance"

    def test_rounding_passes(self) -> None:
        """Another device moves the last digits of every item in one direction, far beyond their paired error."""
        assert report([value("a/b", 3.0001, 0.0)], [value("a/b", 3.0, 0.0)]).outcome == Outcome.PASSED

    @pytest.mark.parametrize(
        ("before", "after", "verdict"),
        [
            (1.0, math.nan, "worse"),
            (1.0, math.inf, "worse"),
            (1.0, -math.inf, "better"),
            (math.nan, 1.0, "better"),
            (math.inf, 1.0, "better"),
            (math.nan, math.nan, "within_tolerance"),
            (math.inf, math.inf, "within_tolerance"),
            (-math.inf, 1.0, "worse"),
        ],
    )
    def test_not_finite(self, before: float, after: float, verdict: str) -> None:
        """A diverged checkpoint must not pass because NaN compares with nothing."""
        for stderr in (0.1, None):
            assert judge(value("a/b", before, stderr), value("a/b", after, stderr)).verdict == verdict

    @pytest.mark.parametrize("after", [0.5, 9.0])
    @pytest.mark.parametrize("errors", [(None, None), (0.001, None), (None, 0.001), (math.inf, 0.001)])
    def test_without_error_and_tolerance_nothing_is_judged(
        self, after: float, errors: tuple[float | None, float | None]
    ) -> None:
        """The error of one side is narrower than that of the difference: as noise it failed builds."""
        before, changed = value("a/b", 1.0, errors[0]), value("a/b", after, errors[1])
        found = compare(result(changed), result(before))
        assert (found.outcome, verdicts(found)) == (Outcome.NOT_JUDGED, {"a/b": "not_judged"})
        (one,) = found.comparisons
        assert one.basis == "none"
        assert one.reason.endswith(
            "give its rule (--rules) a tolerance, `absolute` or `relative`, which then decides alone"
        )
        if errors[0] is None and errors[1] is not None:
            assert "only the candidate has a standard error, and the error of one side is no error" in one.reason

    @pytest.mark.parametrize(("tolerance", "verdict"), [("absolute", "worse"), ("relative", "worse")])
    def test_a_tolerance_that_the_rule_states_decides_alone(self, tolerance: str, verdict: str) -> None:
        for stated, expected in ((0.0, verdict), (0.4, verdict), (0.6, "within_tolerance")):
            found = judge(value("a/b", 1.0, 0.2), value("a/b", 1.5, None), **{tolerance: stated})
            assert found.verdict == expected
            assert "which alone decides: only the baseline has a standard error" in found.reason

    def test_equal_values_need_no_bound(self) -> None:
        found = judge(value("a/b", 1.0, None), value("a/b", 1.0, 0.1))
        assert (found.verdict, found.reason) == ("within_tolerance", "equal")


class TestPaired:
    BEFORE = (1, 0, 1, 1, 0, 1, 1, 0) * 25
    AFTER = (*BEFORE[:-16], *(0, 0, 0, 1, 0, 0, 0, 0) * 2)

    def sides(self, **fields: Any) -> tuple[MetricValue, MetricValue]:
        """Eight questions of 200 are answered wrong that were answered right."""
        made = [
            value("arc/acc", sum(side) / 200, math.sqrt(0.25 / 200), direction="higher", items=("acc",), **fields)
            for side in (self.BEFORE, self.AFTER)
        ]
        return made[0], made[1]

    def items(self, answers: Sequence[int], benchmark: str = "arc") -> list[dict[str, Any]]:
        return [{"benchmark": benchmark, "index": index, "acc": answer} for index, answer in enumerate(answers)]

    def judged(self, before: Any, after: Any) -> Comparison:
        metric, changed = self.sides()
        candidate = result(changed, items={"text": after}, task="text")
        baseline = result(metric, items={"text": before}, task="text")
        (comparison,) = compare(candidate, baseline, [Rule(metric="arc/acc", standard_errors=2)]).comparisons
        return comparison

    def test_pairing_finds_what_two_samples_hide(self) -> None:
        found = self.judged(self.items(self.BEFORE), self.items(self.AFTER))
        expected = paired_difference(self.items(self.BEFORE), self.items(self.AFTER), "arc/acc", ["acc"])
        assert found.difference is not None
        assert expected is not None
        assert (found.verdict, found.difference.basis, found.difference.n) == ("worse", "paired", 200)
        assert (found.difference.value, found.difference.stderr) == (pytest.approx(expected.value), expected.stderr)
        apart = self.judged([], [])
        assert apart.difference is not None
        assert (apart.verdict, apart.difference.basis) == ("within_noise", "unpaired")

    @pytest.mark.parametrize("side", [0, 1])
    def test_an_item_that_one_side_lacks_leaves_the_others_paired(self, side: int) -> None:
        sides = [self.items(self.BEFORE), self.items(self.AFTER)]
        sides[side].pop()
        found = self.judged(*sides)
        assert found.difference is not None
        assert (found.verdict, found.difference.basis, found.difference.n) == ("worse", "paired", 199)

    def test_two_tasks_with_one_benchmark_are_kept_apart(self) -> None:
        """At zero and at five shots a benchmark has the same name and the same items."""
        metrics = self.sides()
        five = self.sides(protocol=Protocol({"num_fewshot": 5}))
        answers = {"zero": self.items(self.BEFORE), "five": self.items(self.AFTER)}
        documents = [document(zero, task="zero") for zero in metrics]
        for made, other in zip(documents, five, strict=True):
            added = document(other, task="five")
            made["metrics"] += added["metrics"]
            made["protocols"] |= added["protocols"]
        documents[0]["items"] = answers
        documents[1]["items"] = {"zero": answers["five"], "five": answers["five"]}
        found = compare(Result("after", documents[1]), Result("before", documents[0]))
        by_task = {comparison.task: comparison.difference for comparison in found.comparisons}
        assert by_task["zero"] is not None
        assert by_task["five"] is not None
        assert (by_task["zero"].basis, by_task["five"].basis) == ("paired", "paired")
        assert (by_task["zero"].p, by_task["five"].p) == (pytest.approx(1 / 128), 1.0)


class TestRules:
    def test_the_first_rule_that_matches_counts(self) -> None:
        metrics = [value("arc/acc", 0.5, direction="higher"), value("piqa/acc", 0.5, direction="higher")]
        lower = [value("arc/acc", 0.3, direction="higher"), value("piqa/acc", 0.3, direction="higher")]
        found = report(lower, metrics, Rule(metric="arc/acc", absolute=0.3), Rule(metric="*/acc"))
        assert verdicts(found) == {"arc/acc": "within_tolerance", "piqa/acc": "worse"}

    def test_only_what_rules_match_is_judged(self) -> None:
        found = report(
            [value("a/b", 9.0), value("a/c", 1.0)], [value("a/b", 1.0), value("a/c", 1.0)], Rule(metric="a/c")
        )
        assert (found.outcome, verdicts(found)) == (Outcome.PASSED, {"a/c": "within_tolerance"})

    def test_descriptions_are_left_out(self) -> None:
        """A count has no better side; a pattern passes over it, a rule for nothing else needs a direction."""
        metrics = [value("a/loss", 1.0), value("a/image_mass", 0.1, direction="none")]
        assert verdicts(report(metrics, metrics, Rule(metric="a/*"))) == {"a/loss": "within_tolerance"}
        for pattern in ("a/image_mass", "*_mass"):
            with pytest.raises(InvalidRequest, match="lower or higher is better of a/image_mass; give the rule a `dir"):
                report(metrics, metrics, Rule(metric=pattern))
        turned = report(metrics, metrics, Rule(metric="a/image_mass", direction="lower"))
        assert verdicts(turned) == {"a/image_mass": "within_tolerance"}

    def test_a_rule_for_nothing_is_named(self) -> None:
        """A misspelt rule must not guard nothing in silence."""
        metrics = [value("pairs/image", 1.0)]
        found = report(metrics, metrics, Rule(metric="pairs/image"), Rule(metric="pairs/imgae"))
        assert found.outcome == Outcome.NOT_JUDGED
        assert "no metric is named 'pairs/imgae'; did you mean 'pairs/image'" in found.problems[0]
        new = report([*metrics, value("a/b", 1.0)], metrics, Rule(metric="pairs/*"), Rule(metric="a/*"))
        assert new.problems == ("the rule for a/* matches no metric of the baseline; make the baseline anew",)
        ignored = report(metrics, metrics, Rule(metric="pairs/image"), Rule(metric="x/y", missing="ignore"))
        assert ignored.outcome == Outcome.PASSED


class TestNotJudged:
    def test_missing_is_named_with_the_tasks_error(self) -> None:
        baseline = result(value("arc/acc", 0.5), value("pairs/image", 1.0), name="baseline")
        candidate = result(value("arc/acc", 0.5), errors={"pairs": "layer 3 has NaN"})
        found = compare(candidate, baseline)
        assert found.outcome == Outcome.NOT_JUDGED
        assert [(one.metric, one.verdict, one.reason) for one in found.comparisons][1] == (
            "pairs/image",
            "missing",
            "the candidate's task pairs failed: layer 3 has NaN",
        )

    def test_error_of_a_task_whose_name_two_suites_share(self) -> None:
        baseline = result(value("a/b", 1.0), value("pairs/image", 1.0))
        candidate = result(value("a/b", 1.0), errors={"quick/pairs": "out of memory"})
        assert compare(candidate, baseline).comparisons[1].reason.endswith("task pairs failed: out of memory")

    def test_a_regression_counts_first(self) -> None:
        found = report([value("a/b", 2.0)], [value("a/b", 1.0), value("a/c", 1.0)])
        assert (found.outcome, verdicts(found)) == (Outcome.REGRESSION, {"a/b": "worse", "a/c": "missing"})

    def test_missing_may_be_ignored(self) -> None:
        metrics = [value("a/b", 1.0), value("a/c", 1.0)]
        found = report(metrics[:1], metrics, Rule(metric="a/*", missing="ignore"))
        assert (found.outcome, verdicts(found)) == (Outcome.PASSED, {"a/b": "within_tolerance", "a/c": "ignored"})

    def test_a_gate_that_compares_nothing_does_not_pass(self) -> None:
        found = report([], [value("a/b", 1.0)], Rule(metric="a/b", missing="ignore"))
        assert found.outcome == Outcome.NOT_JUDGED
        assert found.problems[0].startswith("nothing was compared")

    def test_new_values_are_shown_and_pass(self) -> None:
        found = report([value("a/b", 1.0), value("c/d", 1.0)], [value("a/b", 1.0)])
        assert (found.outcome, verdicts(found)) == (Outcome.PASSED, {"a/b": "within_tolerance", "c/d": "new"})


class TestProtocol:
    def guided(self, scale: float, number: float = 1.0, **more: Any) -> MetricValue:
        content = {"sampling": {"guidance_scale": scale, "seed": 0}, "data": "ab" * 32, **more}
        return value("digits/fid", number, protocol=Protocol(content))

    def test_another_protocol_is_refused_and_its_fields_named(self) -> None:
        found = report([self.guided(3.0, limit=64)], [self.guided(1.5, 0.5)])
        assert (found.outcome, verdicts(found)) == (Outcome.NOT_JUDGED, {"digits/fid": "other_protocol"})
        (one,) = found.comparisons
        assert one.reason.startswith(
            "measured by another protocol and not comparable: sampling.guidance_scale 1.5 → 3.0, limit (none) → 64;"
        )
        assert (one.baseline, one.candidate, one.difference) == (0.5, 1.0, None)

    def test_long_values_are_shortened(self) -> None:
        before = value("a/b", 1.0, protocol=Protocol({"data": "0" * 64}))
        after = value("a/b", 1.0, protocol=Protocol({"data": "1" * 64}))
        assert 'data "000000000000000… → "111111111111111…;' in judge(before, after).reason

    def test_values_pair_by_their_protocol(self) -> None:
        baseline = [self.guided(1.0, 1.0), self.guided(3.0, 2.0)]
        found = report([self.guided(3.0, 2.0), self.guided(1.0, 1.5)], baseline)
        assert [(one.verdict, one.baseline, one.candidate) for one in found.comparisons] == [
            ("worse", 1.0, 1.5),
            ("within_tolerance", 2.0, 2.0),
        ]

    def test_the_nearest_protocol_is_compared(self) -> None:
        found = report([self.guided(3.0, data="cd"), self.guided(2.0)], [self.guided(1.0)])
        assert [one.verdict for one in found.comparisons] == ["other_protocol"]
        assert "guidance_scale 1.0 → 2.0;" in found.comparisons[0].reason

    def test_a_file_without_protocols(self) -> None:
        sides = [Result("x", document(metric) | {"protocols": {}}) for metric in (self.guided(1.0), self.guided(2.0))]
        (one,) = compare(*sides).comparisons
        assert f"{self.guided(2.0).protocol.id} → {self.guided(1.0).protocol.id};" in one.reason

    def test_one_of_several_is_missing(self) -> None:
        found = report([self.guided(1.0)], [self.guided(1.0), self.guided(3.0)])
        assert [one.verdict for one in found.comparisons] == ["within_tolerance", "missing"]
        more = report([self.guided(1.0), self.guided(3.0)], [self.guided(1.0)])
        assert [one.verdict for one in more.comparisons] == ["within_tolerance", "new"]

    def test_rows_of_one_metric_say_which_they_are(self) -> None:
        """Several guidance scales stood in the report as lines of one name."""
        baseline = [self.guided(1.0), self.guided(3.0), value("digits/kid", 1.0)]
        found = report([*baseline, self.guided(5.0)], baseline)
        assert [one.label for one in found.comparisons] == [
            "digits/fid (sampling.guidance_scale=1.0)",
            "digits/fid (sampling.guidance_scale=3.0)",
            "digits/fid (sampling.guidance_scale=5.0)",
            "digits/kid",
        ]
        one_sided = report(baseline[:1], baseline[:2])
        assert [one.differs for one in one_sided.comparisons] == [
            {"sampling.guidance_scale": 1.0},
            {"sampling.guidance_scale": 3.0},
        ]


WRONG_FIELDS: list[dict[str, Any]] = [
    *({"name": 3}, {"n": None}, {"n": "many"}, {"direction": "sideways"}, {"protocol": [1]}, {"unit": None}),
    *({"items": "x"}, {"items": [1]}, {"items": ["x", "y", "z"]}, {"task": [1]}),
]

WRONG_PARTS: list[dict[str, Any]] = [
    *({"protocols": [1]}, {"protocols": {"x": 1}}, {"errors": [1]}, {"errors": {"a": {}}}),
    *({"items": [1]}, {"items": {"a": [1]}}, {"items": {"a": [{"index": [0]}]}}),
]


class TestFiles:
    @pytest.fixture
    def service(self) -> Iterator[Service]:
        """Nothing answers there: files need no service."""
        with Client("http://127.0.0.1:9") as client:
            yield Service(client)

    def write(self, folder: Path, name: str, content: Any) -> str:
        path = folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    def test_through_json(self, tmp_path: Path, service: Service) -> None:
        before = self.write(tmp_path, "before.json", document(value("a/b", 1.0), value("a/c", math.inf)))
        after = self.write(tmp_path, "after.json", document(value("a/b", math.nan), value("a/c", math.inf)))
        found = run_gate(after, before, EVERYTHING, service)
        assert verdicts(found) == {"a/b": "worse", "a/c": "within_tolerance"}

    def test_no_baseline(self, tmp_path: Path, service: Service) -> None:
        candidate = self.write(tmp_path, "after.json", document(value("a/b", 1.0)))
        empty = self.write(tmp_path, "empty.json", document(errors={"a": "no such file"}))
        missing = run_gate(candidate, str(tmp_path / "nowhere.json"), EVERYTHING, service)
        assert missing.outcome == Outcome.NO_BASELINE
        assert f"there is no file {tmp_path}/nowhere.json; write one by `evalsvc run" in missing.problems[0]
        failed = run_gate(candidate, empty, EVERYTHING, service)
        assert (failed.outcome, failed.problems) == (Outcome.NO_BASELINE, (f"{empty} has no values; a: no such file",))

    def test_no_candidate(self, tmp_path: Path, service: Service) -> None:
        baseline = self.write(tmp_path, "before.json", document(value("a/b", 1.0)))
        with pytest.raises(UnknownName, match="there is no file"):
            run_gate(str(tmp_path / "nowhere.json"), baseline, EVERYTHING, service)

    @pytest.mark.parametrize(
        "content",
        [
            *("", "{", "[1]", "[" * 9999, '{"metrics": 3}', '{"metrics": [{"name": "a/b"}]}'),
            {"metrics": [value("a/b", 1.0).to_json() | {"value": None}]},
            {"metrics": [value("a/b", 1.0).to_json() | {"stderr": "small"}]},
            *({"metrics": [value("a/b", 1.0).to_json() | wrong]} for wrong in WRONG_FIELDS),
            *(document(value("a/b", 1.0)) | wrong for wrong in WRONG_PARTS),
        ],
    )
    def test_what_is_not_a_result(self, tmp_path: Path, service: Service, content: Any) -> None:
        path = self.write(tmp_path, "wrong.json", content)
        with pytest.raises(InvalidData, match=r"wrong\.json is no"):
            run_gate(path, path, EVERYTHING, service)

    def test_items_that_are_no_numbers(self, tmp_path: Path, service: Service) -> None:
        items = {"a": [{"index": index, "nll": "word"} for index in range(3)]}
        path = self.write(tmp_path, "wrong.json", document(value("a/b", 1.0, items=("nll",)), items=items))
        with pytest.raises(InvalidData, match=r"wrong\.json: the results per item of task 'a' have values under nll"):
            run_gate(path, path, EVERYTHING, service)

    def test_a_folder(self, tmp_path: Path, service: Service) -> None:
        with pytest.raises(InvalidData, match="cannot be read: is a directory"):
            run_gate(str(tmp_path), str(tmp_path), EVERYTHING, service)


class TestService:
    """RUN@STEP, against the application; what it measures is always the same."""

    @pytest.fixture
    def app(self, tmp_path: Path) -> Iterator[App]:
        with app_in_process(tmp_path / "data") as app:
            (tmp_path / "epoch.pt").write_bytes(b"weights")
            for step, fields in ((0, {}), (100, {}), (100, {"variant": "ema"})):
                app.post(tmp_path / "epoch.pt", step=step, suites=["loss"], **fields)
            yield app

    @pytest.fixture
    def client(self, app: App) -> Iterator[Client]:
        with Client("http://evalsvc", transport=app.transport) as client:
            yield client

    @pytest.mark.parametrize("candidate", ["run-a@100", "run-a@100:ema"])
    def test_what_is_over_is_compared(self, app: App, client: Client, candidate: str) -> None:
        app.coordinator.work()
        found = run_gate(candidate, "run-a@0", EVERYTHING, Service(client, timeout=0))
        assert (found.outcome, verdicts(found)) == (
            Outcome.PASSED,
            {"loss/text": "within_tolerance", "loss/image": "within_tolerance"},
        )

    def test_what_is_not_over_is_waited_for(self, app: App, client: Client) -> None:
        seen = []

        def look(evaluation: dict[str, Any]) -> None:
            seen.append(evaluation["state"])
            app.coordinator.step()

        found = run_gate("run-a@100", "run-a@0", EVERYTHING, Service(client, report=look, every=0.01))
        assert found.outcome == Outcome.PASSED
        assert {"queued", "running"} <= set(seen)

    @pytest.mark.parametrize(("candidate", "baseline"), [("run-a@100", "run-a@0"), ("run-a@0", "run-a@100")])
    def test_time_out(self, app: App, client: Client, candidate: str, baseline: str) -> None:
        """Of either side."""
        while client.results("run-a", 100)["state"] != "succeeded":
            app.coordinator.step()
        found = run_gate(candidate, baseline, EVERYTHING, Service(client, timeout=0, every=0.01))
        assert found.outcome == Outcome.TIME_OUT
        assert found.problems[0].startswith("run-a@0: evaluation 1 is queued after 0 s; it goes on; try again, or")

    @pytest.mark.parametrize("baseline", ["run-a@7", "run-b@0", "run-a@0:ema"])
    def test_no_baseline(self, client: Client, baseline: str) -> None:
        found = run_gate("run-a@100", baseline, EVERYTHING, Service(client))
        assert found.outcome == Outcome.NO_BASELINE
        assert "run-a" in found.problems[0]

    def test_a_baseline_that_failed_is_none(self, app: App, client: Client) -> None:
        app.coordinator.error = ShardError("non_finite", "layer 3 has NaN")
        app.coordinator.work()
        found = run_gate("run-a@100", "run-a@0", EVERYTHING, Service(client))
        assert found.outcome == Outcome.NO_BASELINE
        assert found.problems == ("run-a@0 has no values; text: layer 3 has NaN; pairs: layer 3 has NaN",)

    def test_no_candidate(self, app: App, client: Client) -> None:
        """A wrong name for both, e.g. of the suite, must not look like a first run, which CI may let pass."""
        app.coordinator.work()
        for baseline in ("run-a@0", "run-a@8"):
            with pytest.raises(UnknownName, match="7"):
                run_gate("run-a@7", baseline, EVERYTHING, Service(client))
        with pytest.raises(UnknownName, match=r"no suite .* is named 'los'; did you mean 'loss'"):
            run_gate("run-a@100", "run-a@0", EVERYTHING, Service(client, suite="los"))


class TestReadme:
    ROOT = Path(__file__).parents[2]
    EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    def test_the_rules_are_rules(self, tmp_path: Path) -> None:
        (example,) = (text for text in self.EXAMPLES if text.startswith("rules:"))
        (tmp_path / "rules.yaml").write_text(example)
        assert {key for rule in read_rules(tmp_path / "rules.yaml").rules for key in rule.model_fields_set} == set(
            Rule.model_fields
        )
        defaults = dict(re.findall(r"(\w+): .*\[([\w.]+)\]", example))
        assert defaults == {
            key: f"{default:g}" if isinstance(default, float) else default or "any"
            for key in ("absolute", "relative", "standard_errors", "missing", "inconclusive", "max_noise")
            for default in [Rule.model_fields[key].default]
        }

    def test_the_commands_of_the_workflow_are_ours(self) -> None:
        (example,) = (text for text in self.EXAMPLES if "actions/checkout" in text)
        steps = yaml.safe_load(example)["jobs"]["gate"]["steps"]
        commands = [shlex.split(step["run"])[1:] for step in steps if step.get("run", "").startswith("evalsvc ")]
        assert [command[0] for command in commands] == ["assets", "run", "run", "gate"]
        for name, *arguments in commands[1:]:
            typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
