"""`evalsvc tokens`: what it prints, and where."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from evalsvc.access_tokens import TOKEN, hash_token
from evalsvc.cli import app
from evalsvc.cli.database import create
from evalsvc.errors import DatabaseUnusable
from evalsvc.files.secrets import read_token
from evalsvc.store.session import open_store
from evalsvc.store.tokens import all_tokens, create_token


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["tokens", *arguments, "--data-dir", str(folder)], catch_exceptions=True)


def test_a_token_is_shown_once_alone_on_standard_output(tmp_path: Path) -> None:
    """`EVALSVC_TOKEN=$(evalsvc tokens create …)` must get the token and nothing else."""
    made = run(tmp_path, "create", "trainer", "--scope", "submit", "--days", "30")
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert TOKEN.fullmatch(token)
    assert "token 'trainer' with scope submit is shown only this time" in made.stderr
    listed = run(tmp_path, "list")
    assert token not in listed.output
    assert hash_token(token) not in listed.output
    assert [word for word in ("trainer", "submit", "in force", "never") if word not in listed.stdout] == []


def test_a_file_for_a_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tokens create … > FILE`, as the pages have it, made a file that EVALSVC_TOKEN=@FILE refused."""
    file = tmp_path / "trainer.token"
    with file.open("w") as stdout:
        file.chmod(0o644)
        monkeypatch.setattr(sys, "stdout", stdout)
        create("trainer", data_dir=tmp_path / "data")
        monkeypatch.undo()
    assert TOKEN.fullmatch(read_token(file, "EVALSVC_TOKEN"))


def test_from_the_first_to_the_last(tmp_path: Path) -> None:
    """On a database that is not there yet: the first token may be made before the service is started."""
    run(tmp_path / "new", "create", "ci")
    assert run(tmp_path / "new", "revoke", "ci").stdout == "token 'ci' is revoked\n"
    assert "revoked" in run(tmp_path / "new", "list").stdout
    store = open_store(f"sqlite:///{tmp_path / 'new' / 'evalsvc.db'}", migrate=False)
    with store.reading() as session:
        (token,) = all_tokens(session)
        assert (token.scope, token.expires_at) == ("read", None), "the least, for ever"
    store.close()


def test_a_mistyped_data_folder_is_no_service_without_tokens(tmp_path: Path) -> None:
    """Nothing is created, and nobody believes that the service is open."""
    for words in (["list"], ["revoke", "ci"]):
        found = run(tmp_path / "mistyped", *words)
        assert isinstance(found.exception, DatabaseUnusable)
        assert "there is no database" in found.exception.message
    assert not (tmp_path / "mistyped").exists()
    open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False).close()
    assert "no token exists, so anyone on this machine can use the service" in run(tmp_path, "list").stdout


def test_expired_tokens_are_listed_as_such(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False).close()
    store = open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False)
    with store.transaction() as session:
        create_token(session, "old", "read", 1e-9)
    store.close()
    assert "expired" in run(tmp_path, "list").stdout


def test_the_database_may_be_named(tmp_path: Path) -> None:
    """A service on PostgreSQL has no database in its data folder."""
    url = f"sqlite:///{tmp_path / 'named.db'}"
    made = CliRunner().invoke(app, ["tokens", "create", "ci", "--database-url", url])
    assert made.exit_code == 0, made.output
    assert (tmp_path / "named.db").exists()
    listed = CliRunner().invoke(app, ["tokens", "list", "--database-url", url, "--format", "json"])
    assert [token["name"] for token in json.loads(listed.stdout)["tokens"]] == ["ci"]
