"""`evalsvc tokens`, `backup` and `restore`."""

import sys
from pathlib import Path

import pytest
from console import Shell
from migrated import copy_migrated
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.access_tokens import TOKEN, hash_token
from evalsvc.cli.database import create
from evalsvc.files.artifacts import keep_content
from evalsvc.files.secrets import read_token
from evalsvc.store.session import open_store
from evalsvc.store.tokens import all_tokens, create_token


def test_a_token_is_shown_once_alone_on_standard_output(evalsvc: Shell) -> None:
    """`EVALSVC_TOKEN=$(evalsvc tokens create …)` must get the token and nothing else."""
    made = evalsvc("tokens create trainer --scope submit --days 30")
    token = made.out.strip()
    assert TOKEN.fullmatch(token), made.err
    assert "token 'trainer' with scope submit is shown only this time" in made.err
    listed = evalsvc("tokens list")
    shown = [secret in listed.out + listed.err for secret in (token, hash_token(token))]
    shown += [word in listed.out for word in ("trainer", "submit", "in force", "never")]
    assert shown == [False, False, True, True, True, True]


def test_a_file_for_a_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tokens create … > FILE`, as the pages have it, made a file that EVALSVC_TOKEN=@FILE refused."""
    file = tmp_path / "trainer.token"
    with file.open("w") as stdout:
        file.chmod(0o644)
        monkeypatch.setattr(sys, "stdout", stdout)
        create("trainer", data_dir=tmp_path / "data")
        monkeypatch.undo()
    assert TOKEN.fullmatch(read_token(file, "EVALSVC_TOKEN"))


def test_from_the_first_token_to_the_last(evalsvc: Shell) -> None:
    """On a database that is not there yet, and is named: the first token may be made before the service is started."""
    option = "--database-url sqlite:///named.db"
    assert evalsvc(f"tokens create ci {option}").code == 0
    assert [token["name"] for token in evalsvc(f"tokens list {option} --format json").json["tokens"]] == ["ci"]
    assert evalsvc(f"tokens revoke ci {option}").out == "token 'ci' is revoked\n"
    assert "revoked" in evalsvc(f"tokens list {option}").out
    store = open_store("sqlite:///named.db", migrate=False)
    with store.transaction() as session:
        (token,) = all_tokens(session)
        assert (token.scope, token.expires_at) == ("read", None), "the least, for ever"
        create_token(session, "old", "read", 1e-9)
    store.close()
    assert "expired" in evalsvc(f"tokens list {option}").out


def test_a_mistyped_data_folder_is_no_service_without_tokens(evalsvc: Shell, tmp_path: Path) -> None:
    """Nothing is created, and nobody believes that the service is open."""
    for words in ("list", "revoke ci"):
        refused = evalsvc(f"tokens {words} --data-dir mistyped")
        assert (refused.code, "there is no database" in refused.err) == (2, True)
    assert not (tmp_path / "mistyped").exists()
    open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False).close()
    assert "no token exists, so anyone on this machine can use" in evalsvc(f"tokens list --data-dir {tmp_path}").out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    copy_migrated(folder / "evalsvc.db")
    store = open_store(f"sqlite:///{folder / 'evalsvc.db'}", migrate=False)
    enter(store, submission(1), suite())
    evaluate_whole(store, metric(1.0), artifacts=[kept_artifact(keep_content(folder / "artifacts", b"grid"))])
    store.close()
    return folder


def test_there_and_back(evalsvc: Shell, data: Path, tmp_path: Path) -> None:
    assert evalsvc("backup b.tar --data-dir data").out == f"b.tar: {(tmp_path / 'b.tar').stat().st_size:,} bytes\n"
    again = evalsvc("backup b.tar --data-dir data")
    assert (again.code, "b.tar exists; choose another name, or add --force" in again.err) == (2, True)
    assert evalsvc("backup b.tar --data-dir data --force --no-spool").code == 0
    copy_migrated(tmp_path / "name.db")
    restore = f"restore b.tar --data-dir restored --database-url sqlite:///{tmp_path / 'name.db'}"
    assert evalsvc(restore).out == "restored b.tar; data folder: restored\n"
    assert [path.read_bytes() for path in (tmp_path / "restored" / "artifacts").glob("*/*")] == [b"grid"]
    assert (tmp_path / "restored" / "database.json").is_file()
    assert not (tmp_path / "restored" / "evalsvc.db").exists()
    refused = evalsvc(restore)
    assert (refused.code, refused.err.strip().endswith("[target_not_empty]")) == (2, True)


def test_what_was_lost_is_said_twice(evalsvc: Shell, data: Path) -> None:
    """When it can still be looked for, and when somebody may miss it."""
    [path] = (data / "artifacts").glob("*/*")
    path.unlink()
    lost = path.relative_to(data)
    warning = f"warning: 1 file of the data folder missing or damaged before the backup: {lost}\n"
    assert evalsvc("backup b.tar --data-dir data").err == warning
    data.with_name("restored").mkdir()
    copy_migrated(data.with_name("restored") / "evalsvc.db")
    assert evalsvc("restore b.tar --data-dir restored").err == warning
