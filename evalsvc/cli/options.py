"""What several commands take, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from evalsvc.cli.terminal import say_json
from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, os_reason
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.reading import content_of

FAILED = 1
"""Exit code: the evaluation failed."""


Format = Literal["table", "csv", "json"]
"""How a document of the service is printed."""

Url = Annotated[str | None, typer.Option(help="Address of the service.", show_default="http://127.0.0.1:8321")]
Suite = Annotated[list[str] | None, typer.Option(help="Suite; repeat for several.", show_default="the run's plan")]
Device = Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.", show_default="cuda, else cpu")]
Devices = Annotated[
    str | None,
    typer.Option(help="One worker process each: all, or a list such as cuda:0,cuda:1.", show_default="all"),
]
Suites = Annotated[Path | None, typer.Option(help="Folder with suites of your own, one YAML file each.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a worker.", show_default="cores / workers")]
TlsCa = Annotated[Path | None, typer.Option(help="Certificate authority of the scheduler.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate for the scheduler.")]
TlsKey = Annotated[Path | None, typer.Option(help="Private key for the scheduler.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="open_lm model: a registered name, a JSON file, or JSON.", show_default="the checkpoint's folder"
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(help="Vocabulary layout: a preset's name, a YAML or JSON file, or JSON.", show_default="all text"),
]


def connect(url: str | None) -> Client:
    """The client of the service at `url` [EVALSVC_URL], with the token of the settings."""
    settings = Settings.load(url=url)
    return Client(settings.url, token=settings.client_token(), ca=settings.https_ca or None)


Answer = TypeVar("Answer")


def print_document(
    format: Format,  # noqa: A002
    document: Answer,
    table: Callable[[Answer], None],
    csv: Callable[[Answer], None],
) -> None:
    """Print what the service answered."""
    if format == "json":
        say_json(content_of(document) if isinstance(document, Document) else document)
    elif format == "csv":
        csv(document)
    else:
        table(document)


def write_output(option: str, path: Path, text: str) -> None:
    """Write a text to the file that an option names; raise InvalidRequest where that cannot be done."""
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidRequest(f"{option} {path} cannot be written: {os_reason(error)}") from None


def require_folders(files: Mapping[str, Path | None]) -> None:
    """Raise InvalidRequest where the folder of a file that is to be written is not there; `files` are by option."""
    for option, path in files.items():
        if path is not None and not path.parent.is_dir():
            raise InvalidRequest(f"{option} {path}: there is no folder {path.parent}; make it first")
