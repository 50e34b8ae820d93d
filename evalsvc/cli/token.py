"""`evalsvc token`: who is let in, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from evalsvc.access_tokens import TokenScope
from evalsvc.cli.terminal import print_table, say
from evalsvc.config import Settings
from evalsvc.store.session import Store, open_store, translated
from evalsvc.store.tables import Token
from evalsvc.store.tokens import all_tokens, create_token, revoke_token

commands = typer.Typer()
token_app = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke the tokens of a service, on its database; it need not run, and heeds what was done "
    "within seconds. With the first one, a service lets nobody in without a token.",
)
commands.add_typer(token_app, name="token")


DataDir = Annotated[
    Path | None, typer.Option(help="Data folder of the service.", show_default="~/.local/share/evalsvc")
]


@token_app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is called, e.g. who or what uses it.")],
    scope: Annotated[
        TokenScope, typer.Option(help="What it allows: reading; also posting; also deleting, renaming and rules.")
    ] = "read",
    days: Annotated[float | None, typer.Option(help="Days until it expires.", show_default="never")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token. It is shown once, on standard output; the database keeps only its hash."""
    with _opened(data_dir) as store, store.transaction() as session:
        token = create_token(session, name, scope, days)
    say(token)
    say(
        f"token {name!r} of scope {scope}: shown only here; hand it on as EVALSVC_TOKEN, or in a file that only "
        "its owner may read (EVALSVC_TOKEN_FILE)",
        err=True,
    )


@token_app.command(name="list")
def list_tokens(data_dir: DataDir = None) -> None:
    """Show the tokens there are and were; none of them is readable."""
    with _opened(data_dir) as store, store.reading() as session:
        tokens = all_tokens(session)
    if not tokens:
        say("there is no token: the service is open to this machine; evalsvc token create NAME closes it")
        return
    print_table(
        ["name", "scope", "state", "created", "last used", "expires"],
        [
            [
                token.name,
                token.scope,
                _state(token),
                *map(_day, (token.created_at, token.last_used_at, token.expires_at)),
            ]
            for token in tokens
        ],
    )


@token_app.command()
def revoke(name: Annotated[str, typer.Argument(help="Which; see token list.")], data_dir: DataDir = None) -> None:
    """Let nobody in by a token any more, within seconds."""
    with _opened(data_dir) as store, store.transaction() as session:
        revoke_token(session, name)
    say(f"token {name!r} is revoked")


@contextmanager
def _opened(data_dir: Path | None) -> Iterator[Store]:
    store = open_store(Settings.load(data_dir=data_dir).database, migrate=False)
    try:
        with translated(store.url):
            yield store
    finally:
        store.close()


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= datetime.now(UTC) else "in force"


def _day(when: datetime | None) -> str:
    return "never" if when is None else when.strftime("%Y-%m-%d %H:%M")
