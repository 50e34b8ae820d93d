"""The page about REST alone names the routes of every command, and no route or command that does not exist."""

import re
from collections.abc import Iterator
from typing import Any

from doc_blocks import DOCS, section
from doc_commands import COMMANDS

from evalsvc.api.app import create_app
from evalsvc.config import Settings

TABLE = section(DOCS / "how-to" / "rest.md", "## Which route does what a command does")
ROWS = re.findall(r"^\| (`.+) \| (.+) \|$", TABLE, re.MULTILINE)

WITHOUT_ROUTE = {
    *("serve", "worker", "scheduler", "certificates", "tokens", "backup", "restore", "watch", "gate", "demo", "run"),
    *("verify", "doctor", "layout", "tasks", "metrics", "benchmarks", "reference", "assets"),
    *("suites new", "suites check", "export site"),
}
"""Commands, and groups of commands, about files, the machine or the database, or about answers of other routes."""

ONLY_BY_REST = {
    "OPTIONS /v1/uploads",
    "GET /v1/uploads/{sha256}",
}
"""Routes for a client that resumes an upload."""


def words_of(command: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the commands below a command, such as `runs list`."""
    command = command.load() if hasattr(command, "load") else command
    if not hasattr(command, "commands"):
        yield " ".join(before)
        return
    for name, inner in command.commands.items():
        yield from words_of(inner, (*before, name))


def test_every_command_about_the_service_has_its_route() -> None:
    """A client without the command line finds a way to do what the documentation does by a command."""
    named = {
        re.sub(r"( [A-Z]+(@[A-Z]+)?)*( --.*)?$", "", name)
        for commands, _ in ROWS
        for name in re.findall(r"`([^`]+)`", commands)
    }
    own = {name for name in words_of(COMMANDS) if not {name, name.partition(" ")[0]} & WITHOUT_ROUTE}
    assert own - named == set()
    assert named - own == set()


def test_the_routes_exist_and_none_is_left_out() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    existing = {
        f"{method.upper()} {path}" for path, item in paths.items() for method in item if path.startswith("/v1/")
    }
    named = {route for _, routes in ROWS for route in re.findall(r"`([A-Z]+ /[^`]+)`", routes)}
    assert named - existing == set()
    assert existing - named - ONLY_BY_REST == set()
