"""`evalsvc gate`: its exit codes, and what it prints and writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from console import Result, Shell
from gate_documents import document, read_junit, value

from evalsvc.spec.protocol import Protocol

PAIRS = [{"index": index, "nll": 1.0 + index % 7} for index in range(100)]


def measured(rise: float, spread: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A result whose items have risen by `rise` in the mean, each by up to `spread` more or less."""
    items = [item | {"nll": item["nll"] + rise + (spread if item["index"] % 2 else -spread)} for item in PAIRS]
    mean = sum(item["nll"] for item in items) / len(items)
    return document(value("pairs/image", mean, 0.2, items=("nll",), **fields), items={"pairs": items})


def gate(evalsvc: Shell, candidate: Any, baseline: Any, options: str = "") -> Result:
    for name, content in (("candidate", candidate), ("baseline", baseline)):
        if content is not None:
            Path(f"{name}.json").write_text(json.dumps(content))
    return evalsvc(f"gate candidate.json --baseline baseline.json {options}")


def test_a_situation_in_every_form(evalsvc: Shell) -> None:
    for candidate, baseline, code, headline, annotation in (
        (measured(0), None, 3, "no baseline: there is no file", "::error title=gate::there is no file"),
        (measured(0.1, 0.2), measured(0), 1, "regression: 1 worse", "::error title=pairs/image::worse by"),
    ):
        Path("summary.md").write_text("# Build 7\n\n")
        outputs = "--output report.json --junit report.xml --markdown summary.md --annotations"
        result = gate(evalsvc, candidate, baseline, outputs)
        assert (result.code, result.err) == (code, "")
        lines = result.out.splitlines()
        assert lines[-1].startswith(headline)
        assert [line.startswith(annotation) for line in lines if line.startswith("::")] == [True]
        assert ("pairs/image" in result.out) == ("gate::" not in annotation)
        assert json.loads(Path("report.json").read_text())["exit_code"] == code
        assert read_junit(Path("report.xml").read_bytes())[0].get("tests") == "1"
        assert Path("summary.md").read_text().startswith(f"# Build 7\n\n### Gate: {headline}")


def test_rules_and_the_family_of_the_option_before_theirs(evalsvc: Shell) -> None:
    Path("rules.yaml").write_text("rules: [{metric: pairs/*, absolute: 0.15}]")
    assert gate(evalsvc, measured(0.1, 0.2), measured(0), "--rules rules.yaml").code == 0
    assert gate(evalsvc, measured(0.2, 0.2), measured(0), "--rules rules.yaml").code == 1
    Path("rules.yaml").write_text("{rules: [{metric: '*'}], family: holm}")
    for option, family in (("", "holm"), ("--family none", "none")):
        options = f"--rules rules.yaml --output report.json {option}"
        result = gate(evalsvc, measured(0.0, 0.2), measured(0), options)
        assert json.loads(Path("report.json").read_text())["alarms"]["family"] == family
        assert "false alarms: 1 metric, at a level of 0.00135" in result.out
    refused = gate(evalsvc, measured(0), measured(0), "--output .")
    words = "--output . cannot be written: is a directory; name another file [invalid_request]"
    assert (refused.code, words in refused.err) == (2, True)


@pytest.mark.usefixtures("wide_pipe")
def test_two_seeds(evalsvc: Shell) -> None:
    sides = [measured(0.0, 0.2 * seed, protocol=Protocol({"sampling": {"seed": seed}})) for seed in (0, 1)]
    refused = gate(evalsvc, *sides)
    assert (refused.code, "or give --across-seeds" in refused.out) == (2, True)
    judged = gate(evalsvc, *sides, "--across-seeds")
    assert (judged.code, "measured under two seeds: sampling.seed 1 → 0" in judged.out) == (0, True)


def test_a_service_is_asked_as_long_as_it_takes_and_no_longer(evalsvc: Shell, service: Any, weights: Path) -> None:
    for step in (0, 400):
        evalsvc(f"submit run-a {step} {weights} --suite loss")
    line = "gate run-a@400 --baseline run-a@0 --suite loss"
    late = evalsvc(f"{line} --timeout 0")
    assert (late.code, late.err) == (4, "evaluation 1 (loss) is queued\n")
    service.coordinator.work()
    assert evalsvc(line).code == 0
