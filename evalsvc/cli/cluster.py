"""`evalsvc worker`, `scheduler` and `certificates`: what a service on several machines consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.options import Devices, Threads, TlsCa, TlsCert, TlsKey
from evalsvc.cli.terminal import say
from evalsvc.cluster.certificates import write_certificates
from evalsvc.cluster.scheduler import run_scheduler
from evalsvc.cluster.supervisor import run_workers
from evalsvc.config import Settings, drop_secrets
from evalsvc.log import configure_logs

commands = typer.Typer()


@commands.command()
def worker(
    scheduler: Annotated[str, typer.Argument(help="The Dask scheduler, tls://HOST:PORT.")],
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    devices: Devices = None,
    device: Annotated[str | None, typer.Option(help="Only one, such as cuda:0 or cpu.", show_default="all")] = None,
    threads: Threads = None,
) -> None:
    """Run workers for an existing scheduler, and start again whatever ends, until SIGTERM or Ctrl-C.

    Then running shards are finished and no other is taken; a second signal ends them at once.
    """
    settings = Settings.load(
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        devices=devices,
        device=device,
        threads=threads,
    )
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)
    raise typer.Exit(run_workers(settings, scheduler, say))


@commands.command()
def scheduler(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8786,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Run the scheduler between a service and workers of other machines, until interrupted.

    It lets in only who has the certificates, and keeps nothing: where it dies, start another at the same address.
    """
    settings = Settings.load(tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)

    def announce(address: str) -> None:
        say(f"evalsvc scheduler listens on {address}")

    run_scheduler(settings, host, port, announce)


@commands.command()
def certificates(folder: Annotated[Path, typer.Argument(help="Where to write ca.pem, cert.pem and key.pem.")]) -> None:
    """Make the certificates that scheduler, service and workers share. Whoever has key.pem is let in."""
    for path in write_certificates(folder).values():
        say(str(path))
