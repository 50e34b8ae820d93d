"""Uploads on the command line: which file is sent, what its model is, and how far the upload is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn

from evalsvc.cli.terminal import say
from evalsvc.cli.weights import Description, inline_model, is_virtual
from evalsvc.errors import InvalidRequest
from evalsvc.files.uploads.local import Report
from evalsvc.spec.model_config import find_model_config

SAY_EVERY = 10.0
"""Seconds between two lines about an upload where stderr is no terminal."""


def uploaded_path(uri: str) -> str:
    """Return the path of a file that is to be uploaded.

    Raises:
        InvalidRequest: the argument is an expression or an address.
    """
    if is_virtual(uri) or "://" in uri:
        raise InvalidRequest(f"--upload sends a file of this machine, and {uri} is none; leave --upload out")
    return str(Path(uri).expanduser().absolute())


def uploaded_model(uri: str, model: str | None) -> Description:
    """Return the model that `--model` describes, or else the files next to the checkpoint, which are not uploaded.

    Raises:
        InvalidRequest: neither says what the model is.
        InvalidModelConfig: see `find_model_config`.
    """
    found = find_model_config(Path(uploaded_path(uri))) if model is None else inline_model(model)
    if found is None:
        raise InvalidRequest(
            f"nothing next to {uri} says what its model is: there is no params.txt, config.json or JSON file with "
            "hidden_dim; give --model"
        )
    return found


@contextmanager
def show_upload() -> Iterator[Report]:
    """Give a function that shows on stderr how far an upload is: a bar in a terminal, else a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        DownloadColumn(),
        SpeedColumn(),
        TimeRemainingColumn(),
    )
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def report(what: str, done: int, size: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=size)
            progress.update(bars[what], completed=done)

        yield report


def _lines() -> Report:
    """Return a function that prints a line every `SAY_EVERY` seconds."""
    begun = said = time.monotonic()

    def report(what: str, done: int, size: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SAY_EVERY:
            said = now
            say(f"{what}: {done / 1e6:,.0f} of {size / 1e6:,.0f} MB after {now - begun:.0f} s", err=True)

    return report
