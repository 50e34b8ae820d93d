"""The service, its workers, and the demo that runs both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalsvc.cli.options import (
    FAILED,
    Suites,
    Threads,
    TlsCa,
    TlsCert,
    TlsKey,
    text_of,
)
from evalsvc.cli.terminal import (
    complain,
    print_answers,
    print_demo,
    say,
    show_bars,
)
from evalsvc.config import Settings, drop_secrets
from evalsvc.log import configure_logs

if TYPE_CHECKING:
    pass

commands = typer.Typer()


@commands.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8321")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of database, spooled checkpoints and artifacts.", show_default="~/.local/share/evalsvc"
        ),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL.", show_default="SQLite in the data folder")
    ] = None,
    suites: Suites = None,
    devices: Annotated[
        str | None,
        typer.Option(help="One worker process each: all, or a list such as cuda:0,cuda:1.", show_default="all"),
    ] = None,
    threads: Threads = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="An existing Dask scheduler, tls://HOST:PORT.", show_default="a cluster of its own"),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    https_cert: Annotated[Path | None, typer.Option(help="Certificate: listen by https.")] = None,
    https_key: Annotated[Path | None, typer.Option(help="Private key of --https-cert.")] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Answer reads alone, beside the service that has the database.")
    ] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring an older database to this version first.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that others reach though there is no token.")
    ] = False,
) -> None:
    """Run the service and its workers on this machine."""
    settings = Settings.load(
        host=host,
        port=port,
        data_dir=text_of(data_dir),
        database_url=database_url,
        suites=text_of(suites),
        devices=devices,
        threads=threads,
        scheduler=scheduler,
        tls_ca=text_of(tls_ca),
        tls_cert=text_of(tls_cert),
        tls_key=text_of(tls_key),
        https_cert=text_of(https_cert),
        https_key=text_of(https_key),
        read_only=1 if read_only else None,
    )
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)
    from evalsvc.api.server import serve as serve_settings

    def announce(url: str) -> None:
        say(f"evalsvc listens on {url}")

    serve_settings(settings, announce, migrate=migrate, insecure=insecure)


@commands.command()
def worker(
    scheduler: Annotated[str, typer.Argument(help="The Dask scheduler, tls://HOST:PORT.")],
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    devices: Annotated[
        str | None,
        typer.Option(help="One worker process each: all, or a list such as cuda:0,cuda:1.", show_default="all"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Only one, such as cuda:0 or cpu.", show_default="all")] = None,
    threads: Threads = None,
) -> None:
    """Run workers for an existing scheduler, and start again whatever ends, until SIGTERM or Ctrl-C.

    Then running shards are finished and no other is taken; a second signal ends them at once.
    """
    settings = Settings.load(
        tls_ca=text_of(tls_ca),
        tls_cert=text_of(tls_cert),
        tls_key=text_of(tls_key),
        devices=devices,
        device=device,
        threads=threads,
    )
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)
    from evalsvc.cluster.supervisor import run_workers

    raise typer.Exit(run_workers(settings, scheduler))


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
    settings = Settings.load(tls_ca=text_of(tls_ca), tls_cert=text_of(tls_cert), tls_key=text_of(tls_key))
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)
    from evalsvc.cluster.scheduler import run_scheduler

    def announce(address: str) -> None:
        say(f"evalsvc scheduler listens on {address}")

    run_scheduler(settings, host, port, announce)


@commands.command()
def certificates(folder: Annotated[Path, typer.Argument(help="Where to write ca.pem, cert.pem and key.pem.")]) -> None:
    """Make the certificates that scheduler, service and workers share. Whoever has key.pem is let in."""
    from evalsvc.cluster.certificates import write_certificates

    for path in write_certificates(folder).values():
        say(str(path))


@commands.command()
def demo(
    leave: Annotated[bool, typer.Option("--exit", help="End after the table instead of serving on.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the demo.", show_default="a temporary one")] = None,
    devices: Annotated[str, typer.Option(help="Worker processes.")] = "cpu,cpu",
) -> None:
    """Evaluate the miniature run that comes with evalsvc, end to end: losses, images, FID, what is left of its English.

    Needs the asset `inception`: evalsvc assets pull inception.
    """
    import tempfile

    from evalsvc.cli import demo as demonstration
    from evalsvc.client import Client

    with tempfile.TemporaryDirectory(prefix="evalsvc-demo-") as temporary:
        folder = data_dir or Path(temporary)
        assets = Settings.load().assets_path
        with demonstration.started_service(folder, devices, assets) as url, Client(url) as client:
            say(f"evalsvc listens on {url}")
            evaluations = demonstration.post_all(client)
            with show_bars() as bars:
                failures = demonstration.wait_all(
                    client,
                    evaluations,
                    lambda done, running: bars.show("miniature", done, len(evaluations), running or "checkpoints"),
                )
            print_demo(list(demonstration.COLUMNS), demonstration.read_table(client))
            print_answers(demonstration.read_answers(client))
            for failure in failures:
                complain(failure)
            if not leave and not failures:
                say(f"serving on {url}; Ctrl-C ends the demo")
                _wait_for_interrupt()
        if failures:
            raise typer.Exit(FAILED)


def _wait_for_interrupt() -> None:
    import signal

    try:
        signal.pause()
    except KeyboardInterrupt:
        say()
