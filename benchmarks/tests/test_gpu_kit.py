"""The kit for a card, on the CPU in small: every section runs, and says so where one number is wrong."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from on_card.catalog import SECTIONS
from on_card.kit import Kit, Section, at_most, goal, holds
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from programs import environment_without

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

ON_TASKS = ("miniature", "pipeline", "loss", "text")
"""Sections that run tasks of evalsvc, or score texts: the others begin below the rooms that know lm-eval."""


WHOLLY = ("noise", "graphs", "places", "sampling", "inception", "footprint", "features", "frechet", "loss", "text")
"""Sections of which every check finds the number that is another. Others also ask for what is no such number: for
example, that a batch is halved where memory runs out."""
PEERS = ("peers", "vllm")
"""Sections that are left out where their package is missing."""


def lacking(section: Section) -> bool:
    return any(importlib.util.find_spec(package) is None for package in section.needs)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_kit(*options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *options],
        cwd=ROOT,
        env=env or {name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )


@pytest.mark.usefixtures("child_process")
@pytest.mark.timeout(300)
def test_one_command_runs_every_section(tmp_path: Path) -> None:
    """Its last line is the document that the file holds."""
    done = run_kit("--device", "cpu", "--small", "--output", str(tmp_path / "gpu.json"))
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads((tmp_path / "gpu.json").read_text())
    failed = {name: document["sections"][name]["reason"] for name in document["failed"]}
    assert (done.returncode, failed) == (0, {}), done.stderr[-3000:]
    states = {name: section["state"] for name, section in document["sections"].items()}
    assert states == {section.name: "left out" if lacking(section) else "done" for section in SECTIONS}
    assert (document["card"]["name"], document["card"]["torch"]) == ("CPU", torch.__version__)


@pytest.mark.usefixtures("child_process")
@pytest.mark.timeout(300)
def test_no_section_needs_lm_eval(tmp_path: Path) -> None:
    """A bare machine with a card has torch and little else."""
    env = environment_without("lm_eval", tmp_path / "hidden")
    done = run_kit("--device", "cpu", "--small", "--only", *ON_TASKS, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert {document["sections"][name]["state"] for name in ON_TASKS} == {"done"}
    assert "lm_eval not installed" in done.stdout, "the package was hidden"


def packages_with(*lines: str) -> set[str]:
    """Return the names of the installed packages that these requirements bring, with all that those require."""
    brought: set[str] = set()
    left = [Requirement(line) for line in lines]
    while left:
        needed = left.pop()
        name = canonicalize_name(needed.name)
        if name not in brought and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            brought.add(name)
            left += map(Requirement, metadata.requires(name) or ())
    return brought


@pytest.mark.usefixtures("child_process")
@pytest.mark.timeout(300)
def test_a_bare_machine_has_every_section_but_the_peers(tmp_path: Path) -> None:
    """It has torch, what `benchmarks/wheels.txt` names, and nothing else."""
    lines = (ROOT / "benchmarks" / "wheels.txt").read_text().splitlines()
    bare = packages_with("torch", *(line for line in lines if not line.startswith("#"))) | {"evalsvc"}
    owners = metadata.packages_distributions().items()
    hidden = [module for module, names in owners if not bare.intersection(map(canonicalize_name, names))]
    assert {"transformers", "lm_eval", "scipy"} <= {*hidden}
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import sys\n\nsys.modules |= dict.fromkeys({hidden!r})\n")
    done = run_kit("--device", "cpu", "--small", env=os.environ | {"PYTHONPATH": str(folder)})
    document = json.loads(done.stdout.splitlines()[-1])
    found = {name: (section["state"], section["reason"]) for name, section in document["sections"].items()}
    assert (done.returncode, {name for name, (state, _) in found.items() if state != "done"}) == (0, {*PEERS}), found
    assert "transformers not installed" in found["peers"][1]


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(
    "section", [section for section in SECTIONS if section.name != "vllm"], ids=lambda section: section.name
)
def test_a_section_fails_where_one_number_is_another(section: Section) -> None:
    kit = Kit(CPU, small=True, disturb=True)
    checks = {row.what: row.met for row in section.run(kit) if row.kind == "check"}
    assert kit.touches > 0
    found = [what for what, met in checks.items() if not met]
    assert found == list(checks) if section.name in WHOLLY else found, checks


@pytest.mark.usefixtures("child_process")
def test_it_stops_at_its_time_limit_with_what_it_has() -> None:
    begun = time.monotonic()
    done = run_kit("--device", "cpu", "--only", "machine", "places", "--minutes", "0.3")
    assert time.monotonic() - begun < 30
    assert done.returncode == 0
    sections = json.loads(done.stdout.splitlines()[-1])["sections"]
    assert sections["machine"]["state"] in ("done", "stopped", "not begun")
    assert sections["places"]["state"] in ("stopped", "not begun")


@pytest.mark.usefixtures("child_process")
@pytest.mark.parametrize("package", ["torch", "numpy"])
def test_a_package_without_which_nothing_runs_is_named(tmp_path: Path, package: str) -> None:
    done = run_kit("--device", "cpu", "--small", env=environment_without(package, tmp_path / "hidden"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == gpu.LACKS.format(package=package)
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("child_process")
def test_a_device_that_is_not_there_is_refused_with_what_to_do() -> None:
    done = run_kit("--device", "cuda:7", "--small")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("give another, or cpu")
    assert "Traceback" not in done.stderr


ENDS = {"event": "end", "state": "done", "seconds": 1.0}


def begins(section: str) -> dict[str, Any]:
    return {"event": "begin", "section": section, "until": time.monotonic() + 60}


def scripted(monkeypatch: pytest.MonkeyPatch, *lives: list[dict[str, Any]]) -> list[list[str]]:
    """Processes that say these events in turn; returns which sections each was given."""
    given: list[list[str]] = []
    scripts = iter(lives)

    def events(names: list[str], options: Any, deadline: float) -> Iterator[dict[str, Any]]:
        given.append(list(names))
        yield from (dict(event) for event in next(scripts))

    monkeypatch.setattr(gpu, "_events", events)
    return given


def outcomes_of(*names: str) -> gpu.Kept:
    arguments = argparse.Namespace(device="cpu", small=True, minutes=1.0, output=None)
    return gpu.Kept(arguments, {name: gpu.Outcome("right") for name in names})


@pytest.mark.usefixtures("child_process")
def test_what_takes_its_process_down_costs_no_other_section(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scripted(monkeypatch, [begins("a")], [begins("b"), ENDS])
    kept = outcomes_of("a", "b")
    gpu.run_all(kept, time.monotonic() + 60)
    assert given == [["a", "b"], ["b"]]
    assert (kept.outcomes["a"].state, kept.outcomes["a"].reason) == ("failed", "its process died")
    assert kept.outcomes["b"].state == "done"
    assert kept.failed == ["a"]


@pytest.mark.usefixtures("child_process")
def test_a_section_has_half_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compilation of a peer took the minutes of all that came after it."""
    sections = tmp_path / "sections.py"
    sections.write_text("""
import json, sys, time
for name in sys.argv[sys.argv.index("--only") + 1 :]:
    if name != "--small":
        print(json.dumps({"event": "begin", "section": name}), flush=True)
        time.sleep({"slow": 60, "last": 4}.get(name, 0))
        print(json.dumps({"event": "end", "state": "done", "seconds": 1.0}), flush=True)
""")
    monkeypatch.setattr(gpu, "HERE", sections)
    kept = outcomes_of("slow", "quick", "last")
    gpu.run_all(kept, time.monotonic() + 12)
    found = [(outcome.state, outcome.reason) for outcome in kept.outcomes.values()]
    assert found == [("stopped", "its half of the time left is over"), ("done", ""), ("done", "")]


def test_a_check_that_fails_fails_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"event": "row", "what": "x", "value": 2.0, "unit": "", "kind": "check", "bound": "≤ 1", "met": False}
    missed = row | {"what": "y", "kind": "goal"}
    scripted(monkeypatch, [begins("a"), row, ENDS, begins("b"), missed, ENDS])
    kept = outcomes_of("a", "b")
    gpu.run_all(kept, time.monotonic() + 60)
    assert kept.failed == ["a"], "a goal that is missed is no failure"
    assert kept.outcomes["a"].reason == "not as it should be: x"


def test_the_rest_is_asked_as_small_as_the_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    gpu._print_summary(outcomes_of("a"))
    assert "to go on  python benchmarks/gpu.py --device cpu --small --only a\n" in capsys.readouterr().out


def test_a_kit_that_cannot_begin_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scripted(monkeypatch, [])
    kept = outcomes_of("a", "b")
    gpu.run_all(kept, time.monotonic() + 60)
    assert len(given) == 1
    assert kept.failed == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (at_most("error", 1.0, 1.0), True),
        (at_most("error", float("nan"), 1.0), False),
        (holds("equal", False), False),
        (goal("rate", 0.8, 0.8), True),
        (goal("share", 0.06, 0.05, below=True), False),
    ],
)
def test_a_row_says_whether_its_bound_is_met(row: Any, met: bool) -> None:
    assert row.met is met
