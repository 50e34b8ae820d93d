"""Options and arguments that several commands take, and the functions that read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from evalsvc.checkpoints.reference import Spool
from evalsvc.client import Client
from evalsvc.cluster.devices import check_devices
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, os_reason

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,255}")
"""Names that are safe to offer: a shell evaluates them, and anyone who may post chooses names of metrics."""

TIMEOUT, DEADLINE = 1.0, 2.0
"""Seconds until no names are offered: without any byte from the service, and without the whole answer."""

MOST = 500


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the runs whose names begin with `incomplete`; behind `RUN@`, the checkpoints of RUN."""
    run, at, _ = incomplete.partition("@")
    if at:
        words = [f"{run}@{word}" for word in ("best", "newest", "base")]
        return _offered(
            ctx, incomplete, lambda client: [*words, *(f"{run}@{item.step}" for item in client.run(run).checkpoints)]
        )
    return _offered(ctx, incomplete, lambda client: [item.name for item in client.runs()])


def complete_suite(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda client: [suite.name for suite in client.suites()])


def complete_metric(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda client: _metrics(client, ctx))


def complete_task(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda client: [name.partition("/")[0] for name in _metrics(client, ctx)])


def _offered(ctx: typer.Context, incomplete: str, names: Callable[[Client], Iterable[str]]) -> list[str]:
    answered: list[str] = []

    def ask() -> None:
        with suppress(Exception):  # the shell would show a message in the middle of the command line
            settings = Settings.load(url=ctx.params.get("url"))
            with Client(settings.url, token=settings.client_token(), timeout=TIMEOUT) as client:
                answered.extend(names(client))

    # A service that answers byte by byte never exceeds the timeout of a connection; the thread has a deadline.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(DEADLINE)
    offered = dict.fromkeys(name for name in list(answered) if name.startswith(incomplete) and SAFE.fullmatch(name))
    return list(islice(offered, MOST))


def _metrics(client: Client, ctx: typer.Context) -> list[str]:
    # If an option lacks its value, the arguments are not parsed yet.
    given = [*(ctx.params.get(name) for name in ("runs", "run", "name", "names", "a", "candidate")), ctx.args]
    named = next((value for value in given if value), None)
    name = named[0] if isinstance(named, (list, tuple)) else named
    if not name:
        return []
    return [series.metric for series in client.summary(re.split("[@:]", str(name))[0])]


FAILED, WRONG_USE = 1, 2
"""Exit codes of a command whose evaluation failed, or that could not start since an option or a file is wrong."""

Format = Literal["table", "csv", "json"]
Form = Annotated[Format, Option("--format", help="Format of the answer.")]
Output = Annotated[Path | None, Option("--output", help="File to write the answer to.", show_default="standard output")]
Yes = Annotated[bool, Option("--yes", help="Do not ask for confirmation.")]
Url = Annotated[str | None, Option(help="Address of the service.", show_default="http://127.0.0.1:8321")]
DataDir = Annotated[Path | None, Option(help="Data folder of the service.", show_default="~/.local/share/evalsvc")]
DatabaseUrl = Annotated[
    str | None, Option(help="SQLAlchemy URL of the database.", show_default="SQLite in the data folder")
]
RunArgument = Annotated[str, Argument(metavar="RUN", help="Name of the training run.", autocompletion=complete_run)]
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
Kept = Annotated[
    Spool, Option("--spool", help="Keep the weights until their evaluation ends, by a hard link or a copy.")
]
Replace = Annotated[
    bool, Option("--replace", help="Replace another file that was posted for the same step and variant.")
]
Suite = Annotated[
    list[str] | None,
    Option(help="Name of a suite; repeat for several.", show_default="the run's plan", autocompletion=complete_suite),
]
AcrossSampling = Annotated[
    bool, Option("--across-sampling", help="Also compare external images with sampled ones, paired by prompt.")
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


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Raise InvalidRequest if the file that an option names cannot be written."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(f"{option} {path} cannot be written: {os_reason(error)}; name another file") from None


def write_output(option: str, path: Path, text: str) -> None:
    with writing(option, path):
        path.write_text(text)


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
