"""`evalsvc gate`: its exit codes, and what it prints and writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from console import Command, Result
from gate_documents import document, read_junit
from gate_documents import value as metric_value

from evalsvc.spec.protocol import Protocol

PAIRS = [{"index": index, "nll": 1.0 + index % 7} for index in range(100)]


def measured(rise: float, spread: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A result whose items have risen by `rise` in the mean, each by up to `spread` more or less."""
    items = [item | {"nll": item["nll"] + rise + (spread if item["index"] % 2 else -spread)} for item in PAIRS]
    mean = sum(item["nll"] for item in items) / len(items)
    return document(metric_value("pairs/image", mean, 0.2, items=("nll",), **fields), items={"pairs": items})


class TestGate:
    """Situations, and what each is in every form that there is."""

    OUTPUTS = ("--output", "report.json", "--junit", "report.xml", "--markdown", "summary.md", "--annotations")

    def gate(self, command: Command, candidate: Any, baseline: Any, *options: str) -> Result:
        for name, content in (("candidate", candidate), ("baseline", baseline)):
            if content is not None:
                Path(f"{name}.json").write_text(json.dumps(content))
        return command("gate", "candidate.json", "--baseline", "baseline.json", *options)

    @pytest.mark.parametrize(
        ("candidate", "baseline", "code", "headline", "annotation"),
        [
            (measured(0.1, 0.2), measured(0), 1, "regression: 1 worse", "::error title=pairs/image::worse by"),
            (document(), measured(0), 2, "not judged: 1 missing", "::error title=pairs/image::not in the candidate"),
            (measured(0), None, 3, "no baseline: there is no file", "::error title=gate::there is no file"),
            (
                document(errors={"pairs": "layer 3 has NaN"}, code="non_finite"),
                measured(0),
                1,
                "regression: 1 worse",
                "::error title=pairs/image::the candidate's task pairs failed: layer 3 has NaN",
            ),
            (
                measured(0),
                document(errors={"pairs": "a.jsonl is not there"}, code="invalid_data"),
                2,
                "not judged: baseline.json has no values; pairs: a.jsonl is not there",
                "::error title=gate::baseline.json has no values",
            ),
        ],
        ids=["worse", "missing", "no-baseline", "nan", "wrong-suite"],
    )
    def test_situation(
        self, command: Command, candidate: Any, baseline: Any, code: int, headline: str, annotation: str
    ) -> None:
        Path("summary.md").write_text("# Build 7\n\n")
        result = self.gate(command, candidate, baseline, *self.OUTPUTS)
        assert (result.code, result.err) == (code, "")
        lines = result.out.splitlines()
        assert lines[-1].startswith(headline)
        assert [line.startswith(annotation) for line in lines if line.startswith("::")] == [True]
        assert ("pairs/image" in result.out) == ("gate::" not in annotation)
        assert json.loads(Path("report.json").read_text())["exit_code"] == code
        assert read_junit(Path("report.xml").read_bytes())[0].get("tests") == "1"
        assert Path("summary.md").read_text().startswith(f"# Build 7\n\n### Gate: {headline}")

    def test_rules(self, command: Command) -> None:
        Path("rules.yaml").write_text("rules: [{metric: pairs/*, absolute: 0.15}]")
        rules = ("--rules", "rules.yaml")
        assert self.gate(command, measured(0.1, 0.2), measured(0), *rules).code == 0
        assert self.gate(command, measured(0.2, 0.2), measured(0), *rules).code == 1

    @pytest.mark.parametrize(("option", "family"), [((), "holm"), (("--family", "none"), "none")])
    def test_the_level_may_be_that_of_all_metrics(self, command: Command, option: tuple[str, ...], family: str) -> None:
        """The option counts before the file of rules."""
        Path("rules.yaml").write_text("{rules: [{metric: '*'}], family: holm}")
        report = ("--rules", "rules.yaml", "--output", "report.json")
        result = self.gate(command, measured(0.0, 0.2), measured(0), *report, *option)
        assert json.loads(Path("report.json").read_text())["alarms"]["family"] == family
        assert "false alarms: 1 metric, at a level of 0.00135" in result.out

    @pytest.mark.usefixtures("wide_pipe")
    def test_two_seeds(self, command: Command) -> None:
        sides = [measured(0.0, 0.2 * seed, protocol=Protocol({"sampling": {"seed": seed}})) for seed in (0, 1)]
        refused = self.gate(command, *sides)
        assert (refused.code, "or give --across-seeds" in refused.out) == (2, True)
        judged = self.gate(command, *sides, "--across-seeds")
        assert (judged.code, "measured under two seeds: sampling.seed 1 → 0" in judged.out) == (0, True)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--rules", "nowhere.yaml"], "the file of --rules nowhere.yaml cannot be read: no such file"),
            (
                ["--junit", "no/report.xml"],
                "--junit no/report.xml: the folder no does not exist; create the folder first",
            ),
            (
                ["--across-seeds", "--until", "decided"],
                "--across-seeds is given with --until decided, which samples both sides with one seed; leave the",
            ),
            (["--output", "."], "--output . cannot be written: is a directory; name another file [invalid_request]"),
        ],
    )
    def test_bad_argument(self, command: Command, options: list[str], words: str) -> None:
        result = self.gate(command, measured(0), measured(0), *options)
        assert result.code == 2
        assert words in result.err

    def test_service(self, command: Command, service: Any, weights: Path) -> None:
        """Values of the service, which is asked as long as it takes, and no longer."""
        for step in (0, 400):
            command("submit", "run-a", str(step), str(weights), "--suite", "loss")
        arguments = ("gate", "run-a@400", "--baseline", "run-a@0", "--suite", "loss")
        late = command(*arguments, "--timeout", "0")
        assert (late.code, late.err) == (4, "evaluation 1 (loss) is queued\n")
        service.coordinator.work()
        assert command(*arguments).code == 0
