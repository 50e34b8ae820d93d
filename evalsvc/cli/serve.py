"""`evalsvc serve`: run the service and its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from evalsvc.cli.options import DatabaseUrl, DataDir, Devices, Suites, Threads, Tls
from evalsvc.config import Settings, drop_secrets
from evalsvc.log import configure_logs

commands = typer.Typer()


@commands.command()
def serve(
    host: Annotated[str | None, Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, Option(help="Port to listen on; 0 takes a free one.", show_default="8321")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    suites: Suites = None,
    devices: Devices = None,
    threads: Threads = None,
    scheduler: Annotated[
        str | None,
        Option(help="Address of a Dask scheduler, tls://HOST:PORT.", show_default="a new scheduler and its workers"),
    ] = None,
    tls: Tls = None,
    https_cert: Annotated[
        Path | None, Option(help="PEM file with a certificate and its private key, to serve https with.")
    ] = None,
    read_only: Annotated[
        bool, Option("--read-only", help="Only answer reads, next to the service that owns the database.")
    ] = False,
    migrate: Annotated[
        bool, Option("--migrate", help="Migrate an older database to this version before the start.")
    ] = False,
    new_data_folder: Annotated[
        bool,
        Option(
            "--new-data-folder",
            help="Start with an empty data folder, although the database has runs whose data folder is lost.",
        ),
    ] = False,
    insecure: Annotated[
        bool, Option("--insecure", help="Listen on an address that other machines can reach, although no token exists.")
    ] = False,
) -> None:
    """Run the service and its workers on this machine."""
    settings = Settings.load(
        host=host,
        port=port,
        data_dir=data_dir,
        database_url=database_url,
        suites=suites,
        devices=devices,
        threads=threads,
        scheduler=scheduler,
        tls=tls,
        https_cert=https_cert,
        read_only=1 if read_only else None,
    )
    drop_secrets()
    configure_logs(settings.log_format, settings.log_level)
    # FastAPI, SQLAlchemy and Dask take two seconds to import; `--help` and completion do not need them.
    from evalsvc.cli.service_banner import serve_announced

    serve_announced(settings, migrate=migrate, insecure=insecure, new_data_folder=new_data_folder)
