"""The files that GitHub runs: valid by its schemas, and with no more rights than they need."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import lacking

ROOT = Path(__file__).parents[1]
ACTION = ROOT / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TRUSTED = re.compile(r"actions/[\w-]+(/(restore|save))?@v\d+|\./")
"""What may be used: GitHub's own actions by their major version, and the action of this repository."""

FIXED = re.compile(r"\$\{\{ matrix\.[\w-]+ \}\}")
"""Expressions whose values stand in the workflow itself."""


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
