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
from doc_blocks import DOCS, find_block
from gate_documents import document, read_document, result, value

from evalsvc.cli import app
from evalsvc.client import Client
from evalsvc.compare.gate import compare, run_gate, without_baseline
from evalsvc.compare.gate_report import Comparison, Outcome, Report
from evalsvc.compare.gate_rules import EVERYTHING, Rule, Rules, read_rules
from evalsvc.compare.source import Service
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.messages import ShardError
from evalsvc.spec.documents import Evaluation
from evalsvc.spec.protocol import MetricValue, Protocol


def judge(before: MetricValue, after: MetricValue, **rule: Any) -> Comparison:
    (comparison,) = compare(result(after), result(before), [Rule(metric=before.name, **rule)]).comparisons
    return comparison


def report(candidate: Sequence[MetricValue], baseline: Sequence[MetricValue], *rules: Rule) -> Report:
    return compare(result(*candidate), result(*baseline, name="baseline"), rules or (Rule(metric="*"),))


def verdicts(found: Report) -> dict[str, str]:
    return {comparison.metric: comparison.verdict for comparison in found.comparisons}


@pytest.mark.parametrize("rules", [EVERYTHING, (Rule(metric="pairs/*"),)])
def test_patterns_judge_no_perplexities(rules: Sequence[Rule]) -> None:
    """A loss that got worse counted twice, and the false alarms of a gate with it."""
    sides = [result(*(value(f"pairs/{name}", number) for name in ("text", "text_perplexity"))) for number in (1.0, 2.0)]
    found = compare(sides[1], sides[0], rules)
    assert (verdicts(found), found.alarms.metrics) == ({"pairs/text": "worse"}, 1)
    named = compare(sides[1], sides[0], (*rules, Rule(metric="pairs/text_perplexity", absolute=9.0)))
    assert verdicts(named) == {"pairs/text": "worse", "pairs/text_perplexity": "within_tolerance"}
    alone = result(value("pairs/text_perplexity", 1.0))
    assert verdicts(compare(alone, alone, rules)) == {"pairs/text_perplexity": "within_tolerance"}


@pytest.mark.parametrize("missing", ["fail", "ignore"])
def test_a_pattern_for_perplexities_only_is_a_problem(missing: str) -> None:
    """Such a rule judges nothing, and must not guard nothing in silence."""
    side = result(value("pairs/text", 1.0), value("pairs/text_perplexity", 2.0))
    found = compare(side, side, (Rule(metric="*_perplexity", missing=missing), Rule(metric="*")))
    said = "such as pairs/text_perplexity; write the whole name of one, or a rule for pairs/text"
    problem = f"the rule for *_perplexity matches only metrics that repeat the verdict of another, {said}"
    assert (found.outcome, found.problems) == (Outcome.NOT_JUDGED, (problem,))


class TestVerdict:
    @pytest.mark.parametrize(("direction", "verdict"), [("lower", "worse"), ("higher", "better")])
    def test_direction(self, direction: str, verdict: str) -> None:
        """The metric's own, which a rule may turn."""
        assert judge(value("a/b", 1.0, direction=direction), value("a/b", 1.1)).verdict == verdict
        turned = "lower" if direction == "higher" else "higher"
        assert judge(value("a/b", 1.0, direction=turned), value("a/b", 1.1), direction=direction).verdict == verdict

    def test_the_larger_tolerance_counts(self) -> None:
        for absolute, relative, verdict in (
            (0.29, 0.14, "worse"),
            (0.31, 0.01, "within_noise"),
            (0.01, 0.16, "within_noise"),
        ):
            assert judge(value("a/b", 2.0), value("a/b", 2.3), absolute=absolute, relative=relative).verdict == verdict

    @pytest.mark.parametrize("stderr", [0.1, None])
    def test_not_finite(self, stderr: float | None) -> None:
        """A diverged checkpoint must not pass because NaN compares with nothing."""
        sides = ((1.0, math.nan), (1.0, -math.inf), (math.inf, 1.0), (math.nan, math.nan), (-math.inf, 1.0))
        found = [judge(*(value("a/b", number, stderr) for number in side)).verdict for side in sides]
        assert found == ["worse", "better", "better", "within_tolerance", "worse"]

    @pytest.mark.parametrize("errors", [(None, None), (None, 0.001), (math.inf, 0.001)])
    def test_without_error_and_tolerance_nothing_is_judged(self, errors: tuple[float | None, float | None]) -> None:
        """The error of one side is narrower than that of the difference: as noise it failed builds."""
        found = report(*([value("a/b", number, error)] for number, error in zip((9.0, 1.0), errors, strict=True)))
        assert (found.outcome, verdicts(found)) == (Outcome.NOT_JUDGED, {"a/b": "not_judged"})
        (one,) = found.comparisons
        assert one.basis == "none"
        assert one.reason.endswith("(--rules) a tolerance, `absolute` or `relative`, which then decides alone")


class TestRules:
    def test_the_first_rule_that_matches_counts_and_what_none_matches_is_not_judged(self) -> None:
        names = ("arc/acc", "piqa/acc", "a/b")
        metrics, lower = ([value(name, number, direction="higher") for name in names] for number in (0.5, 0.3))
        found = report(lower, metrics, Rule(metric="arc/acc", absolute=0.3), Rule(metric="*/acc"))
        assert verdicts(found) == {"arc/acc": "within_tolerance", "piqa/acc": "worse"}

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
        assert new.problems == ("the rule for a/* matches no metric of the baseline; measure the baseline again",)
        ignored = report(metrics, metrics, Rule(metric="pairs/image"), Rule(metric="x/y", missing="ignore"))
        assert ignored.outcome == Outcome.PASSED


def test_a_task_that_met_nan_is_worse_in_every_metric() -> None:
    """The exit code was 2, as for a metric that is missing."""
    baseline = result(value("arc/acc", 0.5), value("pairs/image", 1.0), value("pairs/text", 1.0), name="baseline")
    candidate = result(value("arc/acc", 0.5), errors={"pairs": "layer 3 has NaN"}, code="non_finite")
    for rules in (EVERYTHING, (Rule(metric="*", missing="ignore", absolute=100),)):
        found = compare(candidate, baseline, rules)
        assert found.outcome == Outcome.REGRESSION
        assert verdicts(found) == {"arc/acc": "within_tolerance", "pairs/image": "worse", "pairs/text": "worse"}
        worse = found.comparisons[1]
        assert (worse.reason, worse.baseline) == ("the candidate's task pairs failed: layer 3 has NaN", 1.0)
        assert math.isnan(worse.candidate)


def test_a_baseline_without_values() -> None:
    """A wrong suite gave `no baseline`, which a CI takes for its first build."""
    untried = "invalid_data", "invalid_suite", "invalid_layout", "asset_missing"
    for code in (*untried, "non_finite", "not_a_checkpoint", "out_of_memory"):
        found = without_baseline("candidate", result(name="baseline", errors={"pairs": "why"}, code=code))
        outcome = Outcome.NOT_JUDGED if code in untried else Outcome.NO_BASELINE
        assert (found.outcome, found.problems) == (outcome, ("baseline has no values; pairs: why",))


class TestNotJudged:
    @pytest.mark.parametrize("task", ["pairs", "quick/pairs"])
    def test_missing_is_named_with_the_tasks_error(self, task: str) -> None:
        candidate = result(value("arc/acc", 0.5), errors={task: "out of memory"})
        found = compare(candidate, result(value("arc/acc", 0.5), value("pairs/image", 1.0)))
        assert (found.outcome, verdicts(found)["pairs/image"]) == (Outcome.NOT_JUDGED, "missing")
        assert found.comparisons[1].reason == "the candidate's task pairs failed: out of memory"

    def test_values_of_one_side(self) -> None:
        for candidate, baseline, missing, outcome, expected in (
            ({"a/b": 2}, {"a/b": 1, "a/c": 1}, "fail", Outcome.REGRESSION, {"a/b": "worse", "a/c": "missing"}),
            ({"a/b": 1}, {"a/b": 1, "a/c": 1}, "ignore", Outcome.PASSED, {"a/b": "within_tolerance", "a/c": "ignored"}),
            ({}, {"a/b": 1}, "ignore", Outcome.NOT_JUDGED, {"a/b": "ignored"}),
            ({"a/b": 1, "a/d": 1}, {"a/b": 1}, "fail", Outcome.PASSED, {"a/b": "within_tolerance", "a/d": "new"}),
        ):
            sides = ([value(name, number) for name, number in side.items()] for side in (candidate, baseline))
            found = report(*sides, Rule(metric="a/*", missing=missing))
            assert (found.outcome, verdicts(found)) == (outcome, expected)
            assert all(problem.startswith("nothing was compared") for problem in found.problems)


class TestProtocol:
    def guided(self, scale: float, number: float = 1.0, **more: Any) -> MetricValue:
        content = {"sampling": {"guidance_scale": scale, "seed": 0}, "data": "ab" * 32, **more}
        return value("digits/fid", number, protocol=Protocol(content))

    def test_another_protocol_is_refused_and_the_nearest_named(self) -> None:
        candidate = [self.guided(3.0, limit=64, data="cd"), self.guided(3.0, limit=64)]
        found = report(candidate, [self.guided(1.5, 0.5)])
        assert (found.outcome, verdicts(found)) == (Outcome.NOT_JUDGED, {"digits/fid": "other_protocol"})
        (one,) = found.comparisons
        assert one.reason.startswith(
            "measured by another protocol and not comparable: sampling.guidance_scale 1.5 → 3.0, limit (none) → 64;"
        )
        assert (one.baseline, one.candidate, one.difference) == (0.5, 1.0, None)

    def seeded(self, seed: int, scale: float = 1.0, number: float = 1.0, **more: Any) -> MetricValue:
        content = {"sampling": {"guidance_scale": scale, "seed": seed}, **more}
        return value("digits/agreement", number, protocol=Protocol(content), items=("read",), n=20)

    def test_two_seeds_are_compared_only_where_that_is_asked_for(self) -> None:
        """Nobody could measure the noise of the sampling by the gate."""
        items = {seed: [{"index": at, "read": at * seed} for at in range(20)] for seed in (1, 2)}
        sides = [result(self.seeded(seed, number=9.5 * seed), items={"digits": rows}) for seed, rows in items.items()]
        (refused,) = compare(sides[1], sides[0]).comparisons
        assert refused.verdict == "other_protocol"
        assert refused.reason.endswith("sampling.seed 1 → 2; evaluate one of the two again, or give --across-seeds")
        (judged,) = compare(sides[1], sides[0], across=["seeds"]).comparisons
        assert (judged.verdict, judged.basis) == ("worse", "paired")
        assert judged.reason.endswith("; measured under two seeds: sampling.seed 1 → 2")

    def test_across_seeds_nothing_else_may_differ(self) -> None:
        """Another guidance scale is as near as another seed, and was taken first."""
        found = [
            compare(result(self.seeded(1, **more)), result(self.seeded(0)), across=["seeds"])
            for more in ({"scale": 3.0}, {"limit": 8})
        ]
        assert [verdicts(one)["digits/agreement"] for one in found] == ["other_protocol"] * 2
        assert not any("--across-seeds" in one.comparisons[0].reason for one in found)
        unknown = [read_document("x", document(self.seeded(seed)) | {"protocols": {}}) for seed in (1, 2)]
        assert verdicts(compare(*unknown, across=["seeds"])) == {"digits/agreement": "other_protocol"}
        candidate = result(self.seeded(0, 3.0), self.seeded(1, 1.0))
        (judged, new) = compare(candidate, result(self.seeded(0, 1.0)), across=["seeds"]).comparisons
        assert (judged.verdict, new.verdict) == ("within_tolerance", "new")
        assert "sampling.seed 0 → 1" in judged.reason

    def test_external_images_are_paired_by_the_ids_of_prompts(self) -> None:
        """Both sides number their items from 0, whichever prompts they have: by number, nothing would pair rightly."""
        measured = {"estimator": "clip", "clip": "ab"}
        sampled, given = (
            Protocol(measured | {"task": task, "sampling": sampling, "prompts": task})
            for task, sampling in (("text_to_image", {"seed": 0}), ("images", "external"))
        )
        keys: dict[str, Any] = {"items": ("clip_score",), "n": 20}
        rows = [{"index": at, "id": f"p{at}", "clip_score": at % 7} for at in range(20)]
        better = [{"index": at, "id": row["id"], "clip_score": 9 + at % 3} for at, row in enumerate(rows[:1:-1])]
        baseline = result(value("coco/clip_score", 3.0, protocol=sampled, **keys), items={"coco": rows})
        candidate = result(value("coco/clip_score", 10.0, protocol=given, **keys), items={"coco": better})
        (refused,) = compare(candidate, baseline).comparisons
        assert refused.reason.endswith("evaluate one of the two again, or give --across-sampling")
        (judged,) = compare(candidate, baseline, across=["sampling"]).comparisons
        assert judged.difference is not None
        assert (judged.basis, judged.difference.n, judged.difference.n_only_baseline) == ("paired", 18, 2)
        assert "external images against sampled ones: task" in judged.reason
        pairs = {row["id"]: row["clip_score"] for row in better}
        change = [pairs[row["id"]] - row["clip_score"] for row in rows if row["id"] in pairs]
        assert judged.difference.value == pytest.approx(sum(change) / 18)

    def test_across_sampling_both_sides_were_measured_alike(self) -> None:
        measured: dict[str, Any] = {"estimator": "fid", "n": 64, "sampling": "external"}
        sides = [value("coco/fid", 3.0, protocol=Protocol(measured | more)) for more in ({}, {"sampling": {"seed": 0}})]
        for more in (
            {"n": 65},
            {"estimator": "other"},
            {"compared": {"size": 64}},
            {"prompts": "other", "sampling": "external"},
        ):
            other = value("coco/fid", 4.0, protocol=Protocol(measured | {"sampling": {"seed": 0}} | more))
            (judged,) = compare(result(sides[0]), result(other), across=["sampling", "seeds"]).comparisons
            assert judged.verdict == "other_protocol"
            assert "--across-sampling" not in judged.reason
        (judged,) = compare(result(sides[0]), result(sides[1]), across=["sampling"]).comparisons
        assert judged.verdict == "within_tolerance"

    @pytest.mark.parametrize("missing", ["fail", "ignore"])
    def test_each_value_stands_against_one_value_of_the_baseline(self, missing: str) -> None:
        """The other is missing; whatever that means by the rule, a value of another protocol does not pass."""
        other = "missing" if missing == "fail" else "ignored"
        for candidate, baseline, expected in (
            ((1.0,), (1.0, 3.0), ["within_tolerance", other]),
            ((1.0, 3.0), (1.0,), ["within_tolerance", "new"]),
            ((5.0,), (1.0, 3.0), ["other_protocol", other]),
        ):
            sides = ([self.guided(scale) for scale in scales] for scales in (candidate, baseline))
            found = report(*sides, Rule(metric="digits/*", missing=missing))
            assert [one.verdict for one in found.comparisons] == expected
        assert found.outcome == Outcome.NOT_JUDGED


def test_no_candidate(tmp_path: Path) -> None:
    """A wrong name for both must not look like a first run, which CI may let pass. Files need no service."""
    there, nowhere = tmp_path / "before.json", str(tmp_path / "nowhere.json")
    there.write_text(json.dumps(document(value("a/b", 1.0))))
    with Client("http://127.0.0.1:9") as client:
        for baseline in (str(there), str(tmp_path / "nothing.json")):
            with pytest.raises(UnknownName, match=r"there is no file .*nowhere\.json"):
                run_gate(nowhere, baseline, EVERYTHING, Service(client))
        assert run_gate(str(there), nowhere, EVERYTHING, Service(client)).outcome == Outcome.NO_BASELINE


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

    def test_what_is_not_over_is_waited_for(self, app: App, client: Client) -> None:
        seen = []

        def look(evaluation: Evaluation) -> None:
            seen.append(evaluation.state)
            app.coordinator.step()

        found = run_gate("run-a@100:ema", "run-a@0", EVERYTHING, Service(client, report=look, every=0.01))
        expected = dict.fromkeys(("loss/text", "loss/image"), "within_tolerance")
        assert (found.outcome, verdicts(found)) == (Outcome.PASSED, expected)
        assert {"queued", "running"} <= set(seen)

    @pytest.mark.parametrize(("candidate", "baseline"), [("run-a@100", "run-a@0"), ("run-a@0", "run-a@100")])
    def test_time_out(self, app: App, client: Client, candidate: str, baseline: str) -> None:
        while client.results("run-a", 100).state != "succeeded":
            app.coordinator.step()
        found = run_gate(candidate, baseline, EVERYTHING, Service(client, timeout=0, every=0.01))
        assert found.outcome == Outcome.TIME_OUT
        assert found.problems[0].startswith("run-a@0: evaluation 1 is queued after 0 s; it goes on; try again, or")

    def test_a_suite_that_nobody_has_is_no_missing_baseline(self, app: App, client: Client, tmp_path: Path) -> None:
        """A CI lets a first build pass; a misspelt suite must not look like one."""
        app.coordinator.work()
        file = tmp_path / "candidate.json"
        file.write_text(json.dumps(document(value("a/b", 1.0))))
        for candidate in (str(file), "run-a@100"):
            with pytest.raises(UnknownName, match="is named 'los'; did you mean 'loss'"):
                run_gate(candidate, "run-a@0", EVERYTHING, Service(client, "los"))
        found = run_gate(str(file), "run-a@7", EVERYTHING, Service(client, "loss"))
        assert found.outcome == Outcome.NO_BASELINE

    def test_a_baseline_that_failed_is_none(self, app: App, client: Client) -> None:
        app.coordinator.error = ShardError("non_finite", "layer 3 has NaN")
        app.coordinator.work()
        found = run_gate("run-a@100", "run-a@0", EVERYTHING, Service(client))
        assert found.outcome == Outcome.NO_BASELINE
        assert found.problems == ("run-a@0 has no values; text: layer 3 has NaN; pairs: layer 3 has NaN",)


PAGE = DOCS / "how-to" / "gate-in-ci.md"


def test_the_rules_of_the_page_are_rules(tmp_path: Path) -> None:
    example = find_block(PAGE, "yaml", "rules:  ")
    (tmp_path / "rules.yaml").write_text(example)
    keys = {key for rule in read_rules(tmp_path / "rules.yaml").rules for key in rule.model_fields_set}
    assert keys == set(Rule.model_fields)
    defaults = dict(re.findall(r"(\w+): .*\[([\w.]+)\]", example))
    assert defaults == {
        key: f"{field.default:g}" if isinstance(field.default, float) else field.default or "any"
        for key, field in Rule.model_fields.items()
        if key not in ("metric", "direction")
    }


def test_the_commands_of_the_workflow_are_ours() -> None:
    steps = yaml.safe_load(find_block(PAGE, "yaml", "cache/restore"))["jobs"]["gate"]["steps"]
    commands = [shlex.split(step["run"])[1:] for step in steps if step.get("run", "").startswith("evalsvc ")]
    assert [command[0] for command in commands] == ["assets", "run", "run", "gate"]
    for name, *arguments in commands[1:]:
        typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def read(folder: Path, text: str) -> Rules:
    path = folder / "rules.yaml"
    path.write_text(text)
    return read_rules(path)


def test_every_key_and_none(tmp_path: Path) -> None:
    """`1e-2` is a string in YAML 1.1."""
    assert read(tmp_path, "rules: [{metric: arc_*/acc}]") == Rules((Rule(metric="arc_*/acc"),), "none")
    assert read_rules(None) == Rules(EVERYTHING, "none")
    keys = {"absolute": 0.01, "relative": 0, "standard_errors": 2, "max_noise": 0.5, "left_out": 0.1}
    keys |= {"direction": "higher", "missing": "ignore", "inconclusive": "fail"}
    text = json.dumps({"rules": [{"metric": "a/b", **keys}], "family": "holm"}).replace("0.01", "1e-2")
    assert read(tmp_path, text) == Rules((Rule(metric="a/b", **keys),), "holm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule: []", "no key is named 'rule'; did you mean 'rules'"),
        ("rules: [{metrics: a/b}]", "rule 1: no key is named 'metrics'; did you mean 'metric'"),
        ("rules: [{metric: a/b}, {absolute: 1}]", "rule 2: metric: field required"),
        ("rules: [{metric: a/b, absolute: -1}]", "rule 1: absolute: .*greater than or equal to 0, found -1"),
        ("rules: [{metric: a/b, relative: .nan}]", "rule 1: relative: .*finite"),
        ("rules: [{metric: a/b, direction: up}]", "rule 1: direction: .*'lower' or 'higher', found 'up'"),
        ("rules: [{metric: a/b, max_noise: 0}]", "rule 1: max_noise: .*greater than 0, found 0"),
        ("rules: [{metric: a/b, left_out: 5}]", "rule 1: left_out: .*less than or equal to 1, found 5"),
        ("{rules: [{metric: a/b}], family: hol}", "no family is named 'hol'; did you mean 'holm'"),
        ("{rules: [{metric: a/b}], family: [1]}", r"no family is named '\[1\]'; available: holm, none"),
        ('rules: [{metric: "a\\n::error::b"}]', "'a\\\\x0a::error::b' has the control character"),
        ("a: &a [1]\nrules: [" + "*a, " * 30_000 + "]", "aliases counted each time"),
        ("rules: [a/b]", "rule 1 is 'a/b'; write a mapping with the key `metric`"),
        ("rules: []", "has no list `rules`; give at least one"),
        ("- metric: a/b", "does not map names to values; write lines such as `rules:"),
        ("rules: [", "is not valid YAML: "),
        ("\x00", "is not valid YAML: "),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read(tmp_path, text)
    assert "rules.yaml" in caught.value.message
    assert "\n" not in caught.value.message


def test_the_level_is_that_of_a_normal_distribution() -> None:
    levels = [Rule(metric="a/b", standard_errors=number).level for number in (3, 2, 0, 50)]
    assert levels == pytest.approx([1 / 740.8, 1 / 43.96, 0.5, 0], rel=1e-4)
