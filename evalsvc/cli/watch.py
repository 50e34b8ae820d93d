"""`evalsvc watch`: watch a folder, and post the checkpoints that appear."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.checkpoints.remote.uri import is_remote
from evalsvc.cli.options import FAILED, Kept, Layout, Model, Priority, Replace, Suite, Url, complete_run, connect
from evalsvc.cli.terminal import say
from evalsvc.cli.weights import absolute_uri, inline_layout, inline_model
from evalsvc.cli.wording import in_options
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest
from evalsvc.watch.completeness import Classifier, Memory, StepPattern
from evalsvc.watch.folders import LocalFolder, RemoteFolder
from evalsvc.watch.watcher import Posting, Watcher

commands = typer.Typer()


@commands.command()
def watch(
    folder: Annotated[str, Argument(metavar="DIR", help="Folder where checkpoints appear: a path, or s3://….")],
    run: Annotated[str, Option(help="Name of the training run.", autocompletion=complete_run)],
    suite: Suite = None,
    once: Annotated[bool, Option("--once", help="Post the checkpoints that exist now, and end.")] = False,
    settle: Annotated[float, Option(min=0, help="Seconds without a change after which a file is complete.")] = 10,
    marker: Annotated[
        str | None,
        Option(
            help="Name of a file that marks a checkpoint as complete, such as '{}.done', instead of --settle.",
            show_default="none",
        ),
    ] = None,
    every: Annotated[float, Option(min=0.05, help="Seconds between two looks at the folder.")] = 5,
    steps_per_epoch: Annotated[
        int | None, Option(min=1, help="Steps per epoch, for names with an epoch.", show_default="the step in the file")
    ] = None,
    step_pattern: Annotated[
        str | None, Option(help="Regular expression with a group for the step; only names that match are checkpoints.")
    ] = None,
    tokens_per_step: Annotated[
        int | None, Option(min=1, help="Tokens per training step, from which tokens_seen is computed.")
    ] = None,
    averaged: Annotated[bool, Option(help="Also post averaged weights, as variants.")] = True,
    spool: Kept = "link",
    model: Model = None,
    layout: Layout = None,
    priority: Priority = 0,
    replace: Replace = False,
    upload: Annotated[
        bool, Option("--upload", help="Upload the checkpoints to a service that cannot read this machine's files.")
    ] = False,
    url: Url = None,
) -> None:
    """Post every checkpoint that appears in a folder once, with a line for each.

    Give --suite, or set a plan first (evalsvc plan): without suites no checkpoint would be evaluated, and the exit
    code is 2. A checkpoint that was posted before is evaluated with the suites that have not evaluated it yet.

    The command ends by Ctrl-C or SIGTERM, and continues where it stopped when it is started again. With --once, the
    exit code is 1 if the service refused a checkpoint.
    """
    if marker is not None and "{}" not in marker:
        problem = f"--marker {marker} has no {{}} for the name of the checkpoint"
        raise InvalidRequest(f"{problem}; write, for example, '{{}}.done'")
    if marker is not None and is_remote(folder):
        raise InvalidRequest(f"--marker is given for {folder}, whose objects are always complete; leave --marker out")
    if upload and is_remote(folder):
        raise InvalidRequest(f"--upload sends files of this machine, and {folder} is in a store; leave --upload out")
    settings = Settings.load()
    place = RemoteFolder(folder, settings) if is_remote(folder) else LocalFolder(Path(absolute_uri(folder)))
    pattern = None if step_pattern is None else StepPattern(step_pattern)
    memory = Memory.of(settings.data_path, str(place), run)
    classifier = Classifier(memory, settle, marker, pattern, steps_per_epoch, averaged)
    description = inline_model(model), inline_layout(layout)
    posting = Posting(run, suite or None, spool, *description, priority, tokens_per_step, replace, upload)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with connect(url) as client:
        watcher = Watcher(place, client, posting, classifier, say, lambda text: say(in_options(text), err=True))
        if not once:
            watcher.watch(every)
        if not place.exists():
            raise InvalidRequest(f"{place} is no folder; give the folder where checkpoints appear")
        watcher.post_all(every)
        if watcher.refused:
            raise typer.Exit(FAILED)
