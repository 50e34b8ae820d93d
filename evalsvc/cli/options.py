"""What several commands take, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from evalsvc.cli.terminal import say_json
from evalsvc.client import Client
from evalsvc.config import Settings

FAILED = 1
"""Exit code: the evaluation failed."""


class Spool(StrEnum):
    none = "none"
    link = "link"
    copy = "copy"


class Family(StrEnum):
    none = "none"
    holm = "holm"


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


Url = Annotated[str | None, typer.Option(help="Address of the service.", show_default="http://127.0.0.1:8321")]
Suites = Annotated[Path | None, typer.Option(help="Folder with suites of your own, one YAML file each.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a worker.", show_default="cores / workers")]
TlsCa = Annotated[Path | None, typer.Option(help="Certificate authority of the scheduler.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate for the scheduler.")]
TlsKey = Annotated[Path | None, typer.Option(help="Private key for the scheduler.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="open_lm model: a registered name, a JSON file, or JSON.", show_default="what lies beside the checkpoint"
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


def print_document(
    format: Format,  # noqa: A002
    document: dict[str, Any],
    table: Callable[[Mapping[str, Any]], None],
    csv: Callable[[Mapping[str, Any]], None],
) -> None:
    """Print what the service answered."""
    if format is Format.json:
        say_json(document)
    elif format is Format.csv:
        csv(document)
    else:
        table(document)


def text_of(path: Path | None) -> str | None:
    return None if path is None else str(path)


def hand_on(settings: Settings) -> None:
    """To the runner, which reads its settings where every worker process finds them."""
    os.environ.update(settings.environment())
