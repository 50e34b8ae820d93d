"""Runs the shell steps of a composite GitHub action as a runner does, for tests of `action.yml`.

Only the expressions `inputs.NAME`, `steps.ID.outputs.NAME` and `github.action_path` are known; others are an error.
Steps with `uses` are not run.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail")
"""What `shell: bash` means on a runner."""

COMMAND = re.compile(r"::([\w-]+)( .*?)?::(.*)")
"""A line of a log that a runner obeys; blanks before it do not count."""


@dataclass
class ActionRun:
    """What one run of an action did."""

    code: int = 0
    """Exit code of the step that failed, else 0."""
    log: str = ""
    """Standard output and standard error of all steps."""
    step_outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """By the id of the step."""
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    """The Markdown of the job's summary."""

    @property
    def commands(self) -> list[str]:
        """The commands in the log that a runner obeys, such as `error` and `stop-commands`."""
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
    """Run an action.

    Args:
        file: the `action.yml`.
        inputs: values of inputs; the others have their defaults.
        environment: all variables of the steps but those of the runner.
        folder: working folder of the steps; the files of the runner are in its subfolder `runner`.
    """
    action = yaml.safe_load(file.read_text())
    unknown = set(inputs) - set(action["inputs"])
    assert not unknown, f"the action has no inputs {unknown}"
    values = {name: str(item.get("default", "")) for name, item in action["inputs"].items()} | dict(inputs)
    runner = folder / "runner"
    runner.mkdir(exist_ok=True)
    done = ActionRun()
    for number, step in enumerate(action["runs"]["steps"]):
        if "run" in step and done.code == 0:
            _run_step(step, runner / str(number), values, file, environment, done)
    for name, item in action.get("outputs", {}).items():
        done.outputs[name] = _evaluate(str(item["value"]), values, file, done)
    return done


def _run_step(
    step: Mapping[str, Any],
    files: Path,
    inputs: Mapping[str, str],
    action: Path,
    environment: Mapping[str, str],
    done: ActionRun,
) -> None:
    assert step["shell"] == "bash", "a runner needs the shell of every step of a composite action"
    files.mkdir(exist_ok=True)
    output, summary, script = files / "output", files / "summary", files / "script.sh"
    for file in (output, summary):
        file.write_text("")
    script.write_text(step["run"])
    variables = {name: _evaluate(str(value), inputs, action, done) for name, value in step.get("env", {}).items()}
    runner = {"RUNNER_TEMP": str(files.parent), "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
    ran = subprocess.run(
        [*SHELL, str(script)],
        cwd=files.parents[1],
        env={**environment, **runner, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    done.code = ran.returncode
    done.log += ran.stdout
    done.summary += summary.read_text()
    lines = [line.partition("=") for line in output.read_text().splitlines()]
    done.step_outputs[step.get("id", files.name)] = {name: value for name, _, value in lines}


def _evaluate(text: str, inputs: Mapping[str, str], action: Path, done: ActionRun) -> str:
    """Return a text with its expressions replaced by their values, in one pass: values are not evaluated again."""

    def value(found: re.Match[str]) -> str:
        context, *names = found[1].split(".")
        if context == "inputs":
            return inputs[names[0]]
        if context == "steps":
            return done.step_outputs.get(names[0], {}).get(names[2], "")
        assert found[1] == "github.action_path", f"unknown expression {found[0]}"
        return str(action.parent)

    return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", value, text)
