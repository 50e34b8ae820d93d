"""The harness as CI runs it: a measurement, and the gate over its output, in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench
import jsonschema
import pytest
import yaml
from harness import document
from harness.document import BenchDocument

ROOT = Path(__file__).parents[3]
SUITES = ROOT / "benchmarks" / "suites"
MINIATURE = ROOT / "evalsvc" / "miniature"


@dataclass(frozen=True)
class Measured:
    """What a run of the harness left."""

    folder: Path
    printed: str
    seconds: float

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "candidate.json").read_text())
        return content


def measure(suite: Path, folder: Path, *options: str) -> Measured:
    begun = time.monotonic()
    done = run_bench(str(suite), "--output", str(folder), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return Measured(folder, done.stdout, time.monotonic() - begun)


def run_bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench.py", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def gate(measured: Measured, rules: Path, baseline: Path | None = None) -> tuple[int, dict[str, str]]:
    """The exit code of `evalsvc gate`, and its verdicts by metric."""
    report = measured.folder / "gate.json"
    files = [str(measured.folder / "candidate.json"), "--baseline", str(baseline or measured.folder / "baseline.json")]
    command = [sys.executable, "-m", "evalsvc.cli", "gate", *files, "--rules", str(rules), "--output", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert report.is_file(), done.stdout + done.stderr
    comparisons = json.loads(report.read_text())["comparisons"]
    return done.returncode, {each["metric"]: each["verdict"] for each in comparisons}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A suite of a few sequences, with the rules of the repository that are about them next to it."""
    loss = {"kind": "loss", "data": str(MINIATURE / "heldout_pairs.jsonl"), "limit": 16}
    content = {
        "checkpoint": {
            "weights": str(MINIATURE / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt"),
            "layout": str(MINIATURE / "runs" / "layout.yaml"),
        },
        "headline": ["pairs/image"],
        "quality": [{**loss, "name": "pairs"}],
        "speed": {"turns": 8, "tasks": [loss]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    chosen = [{"metric": "speed-*/cpu_seconds", "relative": 0.15}, {"metric": "pairs/image"}]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"rules": chosen}))
    return path


@pytest.mark.usefixtures("child_process")
def test_a_measurement_is_a_document_that_the_gate_reads(tiny: Path, tmp_path: Path) -> None:
    """With damage and a slow-down on purpose: losses become worse than those of the run before, and calls longer."""
    history, rules = tmp_path / "history.jsonl", tmp_path / "rules.yaml"
    before = measure(tiny, tmp_path / "before", "--against", "none", "--history", str(history))
    jsonschema.validate(before.content, document.schema())
    healthy = BenchDocument.model_validate(before.content)
    assert [timed.problem for timed in healthy.timed] == ["no code to compare with was given"]
    assert json.loads(before.printed.splitlines()[-1])["benchmark"] == "bench"
    assert "pairs/image" in before.printed
    assert len(history.read_text().splitlines()) == 1
    assert (tmp_path / "before" / "history" / "index.md").is_file()
    assert list((tmp_path / "before" / "work").glob("*")) == []

    drills = ["--drill-slower", "2.0", "--drill-damage", "1.05"]
    worse = measure(tiny, tmp_path / "worse", "--against", str(ROOT), *drills)
    assert worse.content["drill"] == "calls slower by 2, a layer scaled by 1.05"
    [timed] = BenchDocument.model_validate(worse.content).timed
    assert timed.cpu is not None
    assert timed.cpu.mean > 1.5
    # The values of the run before stand for stored ones; its times are those of another run.
    code, verdicts = gate(worse, rules, tmp_path / "before" / "candidate.json")
    assert (code, verdicts["pairs/image"]) == (1, "worse")
    assert verdicts["speed-loss/cpu_seconds"] == "other_protocol"
    code, verdicts = gate(worse, rules)
    assert (code, verdicts["speed-loss/cpu_seconds"]) == (1, "worse")


@pytest.mark.usefixtures("child_process")
@pytest.mark.long
@pytest.mark.timeout(900)
def test_quick_passes_and_fails_for_a_slow_down_and_for_damage(tmp_path: Path) -> None:
    """The suite of CI against the stored baseline: below three minutes, on whatever else this machine does."""
    quick, rules = SUITES / "quick.yaml", SUITES / "rules.yaml"
    clean = measure(quick, tmp_path / "clean")
    assert clean.seconds < 180
    assert gate(clean, rules)[0] == 0, gate(clean, rules)[1]
    code, verdicts = gate(measure(quick, tmp_path / "slow", "--drill-slower", "0.3"), rules)
    assert code == 1
    assert {metric for metric, verdict in verdicts.items() if verdict == "worse"} >= {
        f"speed-{task}/cpu_seconds" for task in ("loss", "sampling", "reconstruction")
    }
    code, verdicts = gate(measure(quick, tmp_path / "damaged", "--drill-damage", "1.05", "--against", "none"), rules)
    assert code == 1
    assert verdicts["pairs/image"] == "worse"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "the suite is missing"),
        (["suite.yaml", "--drill-slower", "0.3", "--store"], "a drill is no measurement"),
        (["suite.yaml", "--drill-damage", "1.05", "--history", "a"], "a drill is no measurement"),
        (["suite.yaml", "--drill-slower", "-1"], "give a share"),
    ],
)
def test_wrong_options_are_refused(options: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.parse(options)
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Calls the program in this process: its exit code, and what it says on standard error."""

    def call(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bench.py", *options])
        with pytest.raises(SystemExit) as caught:
            bench.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err

    return call


def test_what_is_wrong_is_said_in_a_line(tiny: Path, tmp_path: Path, called: Callable[..., tuple[int, str]]) -> None:
    """Before anything is measured, and without a trace."""
    output = str(tmp_path / "output")
    for options, words in (
        ([str(tmp_path / "missing.yaml"), "--output", output], "missing.yaml cannot be read"),
        ([str(tiny), "--output", output, "--against", "0" * 40], "fetch the whole history"),
        ([str(tiny), "--output", str(tiny)], "tiny.yaml"),
    ):
        code, said = called(*options)
        assert (code, said.count("\n")) == (2, 1), said
        assert words in said
