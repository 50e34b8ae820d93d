"""`evalsvc artifacts` and `export`: image grids, samples and pages, and the dashboard's pages as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.lazy_group import add_group
from evalsvc.cli.options import (
    Form,
    Limit,
    Output,
    RunArgument,
    Url,
    complete_metric,
    complete_run,
    connect,
    refuse,
    require_folders,
    writing,
)
from evalsvc.cli.printer import first_rows, print_list, printed_to
from evalsvc.cli.progress import show_bars
from evalsvc.cli.terminal import say, warn
from evalsvc.cli.wording import counted
from evalsvc.client import Client
from evalsvc.client.reader import find_checkpoint
from evalsvc.compare.text_pages import ReportForm
from evalsvc.config import Settings
from evalsvc.connection_errors import without_password
from evalsvc.errors import InvalidRequest, UnknownName, first_few
from evalsvc.files.atomic import write_whole
from evalsvc.installation import pip_install
from evalsvc.spec.documents import Artifact
from evalsvc.web import vega
from evalsvc.web.formats import bytes_
from evalsvc.web.site import export_site

commands = typer.Typer()
artifacts_app = add_group(commands, "artifacts", "List, fetch, keep and prune image grids and pages.")
export_app = add_group(commands, "export", "Write the dashboard's pages of runs as files.")

ENDINGS = {
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "text/html": ".html",
    "text/plain": ".txt",
    "text/csv": ".csv",
    "application/json": ".json",
}
"""Endings of file names by media type. A file name that the service sends is not trusted to have the right ending."""


@artifacts_app.command("list")
def list_artifacts(
    run: RunArgument,
    kind: Annotated[str | None, Option(help="Show only this kind, such as grid.", show_default="all")] = None,
    step: Annotated[int | None, Option(min=0, help="Show only this step.", show_default="all")] = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List the artifacts of a run, by step."""
    with connect(url) as client, printed_to(output):
        artifacts = first_rows(client.artifacts(run, kind, step), limit)
        columns = ("id", "checkpoint", "task", "kind", "name", "size", "pruned_at")
        print_list(artifacts, columns, form, "artifacts", f"no artifact of run {run} matches")


@artifacts_app.command()
def get(
    name: Annotated[
        str,
        Argument(
            metavar="ID|RUN@STEP",
            help="Id of the artifact; or the checkpoint whose image grid is fetched.",
            autocompletion=complete_run,
        ),
    ],
    form: Annotated[
        ReportForm | None,
        Option(
            "--as",
            help="Render a report for readers: forgetting as text or csv, completions as text.",
            show_default="as it is stored",
        ),
    ] = None,
    task: Annotated[
        str | None, Option(help="Task that made the grid.", show_default="the only task with a grid")
    ] = None,
    output: Annotated[
        Path | None,
        Option("--output", help="File to write; - is standard output.", show_default="a new file in this folder"),
    ] = None,
    url: Url = None,
) -> None:
    """Fetch an artifact, or the image grid of a checkpoint, into a file.

    The default file is `artifact-ID` or `RUN-STEP` in this folder, with the ending of its type.
    """
    if str(output) != "-":
        require_folders({"--output": output})
    with connect(url) as client:
        if name.isdecimal():
            refuse({"--task": task}, f"with {name}, which is one artifact")
            identity, stem = int(name), f"artifact-{name}"
        else:
            grid = _find_grid(client, name, task)
            identity, stem = grid.id, f"{grid.run}-{grid.step}"
        artifact = client.artifact_content(identity, form)
    if str(output) == "-":
        sys.stdout.buffer.write(artifact.content)
        sys.stdout.buffer.flush()
        return
    path = output or Path(stem + ENDINGS.get(artifact.media_type.partition(";")[0].strip(), ".bin"))
    if output is None and path.exists():
        raise InvalidRequest(f"the file {path} exists; name another file by --output, or remove the file first")
    if path.is_dir():
        raise InvalidRequest(f"{path} cannot be written: it is a folder; name a file by --output")
    with writing("--output", path):
        write_whole(path, artifact.content, mode=0o644)
    say(f"{path}: {artifact.media_type}, {len(artifact.content):,} bytes")


def _find_grid(client: Client, checkpoint: str, task: str | None) -> Artifact:
    posted = find_checkpoint(client, checkpoint)
    grids = [
        artifact
        for artifact in client.artifacts(posted.run, step=posted.step)
        if (artifact.kind, artifact.variant) == ("grid", posted.variant) and artifact.pruned_at is None
    ]
    by_task = {artifact.task: artifact for artifact in sorted(grids, key=lambda artifact: artifact.evaluation)}
    if task is not None:
        if task not in by_task:
            raise UnknownName.among("task with a grid", task, by_task)
        return by_task[task]
    if not by_task:
        raise UnknownName(
            f"{checkpoint} has no image grid; evaluate the checkpoint with a suite that has a task of kind "
            f"text_to_image or images, or list its artifacts: evalsvc artifacts list {posted.run} --step {posted.step}"
        )
    if len(by_task) > 1:
        tasks = first_few(list(by_task), 10)
        raise InvalidRequest(f"{checkpoint} has grids of the tasks {tasks}; name a task by --task")
    return next(iter(by_task.values()))


@artifacts_app.command()
def keep(
    run: Annotated[
        str | None,
        Argument(metavar="RUN", help="Run of the rule.", show_default="with --prune: all", autocompletion=complete_run),
    ] = None,
    last: Annotated[
        int | None, Option(min=1, help="Keep the artifacts of this many highest steps.", show_default="none")
    ] = None,
    every: Annotated[
        int | None, Option(min=1, help="Keep the artifacts of steps that are multiples of this.", show_default="none")
    ] = None,
    days: Annotated[
        float | None, Option(help="Keep artifacts for this many days after the evaluation.", show_default="none")
    ] = None,
    best: Annotated[
        str | None,
        Option(
            help="Keep the artifacts of the step where this metric is best.",
            show_default="none",
            autocompletion=complete_metric,
        ),
    ] = None,
    default: Annotated[
        bool, Option("--default", help="Remove the rule of the run, so that the rule of the service holds.")
    ] = False,
    prune: Annotated[bool, Option("--prune", help="Remove the artifacts that no rule keeps now.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="With --prune: only say how much.")] = False,
    url: Url = None,
) -> None:
    """Show or set which artifacts of a run are kept, or remove those that no rule keeps.

    The options add up: an artifact is kept if any option keeps it, and is pruned otherwise. The service prunes by
    itself, every hour; with --prune it prunes at once, all runs or only RUN.
    """
    given = {"last": last, "every": every, "days": days, "best": best}
    rule = {name: value for name, value in given.items() if value is not None}
    if rule and default:
        problem = "--default removes the rule of the run and is given with other options"
        raise InvalidRequest(f"{problem}; give --default alone")
    if not prune:
        refuse({"--dry-run": dry_run}, "without --prune")
    with connect(url) as client:
        if prune:
            if rule or default:
                raise InvalidRequest("--prune is given with a rule; set the rule first, then give --prune alone")
            pruned = client.prune(run, dry_run=dry_run)
            for name, count in pruned.runs.items():
                say(f"{name}: {counted(count, 'artifact')}")
            if dry_run:
                say(f"{counted(pruned.artifacts, 'artifact')} would be pruned, {counted(pruned.bytes, 'byte')}")
            else:
                say(f"pruned {counted(pruned.artifacts, 'artifact')}, freed {counted(pruned.freed_bytes, 'byte')}")
            return
        if run is None:
            raise InvalidRequest("no run is given; name the run of the rule, or give --prune to prune all runs")
        retention = client.put_retention(run, rule or None) if rule or default else client.retention(run)
    if retention.keep is None:
        say(f"run {run} keeps all artifacts")
        return
    parts = ", ".join(f"{name} {value}" for name, value in retention.keep.items())
    say(f"run {run} keeps {parts} (the {retention.from_}'s rule)")


@export_app.command()
def site(
    runs: Annotated[list[str], Argument(metavar="RUN...", help="Runs of the copy.", autocompletion=complete_run)],
    output: Annotated[Path, Option(help="Folder, empty or not there yet.", show_default=False)],
    url: Url = None,
) -> None:
    """Write the pages of runs into a folder: curves, images, text, evaluations, protocols.

    The folder needs no service and no network: a browser opens index.html from the disk, and any host of files serves
    the folder. The charts need the extra `dashboard` on this machine; without it the pages are tables.
    """
    if not vega.is_installed():
        warn(f"the pages have tables and no charts; for charts: {pip_install('dashboard')}")
    source, names = without_password(Settings.load(url=url).url), list(dict.fromkeys(runs))
    with connect(url) as client, show_bars() as bars:

        def report(done: int, total: int, address: str) -> None:
            bars.show("pages", done, total, f"pages, now {address}")

        files = export_site(client, source, names, output, report)
    say(f"{output / 'index.html'}: {len(files):,} files, {bytes_(sum(path.stat().st_size for path in files))}")
