"""`evalsvc worker`, `scheduler` and `certificates`: the parts of a service on several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import Devices, Threads, Tls
from evalsvc.cli.terminal import announce, say
from evalsvc.cluster.certificates import write_certificates
from evalsvc.cluster.supervisor import run_scheduler, run_workers
from evalsvc.config import Settings, drop_secrets
from evalsvc.log import configure_logs

commands = typer.Typer()


@commands.command()
def worker(
    scheduler: Annotated[str, Argument(help="Address of the Dask scheduler, tls://HOST:PORT.")],
    tls: Tls = None,
    devices: Devices = None,
    threads: Threads = None,
) -> None:
    """Run workers for an existing scheduler, and restart a worker that ends, until SIGTERM or Ctrl-C.

    After the signal the workers finish their running shards and take no others. A second signal ends them immediately.
    """
    settings = Settings.load(tls=tls, devices=devices, threads=threads)
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)
    raise typer.Exit(run_workers(settings, scheduler, announce))


@commands.command()
def scheduler(
    host: Annotated[str, Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, Option(help="Port to listen on; 0 takes a free one.")] = 8786,
    tls: Tls = None,
) -> None:
    """Run the scheduler between a service and the workers of other machines, until interrupted.

    The scheduler accepts only processes that have the certificates. The scheduler stores nothing: if it dies, start a
    new one at the same address.
    """
    settings = Settings.load(tls=tls)
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)
    run_scheduler(settings, host, port, lambda address: announce(f"evalsvc scheduler listens on {address}"))


@commands.command()
def certificates(folder: Annotated[Path, Argument(help="Folder for ca.pem, cert.pem and key.pem.")]) -> None:
    """Make the certificates that scheduler, service and workers share. Anyone with key.pem can connect."""
    for path in write_certificates(folder).values():
        say(str(path))
