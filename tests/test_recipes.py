"""The recipes for many machines in README: what they start exists, under the options and settings that they give."""

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from evalsvc.cli import app
from evalsvc.config import setting_help

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README[README.index("### Many machines") : README.index("### Who may come in")]
COMMANDS: Any = typer.main.get_command(app)
VARIABLES = {variable for variable, _, _ in setting_help()}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


def check(words: list[str]) -> None:
    """That `evalsvc WORDS` is a command with these options."""
    context = COMMANDS.make_context("evalsvc", [], resilient_parsing=True)
    command = COMMANDS.get_command(context, words[0])
    assert command is not None, words
    command.make_context(words[0], list(words[1:]))


def written() -> list[str]:
    shell = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    quoted = re.findall(r"exec (evalsvc [^']+)'", SECTION)
    return [line for line in (*shell, *quoted) if line.startswith("evalsvc ")]


@pytest.mark.parametrize("line", written())
def test_commands_exist(line: str) -> None:
    check(shlex.split(line)[1:])


def test_there_is_something_to_check() -> None:
    names = {shlex.split(line)[1] for line in written()}
    assert names == {"certificates", "scheduler", "serve", "worker"}


def test_variables_are_settings() -> None:
    assert set(re.findall(r"EVALSVC_[A-Z_]+[A-Z]", SECTION)) <= VARIABLES


def test_the_systemd_unit_starts_a_worker_and_waits_for_it() -> None:
    [text] = blocks("ini")
    unit = configparser.ConfigParser()
    unit.read_string(text)
    command = shlex.split(unit["Service"]["ExecStart"])
    assert Path(command[0]).name == "evalsvc"
    check(command[1:])
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["TimeoutStopSec"] == "30min"


def test_the_deployment_starts_a_worker_and_waits_for_it() -> None:
    [text] = blocks("yaml")
    document = yaml.safe_load(text)
    assert (document["apiVersion"], document["kind"]) == ("apps/v1", "Deployment")
    template = document["spec"]["template"]
    assert document["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert template["spec"]["restartPolicy"] == "Always", "the only policy of a Deployment"
    assert template["spec"]["terminationGracePeriodSeconds"] >= 600
    [container] = template["spec"]["containers"]
    assert container["command"][0] == "evalsvc"
    check(container["command"][1:])
    assert {item["name"] for item in container["env"]} <= VARIABLES
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_slurm_recipe_calls_what_is_there() -> None:
    """Its script is tested where dask-jobqueue is installed."""
    [code] = re.findall(r"python -c '(.*?)' &", SECTION, re.DOTALL)
    compile(code, "README.md", "exec")
    source = (Path(__file__).parents[1] / "evalsvc" / "cluster" / "slurm.py").read_text()
    assert "from evalsvc.cluster.slurm import slurm_cluster" in code
    assert "def slurm_cluster(" in source
