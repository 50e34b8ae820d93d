"""`action.yml`: its shell steps run as on a runner, with inputs that a stranger may have written. And the files that
GitHub runs: valid by its schemas, and with no more rights than they need."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from app_in_process import app_on_port
from programs import lacking

from evalsvc.miniature import ROOT as MINIATURE

ROOT = Path(__file__).parents[1]
ACTION = ROOT / "action.yml"

SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail")

COMMAND = re.compile(r"::([\w-]+)( .*?)?::(.*)")


@dataclass
class ActionRun:
    code: int = 0
    log: str = ""
    step_outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""

    @property
    def commands(self) -> list[str]:
        obeyed, resume = [], None
        for line in self.log.splitlines():
            text = line.lstrip()
            if resume is not None:
                resume = None if text == f"::{resume}::" else resume
            elif command := COMMAND.match(text):
                obeyed.append(command[1])
                resume = command[3] if command[1] == "stop-commands" else None
        return obeyed


def run_action(file: Path, inputs: Mapping[str, str], environment: Mapping[str, str], folder: Path) -> ActionRun:
    """Run the shell steps of an `action.yml` in a folder as a runner does; steps with `uses` are not run. Only the
    expressions `inputs.NAME`, `steps.ID.outputs.NAME` and `github.action_path` are known."""
    action = yaml.safe_load(file.read_text())
    assert set(inputs) <= set(action["inputs"]), "the action has these inputs"
    values = {name: str(item.get("default", "")) for name, item in action["inputs"].items()} | dict(inputs)
    runner, done = folder / "runner", ActionRun()
    runner.mkdir(exist_ok=True)

    def value(found: re.Match[str]) -> str:
        context, *names = found[1].split(".")
        if context == "inputs":
            return values[names[0]]
        if context == "steps":
            return done.step_outputs.get(names[0], {}).get(names[2], "")
        assert found[1] == "github.action_path", f"unknown expression {found[0]}"
        return str(file.parent)

    def evaluate(text: object) -> str:  # in one pass: values are not evaluated again
        return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", value, str(text))

    for number, step in enumerate(action["runs"]["steps"]):
        if "run" not in step or done.code:
            continue
        assert step["shell"] == "bash", "a runner needs the shell of every step of a composite action"
        script, output, summary = (runner / f"{number}-{name}" for name in ("script.sh", "output", "summary"))
        for path, text in ((script, step["run"]), (output, ""), (summary, "")):
            path.write_text(text)
        variables = {name: evaluate(text) for name, text in step.get("env", {}).items()}
        variables |= {"RUNNER_TEMP": str(runner), "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}
        ran = subprocess.run([*SHELL, str(script)], cwd=folder, env={**environment, **variables}, **how)
        done.code = ran.returncode
        done.log += ran.stdout
        done.summary += summary.read_text()
        lines = [line.partition("=") for line in output.read_text().splitlines()]
        done.step_outputs[step.get("id", str(number))] = {name: text for name, _, text in lines}
    done.outputs |= {name: evaluate(item["value"]) for name, item in action.get("outputs", {}).items()}
    return done


Act = Callable[..., ActionRun]

FAKE = f"""#!{sys.executable}
import json, os, pathlib, sys
arguments = sys.argv[1:]
with open("calls", "a") as calls:
    calls.write(json.dumps([pathlib.Path(sys.argv[0]).name, *arguments]) + "\\n")
for name in sys.argv[0].endswith("evalsvc") and arguments or ():
    if name.startswith("--output=") and name.endswith("/gate.json"):
        pathlib.Path(name.removeprefix("--output=")).write_text("{{}}")
print(pathlib.Path("printed").read_text() if os.path.exists("printed") else "token")
print(*arguments, file=sys.stderr)
sys.exit(int(os.environ.get("CODE", "0")))
"""
"""Stands for `evalsvc` and `python`: writes down its arguments, and prints the file `printed`."""


def act(folder: Path, programs: Path, **environment: str) -> Act:
    base = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), **environment}
    return lambda **inputs: run_action(ACTION, {"extras": "", **inputs}, base, folder)


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def fake(tmp_path: Path, child_process: None) -> Act:
    for folder in ("bin", "work"):
        (tmp_path / folder).mkdir()
    for name in ("evalsvc", "python"):
        write_program(tmp_path / "bin" / name, FAKE)
    return act(tmp_path / "work", tmp_path / "bin")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    run = f"exec {shlex.quote(sys.executable)}"
    write_program(folder / "python", f'#!/bin/sh\n{run} "$@"\n')
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    write_program(folder / "evalsvc", f'#!/bin/sh\nPYTHONPATH={shlex.quote(path)} {run} -m evalsvc.cli "$@"\n')
    return folder


def calls(folder: Path, program: str = "evalsvc") -> list[list[str]]:
    file = folder / "work" / "calls"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [arguments for name, *arguments in lines if name == program and arguments[:1] != ["-c"]]


TEXT_INPUTS = ("suite", "checkpoint", "baseline", "rules", "layout", "model", "device", "service")
HOSTILE = (
    *("; touch pwned", "$(touch pwned)", "`touch pwned`", "' ; touch pwned ; '", '" ; touch pwned ; "', "> pwned", "*"),
    *("&& touch pwned", "| touch pwned", "${{ github.token }}", "--help", "--output=pwned", "a b\tc"),
)


@pytest.mark.parametrize("text", HOSTILE)
def test_an_input_is_an_argument_and_never_a_program(fake: Act, tmp_path: Path, text: str) -> None:
    done = fake(**dict.fromkeys(TEXT_INPUTS, text))
    if "\t" in text:
        assert (done.code, calls(tmp_path)) == (2, [])
        return
    assert done.code == 0, done.log
    evaluated, gated = calls(tmp_path)
    assert evaluated[:2] == ["run", f"--checkpoint={text}"]
    assert evaluated[3:] == [f"--model={text}", f"--layout={text}", f"--device={text}", "--", text]
    assert gated[:4] == ["gate", f"--baseline={text}", f"--rules={text}", f"--url={text}"]
    assert not list((tmp_path / "work").rglob("pwned"))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        *(  # with a line break, a text could begin a line that the runner obeys
            ({"suite": "loss", "checkpoint": "a.pt", name: text}, f"input {name} has a line break")
            for name in (*sorted({*TEXT_INPUTS} - {"model"}), "candidate", "token", "timeout")
            for text in ("a\n::error::b", "a\r::add-mask::b", "a\x1b[2Jb")
        ),
        ({}, "give the input checkpoint, or candidate"),
        ({"checkpoint": "a.pt"}, "give the input suite"),
        ({"candidate": "mine"}, "must be RUN@STEP"),
        ({"candidate": "mine@$(touch pwned)"}, "must be RUN@STEP"),
        ({"candidate": "mine@4", "timeout": "1; touch pwned"}, "a whole number of seconds"),
        ({"candidate": "mine@4", "across": "seeds --rules=pwned"}, "must be seeds, sampling or empty"),
        ({"candidate": "mine@4", "extras": "worker] ; touch pwned"}, "names separated by commas"),
        ({"candidate": "mine@4", "extras": "-r/etc/passwd"}, "names separated by commas"),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(fake: Act, tmp_path: Path, inputs: dict[str, str], words: str) -> None:
    done = fake(**inputs)
    assert (done.code, done.commands, calls(tmp_path)) == (2, ["error"], [])
    assert words in done.log
    assert not list((tmp_path / "work").rglob("pwned"))


PRINTED = "::add-mask::a\n  ::error::b\n::set-env name=PATH::c\n```\n<script>\n::error title=loss/image::worse by 0.1\n"


def test_what_evalsvc_prints_is_not_obeyed(fake: Act, tmp_path: Path) -> None:
    """A suite or checkpoint of a stranger may have names that look like the runner's commands."""
    (tmp_path / "work" / "printed").write_text(PRINTED)
    done = fake(suite="loss", checkpoint="a.pt")
    assert done.commands == ["stop-commands"]
    assert all(line.startswith("    ") for line in done.summary.splitlines()[2:]), "no text ends a block of code"
    done = fake(candidate="mine@4", baseline="mine@3")
    assert [name for name in done.commands if name not in ("stop-commands", "error")] == []
    assert done.log.endswith("::error title=loss/image::worse by 0.1\n"), "the gate's own marks are obeyed"


@pytest.mark.parametrize(
    ("extras", "installed"),
    [("", []), ("none", [str(ROOT)]), ("worker", [f"{ROOT}[worker]"]), ("worker,s3", [f"{ROOT}[worker,s3]"])],
)
def test_it_installs_the_evalsvc_of_the_action(fake: Act, tmp_path: Path, extras: str, installed: list[str]) -> None:
    fake(suite="loss", checkpoint="a.pt", extras=extras)
    assert [arguments[-1:] for arguments in calls(tmp_path, "python")] == [installed] * bool(installed)


def test_a_checkpoint_is_posted_to_a_service_and_gated_there(fake: Act, tmp_path: Path) -> None:
    """The token is no argument, which every user of the machine would see."""
    place = {"candidate": "mine@4:ema", "service": "https://host:8321", "token": "s3cret"}
    done = fake(checkpoint="a.pt", suite="loss", baseline="mine@3", across="seeds", **place)
    assert done.code == 0, done.log
    assert "s3cret" not in done.log + json.dumps(calls(tmp_path))
    posted, gated = calls(tmp_path)
    options = ["--suite=loss", "--url=https://host:8321"]
    assert posted == ["submit", "--wait", *options, "--variant=ema", "--", "mine", "4", "a.pt"]
    assert gated[:2] == ["gate", "--baseline=mine@3"]
    assert {*options, "--timeout=3600", "--across-seeds"} <= set(gated)
    assert gated[-2:] == ["--", "mine@4:ema"]


@pytest.mark.parametrize("code", [2, 1, 0])
def test_an_evaluation_that_fails_is_the_end(fake: Act, tmp_path: Path, code: int) -> None:
    """But for exit code 1 with a baseline: what a failed task did not measure is reported as missing by the gate."""
    run = act(tmp_path / "work", tmp_path / "bin", CODE=str(code))
    assert run(suite="loss", checkpoint="a.pt").code == code
    done = run(suite="loss", checkpoint="a.pt", baseline="b.json")
    assert done.code == code
    assert [arguments[0] for arguments in calls(tmp_path)] == ["run", "run"] + ["gate"] * (code < 2)


@pytest.mark.parametrize("inputs", [{"baseline": "mine@3"}, {"checkpoint": "a.pt"}])
def test_a_command_that_cannot_begin_is_annotated(tmp_path: Path, child_process: None, inputs: dict[str, str]) -> None:
    """A wrong token left an empty summary and no annotation: the message was in the log alone."""
    (tmp_path / "bin").mkdir()
    said = "error: the token is unknown%0A::add-mask::a [unauthorized]"
    write_program(tmp_path / "bin" / "evalsvc", f"#!/bin/sh\necho '::add-mask::b' >&2; echo '{said}' >&2; exit 2\n")
    done = act(tmp_path, tmp_path / "bin")(candidate="mine@4", **inputs)
    assert (done.code, done.commands) == (2, ["stop-commands", "error"])
    assert done.summary.splitlines()[0].startswith("### evalsvc")
    assert f"    {said}" in done.summary.splitlines()
    assert "::error title=evalsvc::the token is unknown%250A::add-mask::a [unauthorized]\n" in done.log


SUITE = f"tasks: [{{kind: loss, name: captions, data: {MINIATURE / 'heldout_pairs.jsonl'}}}]"


def test_the_miniature_is_evaluated_and_gated(tmp_path: Path, programs: Path, child_process: None) -> None:
    """Its last checkpoint is worse at special tokens than the one before."""
    run = act(tmp_path, programs, OMP_NUM_THREADS="1")
    suite = tmp_path / "it's a folder" / "captions.yaml"
    suite.parent.mkdir()
    suite.write_text(SUITE)
    checkpoints = MINIATURE / "runs" / "pretrained" / "checkpoints"
    given = {"suite": "it's a folder/captions.yaml", "layout": str(MINIATURE / "runs" / "layout.yaml"), "device": "cpu"}
    before = run(checkpoint=str(checkpoints / "epoch_4.pt"), **given)
    assert before.code == 0, before.log
    assert "captions/image" in before.summary
    assert before.outputs["exit-code"] == ""
    result = Path(before.outputs["folder"]) / "candidate.json"
    after = run(checkpoint=str(checkpoints / "epoch_5.pt"), baseline=str(result), **given)
    assert (after.code, after.outputs["exit-code"]) == (1, "1"), after.log
    assert after.summary.startswith("### Gate: regression: ")
    assert after.commands[:2] == ["stop-commands"] * 2
    assert set(after.commands[2:]) == {"error", "notice"}
    report = json.loads((Path(after.outputs["folder"]) / "gate.json").read_text())
    worse = [item["metric"] for item in report["comparisons"] if item["verdict"] == "worse"]
    assert worse == ["captions/special"]
    assert (Path(after.outputs["folder"]) / "gate.xml").is_file()


def test_a_service_is_asked(tmp_path: Path, programs: Path, child_process: None) -> None:
    (tmp_path / "a.pt").write_bytes(b"weights")
    run, layout = act(tmp_path, programs), str(MINIATURE / "runs" / "layout.yaml")
    with app_on_port(tmp_path / "service") as (url, state):
        state.coordinator.working = True
        httpx2.put(f"{url}/v1/suites/captions", json=yaml.safe_load(SUITE)).raise_for_status()
        for step in (3, 4):
            done = run(candidate=f"mine@{step}", checkpoint="a.pt", suite="captions", layout=layout, service=url)
            assert done.code == 0, done.log
        done = run(candidate="mine@4", baseline="mine@3", suite="captions", service=url)
        assert done.outputs["exit-code"] == str(done.code)
        assert done.summary.startswith("### Gate: ")
        done = run(candidate="mine@4", baseline="mine@99", service=url)
        assert (done.code, done.outputs["exit-code"]) == (3, "3"), done.log


def test_no_file_of_the_checkout_is_imported(tmp_path: Path, programs: Path, child_process: None) -> None:
    """A `secrets.py` in a pull request ran in the steps that hold the token of the service."""
    marker = tmp_path / "marker"
    for name in ("secrets", "json", "hashlib", "pickle", "random", "pip"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    run = act(tmp_path, programs)
    done = run(checkpoint="a.pt", suite="captions", baseline="b.json", token="s3cret")
    assert "no such file" in done.log
    assert done.commands == ["stop-commands", "error"]
    assert not marker.exists(), done.log


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TRUSTED = re.compile(r"actions/[\w-]+(/(restore|save))?@v\d+|\./")
"""What may be used: GitHub's own actions by their major version, and the action of this repository."""

FIXED = re.compile(r"\$\{\{ matrix\.[\w-]+ \}\}")


def steps(file: Path) -> Iterator[dict[str, Any]]:
    document = yaml.safe_load(file.read_text())
    jobs = [document["runs"]] if "runs" in document else document["jobs"].values()
    for job in jobs:
        yield from job["steps"]


@pytest.mark.parametrize("schema", ["github-actions", "github-workflows"])
def test_files_are_valid(schema: str, child_process: None) -> None:
    """By the schemas that check-jsonschema brings with it. Where TESTS_REQUIRE names it, this fails without it."""
    if find_spec("check_jsonschema") is None:
        lacking("check-jsonschema", "needs check-jsonschema, of the extra `test`")
    files = [ACTION] if schema == "github-actions" else WORKFLOWS
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_may_only_read(file: Path) -> None:
    """A pull request of a stranger runs them, so they hold no secret and write nothing."""
    workflow = yaml.safe_load(file.read_text())
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert set(triggers) <= {"push", "pull_request", "schedule", "workflow_dispatch"}
    assert workflow["permissions"] == {"contents": "read"}
    assert [name for name, job in workflow["jobs"].items() if "permissions" in job] == []
    assert [name for name, job in workflow["jobs"].items() if "timeout-minutes" not in job] == []
    assert "secrets." not in file.read_text()
    checkouts = [step for step in steps(file) if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == [False] * len(workflow["jobs"])


@pytest.mark.parametrize("file", [ACTION, *WORKFLOWS], ids=lambda file: file.stem)
def test_no_foreign_code_is_used_and_no_expression_is_in_a_script(file: Path) -> None:
    """GitHub puts the value of an expression into a script before the shell reads the script."""
    assert [step["uses"] for step in steps(file) if "uses" in step and not TRUSTED.fullmatch(step["uses"])] == []
    assert [step["run"] for step in steps(file) if "${{" in FIXED.sub("", step.get("run", ""))] == []


def test_workflows_use_the_words_of_the_makefile() -> None:
    """CI does what a person does by hand, and every tier is in a workflow."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = [step["run"] for file in WORKFLOWS for step in steps(file) if "run" in step]
    used = {word for script in scripts for word in re.findall(r"\bmake ([\w-]+)", script)}
    assert used <= targets
    assert {"check", "test", "test-all", "test-long", "soak", "bench-quick", "docs"} <= used


def test_the_history_of_benchmarks_is_restored_extended_and_kept() -> None:
    """A key that the next build does not look for would begin a new history each time, unseen."""
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]["bench"]
    restored, saved = (
        next(step for step in job["steps"] if step.get("uses", "").startswith(f"actions/cache/{what}@"))
        for what in ("restore", "save")
    )
    assert restored["with"]["path"] == saved["with"]["path"] == job["env"]["BENCH"].split()[1]
    assert saved["with"]["key"].startswith(restored["with"]["restore-keys"])
    assert "github.ref == 'refs/heads/main'" in saved["if"]
    [checkout] = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["fetch-depth"] == 0, "the code of the stored commit is in the history"
