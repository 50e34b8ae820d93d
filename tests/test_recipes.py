"""The recipes for many machines: what they start exists, under the options and settings that they give."""

import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import dask
import pytest
from doc_blocks import DOCS, read_blocks
from doc_commands import check_command, commands
from ports import free_port

from evalsvc.cluster.certificates import write_certificates
from evalsvc.config import setting_help

PAGE = DOCS / "how-to" / "many-machines.md"
VARIABLES = {variable for variable, _, _ in setting_help()}


def blocks(language: str) -> list[str]:
    return [block.text for block in read_blocks(PAGE) if block.language == language]


def written() -> list[str]:
    """Return the commands of evalsvc in the shell blocks, and those that other programs are given to run."""
    shell = [shlex.join(words) for block in blocks("sh") for words in commands(block)]
    quoted = re.findall(r"""exec (evalsvc [^'"]+)['"]""", PAGE.read_text())
    return [line for line in (*shell, *quoted) if line.startswith("evalsvc ")]


@pytest.mark.parametrize("line", written())
def test_commands_exist(line: str) -> None:
    check_command(shlex.split(line)[1:])


def test_there_is_something_to_check() -> None:
    names = {shlex.split(line)[1] for line in written()}
    assert names == {"certificates", "reference", "scheduler", "serve", "worker"}


def test_variables_are_settings() -> None:
    assert set(re.findall(r"EVALSVC_[A-Z_]+[A-Z]", PAGE.read_text())) <= VARIABLES


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands of Slurm that dask-jobqueue calls; the folder in which they keep the scripts of the jobs."""
    commands = {"sbatch": 'cp "$1" "$(dirname "$0")/job-$$.sh"; echo "Submitted batch job $$"', "scancel": "exit 0"}
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_the_slurm_recipe_asks_for_jobs_in_which_our_worker_takes_the_place_of_the_shell(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dask-jobqueue's own command starts workers that do not drain, and that no shard is given to."""
    write_certificates(slurm / "tls")
    monkeypatch.setenv("EVALSVC_TLS", str(slurm / "tls"))
    [recipe] = blocks("python")
    port = free_port()
    recipe = recipe.replace('"0.0.0.0", "port": 8786', f'"127.0.0.1", "port": {port}')
    scripts: list[str] = []

    def wait_for_jobs() -> None:
        while len(jobs := list(slurm.glob("job-*.sh"))) < 8:
            time.sleep(0.01)
        scripts.extend(job.read_text() for job in jobs)

    monkeypatch.setattr(signal, "pause", wait_for_jobs)
    names: dict[str, Any] = {}
    exec(compile(recipe, str(PAGE), "exec"), names)
    with names["cluster"] as cluster:
        assert cluster.scheduler_address == f"tls://127.0.0.1:{port}"
        assert dask.config.get("distributed.scheduler.allowed-failures") == 0, "it is set up as our scheduler is"
    assert len(scripts) == 8
    lines = scripts[0].splitlines()
    assert {"#SBATCH -t 08:00:00", "#SBATCH --gpus=1", "#SBATCH --signal=B:TERM@300"} <= set(lines)
    first = next(line for line in lines if line and not line.startswith("#"))
    assert first.startswith("exec evalsvc ")
    check_command(shlex.split(first)[2:])
