"""`evalsvc tokens`, `backup` and `restore`: commands that open the database of the service."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import select
from typer import Argument, Option

from evalsvc.access_tokens import TokenScope
from evalsvc.cli.lazy_group import add_group
from evalsvc.cli.options import DatabaseUrl, DataDir, Form, Output
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.terminal import say, warn
from evalsvc.cli.wording import counted
from evalsvc.config import Settings
from evalsvc.errors import first_few
from evalsvc.store.backup import restore_backup, write_backup
from evalsvc.store.data_folder import require_owner
from evalsvc.store.session import Store, open_known, open_store, translated
from evalsvc.store.tables import Term, Token
from evalsvc.store.tokens import all_tokens, create_token, revoke_token

commands = typer.Typer()
tokens_app = add_group(
    commands,
    "tokens",
    "Make, list and revoke access tokens.\n\nThe commands change the database of the service; a running service "
    "follows within seconds. As soon as a token exists, the service refuses requests without a token.",
)


NEW = "; add --new to make a token before the service is started for the first time"


@tokens_app.command()
def create(
    name: Annotated[str, Argument(metavar="NAME", help="Name of the token, such as the job that uses the token.")],
    scope: Annotated[
        TokenScope,
        Option(help="Scope: read; submit, which can also post; admin, which can also delete, rename and set rules."),
    ] = "read",
    days: Annotated[float | None, Option(help="Days until the token expires.", show_default="never")] = None,
    new: Annotated[
        bool, Option("--new", help="Set up the database, for a token that precedes the first start of the service.")
    ] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a token, and print the token once, on standard output.

    The database keeps only the hash of the token. A file that standard output goes to (> FILE) gets the mode 600, which
    EVALSVC_TOKEN=@FILE asks for.
    """
    with suppress(OSError):  # a pipe, or a stream of a program
        if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
            os.fchmod(sys.stdout.fileno(), 0o600)
    with _opened(data_dir, database_url, new, NEW) as store, store.transaction() as session:
        token = create_token(session, name, scope, days)
    say(token)
    say(
        f"token {name!r} with scope {scope} is shown only this time; give it to clients as EVALSVC_TOKEN, or in a "
        "file that only its owner may read as EVALSVC_TOKEN=@FILE",
        err=True,
    )


@tokens_app.command(name="list")
def list_tokens(
    form: Form = "table", output: Output = None, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """List the names, scopes and states of tokens, including revoked and expired tokens."""
    with _opened(data_dir, database_url) as store, store.reading() as session:
        rows = [
            {
                "name": token.name,
                "scope": token.scope,
                "state": _state(token),
                "created": _day(token.created_at),
                "last used": _day(token.last_used_at),
                "expires": _day(token.expires_at),
            }
            for token in all_tokens(session)
        ]
    nothing = "no token exists, so anyone on this machine can use the service; evalsvc tokens create NAME closes it"
    with printed_to(output):
        print_rows(rows, form, "tokens", nothing)


@tokens_app.command()
def revoke(
    name: Annotated[str, Argument(metavar="NAME", help="Name of the token; see `evalsvc tokens list`.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a token. The service refuses the token within seconds."""
    with _opened(data_dir, database_url) as store, store.transaction() as session:
        revoke_token(session, name)
    say(f"token {name!r} is revoked")


@contextmanager
def _opened(data_dir: Path | None, database_url: str | None, new: bool = False, advice: str = "") -> Iterator[Store]:
    settings = Settings.load(data_dir=data_dir, database_url=database_url)
    store = open_store(settings.database, migrate=False) if new else open_known(settings, advice)
    with closing(store), translated(store.url):
        store.check_schema()
        with store.reading() as session:
            require_owner(settings.data_path, session.scalar(select(Term.database_id)), store.url)
        yield store


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= datetime.now(UTC) else "in force"


def _day(when: datetime | None) -> str:
    return "never" if when is None else when.strftime("%Y-%m-%d %H:%M")


@commands.command()
def backup(
    file: Annotated[Path, Argument(help="File to write, a tar that only its owner may read.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    force: Annotated[bool, Option("--force", help="Replace the file if it exists.")] = False,
    spool: Annotated[bool, Option(help="Include the checkpoints that the service keeps, which may be large.")] = True,
) -> None:
    """Write the database and the data folder to one file, consistent with each other, while the service runs.

    The backup has all results, and the hashes of tokens. Assets, data sets, caches and checkpoints that were posted
    without --spool are not part of the backup.
    """
    settings = Settings.load(data_dir=data_dir, database_url=database_url)
    _warn_of_lost(write_backup(settings, file, force=force, spool=spool))
    say(f"{file}: {file.stat().st_size:,} bytes")


@commands.command()
def restore(
    file: Annotated[Path, Argument(help="File that `evalsvc backup` has written.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Restore a backup into an empty database, SQLite or PostgreSQL, and a new data folder.

    Stop the service of that database first. The database stays empty until the whole backup has been restored.
    """
    settings = Settings.load(data_dir=data_dir, database_url=database_url)
    lost, writer = restore_backup(settings, file)
    _warn_of_lost(lost)
    say(f"restored {file}, written by {writer}; data folder: {settings.data_path}")


def _warn_of_lost(names: list[str]) -> None:
    if names:
        lost = counted(len(names), "file")
        warn(f"{lost} of the data folder missing or damaged before the backup: {first_few(names, 5)}")
