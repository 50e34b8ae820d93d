"""Single pages are held to the code: REST, monitoring, recipes for many machines, and the pictures of the dashboard."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import pytest
from dashboard_history import OTHER, RUN, dashboard_on_port
from doc_blocks import DOCS, README, pages, prose, read_blocks, read_page, section
from doc_commands import COMMANDS, check_command
from machines import free_port
from PIL import Image

from evalsvc.api.app import create_app
from evalsvc.client import Client
from evalsvc.cluster.certificates import write_certificates
from evalsvc.config import Settings
from evalsvc.errors import leaves

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TABLE = section(DOCS / "how-to" / "rest.md", "## Which route does what a command does")
ROWS = re.findall(r"^\| (`.+) \| (.+) \|$", TABLE, re.MULTILINE)

WITHOUT_ROUTE = {
    *("serve", "worker", "scheduler", "certificates", "tokens", "backup", "restore", "watch", "gate", "demo", "run"),
    *("verify", "doctor", "inspect", "layout", "tasks", "metrics", "benchmarks", "reference", "assets"),
    *("suites new", "suites check", "export site"),
}
"""Commands, and groups of commands, about files, the machine or the database, or about answers of other routes."""

ONLY_BY_REST = {"OPTIONS /v1/uploads", "GET /v1/uploads/{sha256}"}


def words_of(command: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    command = command.load() if hasattr(command, "load") else command
    if not hasattr(command, "commands"):
        yield " ".join(before)
        return
    for name, inner in command.commands.items():
        yield from words_of(inner, (*before, name))


def test_every_command_about_the_service_has_its_route() -> None:
    """A client without the command line finds a way to do what the documentation does by a command."""
    named = {
        re.sub(r"( [A-Z]+(@[A-Z]+)?)*( --.*)?$", "", name)
        for commands, _ in ROWS
        for name in re.findall(r"`([^`]+)`", commands)
    }
    own = {name for name in words_of(COMMANDS) if not {name, name.partition(" ")[0]} & WITHOUT_ROUTE}
    assert own - named == set()
    assert named - own == set()


def test_the_routes_exist_and_none_is_left_out() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    existing = {f"{name.upper()} {path}" for path, item in paths.items() for name in item if path.startswith("/v1/")}
    named = {route for _, routes in ROWS for route in re.findall(r"`([A-Z]+ /[^`]+)`", routes)}
    assert named - existing == set()
    assert existing - named - ONLY_BY_REST == set()


def test_the_errors_that_are_retried_are_the_transient_ones() -> None:
    page = read_page(DOCS / "how-to" / "operate.md")
    [named] = re.findall(r"^- A transient error \(([^)]*)\) is retried", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", named)) == {error.code for error in leaves() if error.transient}


def test_the_metrics_to_watch_are_metrics_of_the_service() -> None:
    names, listed = (
        set(re.findall(r"`(evalsvc_\w+)", read_page(page)))
        for page in (DOCS / "how-to" / "operate.md", DOCS / "reference" / "rest.md")
    )
    assert names <= listed, names - listed


RECIPES = DOCS / "how-to" / "deploy.md"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands of Slurm that dask-jobqueue calls; the folder in which they keep the scripts of the jobs."""
    programs = {"sbatch": 'cp "$1" "$(dirname "$0")/job-$$.sh"; echo "Submitted batch job $$"', "scancel": "exit 0"}
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_a_job_of_the_slurm_recipe_becomes_our_worker(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask-jobqueue's own command starts workers that do not drain, and that no shard is given to."""
    write_certificates(slurm / "tls")
    monkeypatch.setenv("EVALSVC_TLS", str(slurm / "tls"))
    [recipe] = [block.text for block in read_blocks(RECIPES) if block.language == "python"]
    port = free_port()
    recipe = recipe.replace('"0.0.0.0", "port": 8786', f'"127.0.0.1", "port": {port}')
    scripts: list[str] = []

    def wait_for_jobs() -> None:
        while len(jobs := list(slurm.glob("job-*.sh"))) < 8:
            time.sleep(0.01)
        scripts.extend(job.read_text() for job in jobs)

    monkeypatch.setattr(signal, "pause", wait_for_jobs)
    names: dict[str, Any] = {}
    exec(compile(recipe, str(RECIPES), "exec"), names)
    with names["cluster"] as cluster:
        assert cluster.scheduler_address == f"tls://127.0.0.1:{port}"
        assert dask.config.get("distributed.scheduler.allowed-failures") == 0, "it is set up as our scheduler is"
    assert len(scripts) == 8
    lines = scripts[0].splitlines()
    assert {"#SBATCH -t 08:00:00", "#SBATCH --gpus=1", "#SBATCH --signal=B:TERM@300"} <= set(lines)
    first = next(line for line in lines if line and not line.startswith("#"))
    assert first.startswith("exec evalsvc ")
    check_command(shlex.split(first)[2:])


TOUR = ["runs", "run", "images", "text", "compare", "evaluation"]
PICTURES = {*TOUR, *(f"{name}-dark" for name in TOUR)}
MOST_BYTES, MOST_BYTES_OF_ALL = 120_000, 600_000


def shown(page: Path) -> set[Path]:
    """Return the pictures of a page: those of Markdown, and those that dark mode has in their place."""
    targets = re.findall(r"""!\[[^]]+\]\(([^)]+)\)|<(?:img|source)[^>]* src(?:set)?="([^"]+)\"""", prose(page))
    return {(page.parent / (plain or html)).resolve() for plain, html in targets}


@pytest.mark.parametrize("page", [README, DOCS / "index.md"])
def test_a_tour_of_six_pictures_stands_before_everything_else(page: Path) -> None:
    begin = prose(page).partition("\n## ")[0]
    assert [*dict.fromkeys(re.findall(r"images/(\w+)\.png", begin))] == TOUR


def test_every_picture_is_there_and_shown() -> None:
    taken, figures = (
        set((DOCS / "images").glob("*.png")),
        {*(DOCS / "images").rglob("*.svg"), *DOCS.rglob("paper/*/*.png")},
    )
    assert {path.stem for path in taken} == PICTURES
    assert set.union(*map(shown, pages())) == taken | figures
    assert shown(README) <= taken
    assert sum(path.stat().st_size for path in taken) < MOST_BYTES_OF_ALL
    for path in taken:
        assert path.stat().st_size < MOST_BYTES, path
        with Image.open(path) as image:
            assert image.size == (1120, 700)


@pytest.mark.usefixtures("child_process")
def test_pictures_are_taken_by_the_script(chromium: Browser, tmp_path: Path) -> None:
    import screenshots  # needs playwright

    with dashboard_on_port(tmp_path / "data") as dashboard:
        with Client(dashboard.url) as client:
            assert [*screenshots.addresses(client, RUN, OTHER)] == TOUR
        taken = screenshots.take(chromium, dashboard.url, RUN, OTHER, tmp_path / "images")
    assert {path.stem for path in taken} == PICTURES
    assert all(0 < path.stat().st_size < MOST_BYTES for path in taken)
