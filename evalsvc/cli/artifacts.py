"""`evalsvc artifacts`: list, fetch, keep and prune image grids, samples and pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.answers import first_rows, print_list, printed_to
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_metric, complete_run
from evalsvc.cli.options import CheckpointArgument, Form, Limit, Output, RunArgument, Url, connect, require_folders
from evalsvc.cli.terminal import say
from evalsvc.cli.wording import counted
from evalsvc.client import ArtifactContent, Client
from evalsvc.client.reader import find_checkpoint
from evalsvc.compare.text_pages import ReportForm
from evalsvc.errors import InvalidRequest, UnknownName, first_few, os_reason
from evalsvc.files.atomic import write_whole
from evalsvc.spec.documents import Artifact
from evalsvc.spec.names import checkpoint_name

commands = typer.Typer()
artifacts_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="List, fetch, keep and prune image grids and pages."
)
commands.add_typer(artifacts_app, name="artifacts")

GRID = "grid"
"""Kind of artifacts that show images side by side."""

ENDINGS = {
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "text/html": ".html",
    "text/plain": ".txt",
    "text/csv": ".csv",
    "application/json": ".json",
}
"""Endings of file names by media type. A file name that the service sends is not trusted to have the right ending."""

File = Annotated[
    Path | None,
    typer.Option("--output", help="File to write; - is standard output.", show_default="a new file in this folder"),
]


@artifacts_app.command("list")
def list_artifacts(
    run: RunArgument,
    kind: Annotated[str | None, typer.Option(help="Show only this kind, such as grid.", show_default="all")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Show only this step.", show_default="all")] = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List the artifacts of a run, by step."""
    with connect(url) as client, printed_to(output):
        artifacts = first_rows(client.artifacts(run, kind, step), limit)
        print_list(artifacts, form, "artifacts", _row, f"no artifact of run {run} matches")


def _row(artifact: Artifact) -> dict[str, str]:
    return {
        "id": str(artifact.id),
        "checkpoint": checkpoint_name(artifact.run, artifact.step, artifact.variant),
        "task": artifact.task,
        "kind": artifact.kind,
        "name": artifact.name,
        "bytes": f"{artifact.size:,}",
        "pruned": "" if artifact.pruned_at is None else artifact.pruned_at[:10],
    }


@artifacts_app.command()
def get(
    artifact: Annotated[int, typer.Argument(metavar="ID", min=1, help="Id of the artifact.")],
    form: Annotated[
        ReportForm | None,
        typer.Option(
            "--as",
            help="Render a report for readers: forgetting as text or csv, completions as text.",
            show_default="as it is stored",
        ),
    ] = None,
    output: File = None,
    url: Url = None,
) -> None:
    """Fetch an artifact into a file, by default `artifact-ID` with the ending of its type in this folder."""
    _check_folder(output)
    with connect(url) as client:
        content = client.artifact_content(artifact, form)
    _write(content, output, f"artifact-{artifact}")


@artifacts_app.command()
def grid(
    checkpoint: CheckpointArgument,
    task: Annotated[
        str | None, typer.Option(help="Task that made the grid.", show_default="the only task with a grid")
    ] = None,
    output: File = None,
    url: Url = None,
) -> None:
    """Fetch the image grid of a checkpoint into a file, by default `RUN-STEP.png` in this folder."""
    _check_folder(output)
    with connect(url) as client:
        artifact = _find_grid(client, checkpoint, task)
        content = client.artifact_content(artifact.id)
    _write(content, output, f"{artifact.run}-{artifact.step}")


def _find_grid(client: Client, checkpoint: str, task: str | None) -> Artifact:
    """Return the newest grid of a checkpoint by a task; pruned grids do not count.

    Raises:
        UnknownName: the checkpoint has no grid of the task.
        InvalidRequest: several tasks have a grid, and no task is named.
    """
    posted = find_checkpoint(client, checkpoint)
    grids = [
        artifact
        for artifact in client.artifacts(posted.run, step=posted.step)
        if (artifact.kind, artifact.variant) == (GRID, posted.variant) and artifact.pruned_at is None
    ]
    by_task = {artifact.task: artifact for artifact in sorted(grids, key=lambda artifact: artifact.evaluation)}
    if task is not None and task not in by_task:
        raise UnknownName.among("task with a grid", task, by_task)
    if not by_task:
        raise UnknownName(
            f"{checkpoint} has no image grid; evaluate the checkpoint with a suite that has a task of kind "
            f"text_to_image, or list its artifacts: evalsvc artifacts list {posted.run} --step {posted.step}"
        )
    if task is None and len(by_task) > 1:
        raise InvalidRequest(
            f"{checkpoint} has grids of the tasks {first_few(list(by_task), 10)}; name a task by --task"
        )
    return by_task[task] if task is not None else next(iter(by_task.values()))


def _check_folder(output: Path | None) -> None:
    if str(output) != "-":
        require_folders({"--output": output})


def _write(artifact: ArtifactContent, output: Path | None, stem: str) -> None:
    if str(output) == "-":
        sys.stdout.buffer.write(artifact.content)
        sys.stdout.buffer.flush()
        return
    path = output or Path(stem + ENDINGS.get(artifact.media_type.partition(";")[0].strip(), ".bin"))
    if output is None and path.exists():
        raise InvalidRequest(f"the file {path} exists; name another file by --output, or remove the file first")
    if path.is_dir():
        raise InvalidRequest(f"{path} cannot be written: it is a folder; name a file by --output")
    try:
        write_whole(path, artifact.content, mode=0o644)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {os_reason(error)}; name another file by --output") from None
    say(f"{path}: {artifact.media_type}, {len(artifact.content):,} bytes")


@artifacts_app.command()
def keep(
    run: RunArgument,
    last: Annotated[
        int | None, typer.Option(min=1, help="Keep the artifacts of this many highest steps.", show_default="none")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="Keep the artifacts of steps that are multiples of this.", show_default="none"),
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Keep artifacts for this many days after the evaluation.", show_default="none")
    ] = None,
    best: Annotated[
        str | None,
        typer.Option(
            help="Keep the artifacts of the step where this metric is best.",
            show_default="none",
            autocompletion=complete_metric,
        ),
    ] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Remove the rule of the run, so that the rule of the service holds.")
    ] = False,
    url: Url = None,
) -> None:
    """Show or set which artifacts of a run are kept.

    The options add up: an artifact is kept if any option keeps it, and is pruned otherwise.
    """
    given = {"last": last, "every": every, "days": days, "best": best}
    rule = {name: value for name, value in given.items() if value is not None}
    if rule and default:
        raise InvalidRequest(
            "--default removes the rule of the run and is given with other options; give --default alone"
        )
    with connect(url) as client:
        retention = client.put_retention(run, rule or None) if rule or default else client.retention(run)
    if retention.keep is None:
        say(f"run {run} keeps all artifacts")
        return
    parts = ", ".join(f"{name} {value}" for name, value in retention.keep.items())
    say(f"run {run} keeps {parts} (the {retention.from_}'s rule)")


@artifacts_app.command()
def prune(
    run: Annotated[
        str | None, typer.Option(help="Prune only this run.", show_default="all", autocompletion=complete_run)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much would be pruned.")] = False,
    url: Url = None,
) -> None:
    """Remove the artifacts that no rule keeps. The service also prunes by itself, every hour."""
    with connect(url) as client:
        pruned = client.prune(run, dry_run=dry_run)
    for name, count in pruned.runs.items():
        say(f"{name}: {counted(count, 'artifact')}")
    if dry_run:
        say(f"{counted(pruned.artifacts, 'artifact')} would be pruned, {counted(pruned.bytes, 'byte')}")
    else:
        say(f"pruned {counted(pruned.artifacts, 'artifact')}, freed {counted(pruned.freed_bytes, 'byte')}")
