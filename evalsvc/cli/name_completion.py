"""Completion of names in the shell: runs, checkpoints, suites, metrics and tasks of the service.

Requests have a short timeout. If the service does not answer, or answers with an error, no names are offered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from threading import Thread

import typer

from evalsvc.client import Client
from evalsvc.config import Settings

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,255}")
"""Names that are safe to offer: a shell evaluates them, and anyone who may post chooses names of metrics."""

TIMEOUT, DEADLINE = 1.0, 2.0
"""Seconds until no names are offered: without any byte from the service, and without the whole answer."""

MOST = 500
"""Most names that are offered."""


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the runs whose names begin with `incomplete`; behind `RUN@`, the checkpoints of RUN."""
    run, at, _ = incomplete.partition("@")
    if at:
        return _offered(ctx, incomplete, lambda client: [f"{run}@{item.step}" for item in client.run(run).checkpoints])
    return _offered(ctx, incomplete, lambda client: [item.name for item in client.runs()])


def complete_suite(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the suites of the service whose names begin with `incomplete`."""
    return _offered(ctx, incomplete, lambda client: [suite.name for suite in client.suites()])


def complete_metric(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the metrics of the run that the command line names."""
    return _offered(ctx, incomplete, lambda client: _metrics(client, ctx))


def complete_task(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the tasks that measured the run that the command line names."""
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
