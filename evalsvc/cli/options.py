"""Options and arguments that several commands take, and the functions that read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from evalsvc.cli.name_completion import complete_run, complete_suite
from evalsvc.client import Client
from evalsvc.cluster.devices import check_devices
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, os_reason

FAILED = 1
"""Exit code of a command whose evaluation failed."""

WRONG_USE = 2
"""Exit code of a command that could not start because an option, a suite or a data file is wrong."""


Format = Literal["table", "csv", "json"]
"""Formats of a printed answer."""

Form = Annotated[Format, Option("--format", help="Format of the answer.")]
Output = Annotated[Path | None, Option("--output", help="File to write the answer to.", show_default="standard output")]
Yes = Annotated[bool, Option("--yes", help="Do not ask for confirmation.")]
Url = Annotated[str | None, Option(help="Address of the service.", show_default="http://127.0.0.1:8321")]
DataDir = Annotated[Path | None, Option(help="Data folder of the service.", show_default="~/.local/share/evalsvc")]
DatabaseUrl = Annotated[
    str | None, Option(help="SQLAlchemy URL of the database.", show_default="SQLite in the data folder")
]
RunArgument = Annotated[str, Argument(metavar="RUN", help="Name of the training run.", autocompletion=complete_run)]
CheckpointArgument = Annotated[
    str, Argument(metavar="RUN@STEP", help="The checkpoint: RUN@STEP or RUN@STEP:VARIANT.", autocompletion=complete_run)
]
OfVariant = Annotated[
    str | None, Option("--variant", help="Show only this variant of the weights.", show_default="all")
]
OfSuite = Annotated[
    str | None,
    Option("--suite", help="Show only results by this suite.", show_default="all", autocompletion=complete_suite),
]
Cancel = Annotated[bool, Option("--cancel", help="Cancel evaluations that are queued or running.")]
Priority = Annotated[int, Option(help="Priority; higher priorities are evaluated first.")]
FirstStep = Annotated[int | None, Option("--from", min=0, help="First step.", show_default="the lowest")]
LastStep = Annotated[int | None, Option("--to", min=0, help="Last step.", show_default="the highest")]
Limit = Annotated[int, Option(min=1, max=100_000, help="Most rows to show.")]
EvaluationId = Annotated[int, Argument(metavar="ID", min=1, help="Id of the evaluation.")]
Suite = Annotated[
    list[str] | None,
    Option(help="Name of a suite; repeat for several.", show_default="the run's plan", autocompletion=complete_suite),
]
Device = Annotated[str | None, Option(help="Device, such as cuda:0 or cpu.", show_default="cuda, else cpu")]
Devices = Annotated[
    str | None,
    Option(help="Devices with one worker process each: all, or a list such as cuda:0,cuda:1.", show_default="all"),
]
Suites = Annotated[Path | None, Option(help="Folder with your own suites, a YAML file for each.")]
Threads = Annotated[int | None, Option(help="CPU threads of each process.", show_default="cores / workers")]
Tls = Annotated[Path | None, Option(help="Folder with the certificates of scheduler, service and workers.")]
Model = Annotated[
    str | None,
    Option(
        help="Model: transformers, a registered open_lm name, a JSON file such as config.json, or JSON.",
        show_default="the checkpoint's folder",
    ),
]
Layout = Annotated[
    str | None,
    Option(help="Vocabulary layout: a preset's name, a YAML or JSON file, or JSON.", show_default="all text"),
]


Engine = Annotated[
    list[str] | None,
    Option(
        "--engine",
        help="Program for a stage, as STAGE=NAME, such as model=open_lm, decoder=diffusers, scoring=hflm or "
        "extractor=clean-fid; repeat for several.",
        show_default="those of the suite",
    ),
]


def local_settings(device: str | None, threads: int | None, suites: Path | None = None) -> Settings:
    """Return the settings of a command that computes on this machine, which has the device."""
    settings = Settings.load(devices=device, threads=threads, suites=suites)
    if settings.device:
        option = "EVALSVC_DEVICES" if device is None else "--device"
        check_devices([settings.device], option, "cpu, or a card such as cuda:0")
    return settings


def connect(url: str | None) -> Client:
    """Return a client of the service at `url`, or at EVALSVC_URL if None, with the token of the settings."""
    settings = Settings.load(url=url)
    return Client(settings.url, token=settings.client_token())


def write_output(option: str, path: Path, text: str) -> None:
    """Write a text to the file that an option names; raise InvalidRequest if the file cannot be written."""
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidRequest(f"{option} {path} cannot be written: {os_reason(error)}; name another file") from None


def require_folders(files: Mapping[str, Path | None]) -> None:
    """Raise InvalidRequest if the folder of a file to write does not exist; `files` has the files by option."""
    for option, path in files.items():
        if path is not None and not path.parent.is_dir():
            raise InvalidRequest(f"{option} {path}: the folder {path.parent} does not exist; create the folder first")


def refuse(options: Mapping[str, object], because: str) -> None:
    """Raise InvalidRequest if one of the options is given, which has no meaning `because` of another argument."""
    for option, value in options.items():
        if value not in (None, False, [], ()):
            raise InvalidRequest(f"{option} is given {because}; leave {option} out")
