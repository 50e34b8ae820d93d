"""Lines that `evalsvc serve` prints when the service answers: its address, its resources, and how to stop it."""

from __future__ import annotations

import os
import textwrap
from functools import partial

from evalsvc.api.middleware.browsers import is_loopback
from evalsvc.api.server import Started, serve
from evalsvc.cli.terminal import announce
from evalsvc.cluster.devices import device_list
from evalsvc.config import Settings, shown_url

WIDTH = 80
"""Width of a line in characters. A longer word, such as a path, gets a whole line and is not cut."""


def serve_announced(settings: Settings, *, migrate: bool, insecure: bool, new_data_folder: bool) -> None:
    def describe(started: Started) -> None:
        # One write: a program that reads only the address may then close the pipe.
        announce("\n".join(describe_service(settings, started)))

    serve(settings, describe, migrate=migrate, insecure=insecure, new_data_folder=new_data_folder)


def describe_service(settings: Settings, started: Started) -> list[str]:
    """Return the lines: the address, then a fact per line; the address alone next to a log in JSON."""
    workers = {"devices": ", ".join(device_list(settings.devices))}
    if settings.read_only:
        workers = {"devices": "none: the service only answers reads"}
    elif settings.scheduler:
        workers = {"scheduler": settings.scheduler}
    everyone = "anyone on this machine" if is_loopback(settings.host) else f"anyone who reaches {settings.host}"
    tokens = f"none: {everyone} can use the service"
    if started.has_tokens:
        tokens = f"needed, except for reading: {everyone} can read" if settings.open_reads else "needed"
    facts = {
        "data folder": str(settings.data_path),
        "database": shown_url(settings.database),
        **workers,
        "suites": f"those of evalsvc, and {settings.suites_path}" if settings.suites_path else "those of evalsvc",
        "roots": settings.roots if settings.has_roots else f"{settings.roots} (every file that this process can read)",
        "tokens": tokens,
        "stop": f"Ctrl-C, or kill {os.getpid()}; running shards get {settings.grace:g} s to finish",
    }
    lines = [f"evalsvc listens on {started.url}"]
    if settings.log_format == "json":
        return lines
    wrap = partial(textwrap.wrap, width=WIDTH, break_long_words=False, break_on_hyphens=False)
    for name, fact in facts.items():
        lines += wrap(fact, initial_indent=f"  {name:<11}  ", subsequent_indent=" " * 15)
    return lines
