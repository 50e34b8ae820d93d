"""Commands of an operator: `evalsvc serve`, `status`, `tokens`, `backup` and `restore`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from console import Shell
from migrated import copy_migrated
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.access_tokens import TOKEN, hash_token
from evalsvc.api.server import Started, listen
from evalsvc.cli.database import create
from evalsvc.cli.service_banner import WIDTH, describe_service
from evalsvc.cli.status import status_screen
from evalsvc.config import Settings
from evalsvc.files.artifacts import keep_content
from evalsvc.files.secrets import read_token
from evalsvc.installation import code_digest, find_commit
from evalsvc.spec.documents import Status
from evalsvc.store.data_folder import write_owner
from evalsvc.store.session import open_store
from evalsvc.store.tokens import all_tokens, create_token

URL, HERE = "http://127.0.0.1:8321", "anyone on this machine"


def test_port_in_use(evalsvc: Shell) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = evalsvc(f"serve --port {port}")
    assert (result.code, "--port (EVALSVC_PORT)" in result.err) == (2, True)
    assert result.err.startswith(f"error: port {port} of 127.0.0.1 is in use")


def facts(has_tokens: bool = False, **settings: Any) -> dict[str, str]:
    """The facts by their labels, each on as many lines as it takes."""
    first, *lines = describe_service(Settings(devices="cpu,cpu", **settings), Started(URL, has_tokens))
    assert first == f"evalsvc listens on {URL}"
    found: dict[str, str] = {}
    for line in lines:
        label, text = line[2:15].strip(), line[15:]
        name = label or list(found)[-1]
        found[name] = f"{found[name]} {text}" if name in found else text
    return found


def test_it_says_where_it_is_what_it_uses_and_how_to_stop_it(tmp_path: Path) -> None:
    assert facts(data_dir=str(tmp_path), roots="/runs:/data", suites="/suites") == {
        "data folder": str(tmp_path),
        "database": f"sqlite:///{tmp_path}/evalsvc.db",
        "devices": "cpu, cpu",
        "suites": "those of evalsvc, and /suites",
        "roots": "/runs:/data",
        "tokens": f"none: {HERE} can use the service",
        "stop": f"Ctrl-C, or kill {os.getpid()}; running shards get 10 s to finish",
    }
    assert facts(log_format="json") == {}, "next to a log in JSON is the address alone"


def test_it_says_who_can_use_it_and_what_it_may_read() -> None:
    settings: dict[str, Any]
    for settings, name, fact in (
        ({}, "roots", "/ (every file that this process can read)"),
        ({"host": "0.0.0.0"}, "tokens", "none: anyone who reaches 0.0.0.0 can use the service"),
        ({"has_tokens": True}, "tokens", "needed"),
        ({"has_tokens": True, "open_reads": 1}, "tokens", f"needed, except for reading: {HERE} can read"),
        ({"scheduler": "tls://10.0.0.1:8786"}, "scheduler", "tls://10.0.0.1:8786"),
        ({"read_only": 1}, "devices", "none: the service only answers reads"),
        ({"database_url": "postgresql://me:hunter2@db/e"}, "database", "postgresql+psycopg://me:***@db/e"),
    ):
        assert facts(**settings)[name] == fact


@pytest.mark.parametrize("roots", [":".join(f"/runs/{name}" for name in range(40)), "/" + "x" * 200])
def test_lines_fit_a_terminal_and_no_path_is_cut(roots: str) -> None:
    lines = describe_service(Settings(devices="cpu", roots=roots, data_dir="/data"), Started(URL, True))
    assert all(len(line) <= WIDTH or len(line.split()) <= 2 for line in lines)
    assert roots in "\n".join(lines)


QUEUE: dict[str, Any] = {
    "queued": 3,
    "running": 1,
    "oldest_seconds": 4000.0,
    "shards": {"queued": 9, "running": 1},
    "finished_last_hour": 12,
    "seconds_left": 1200.0,
    "runs": [
        {"run": "few", "queued": 1, "running": 1, "oldest_seconds": 20.0},
        {"run": "many", "queued": 2, "running": 0, "oldest_seconds": 4000.0},
    ],
}
AT_WORK = {"evaluation": 7, "run": "few", "step": 50, "task": "loss", "stage": "run", "seconds": 100.0}
PROGRESS = {"done": 10, "total": 4000, "unit": "sequences", "per_second": 12.345, "seconds_left": 90}
WARNING = {"code": "inputs_cut", "metric": "loss/total", "message": "9 sequences\x1b[31m were cut"}
ERROR = {"code": "checkpoint_gone", "message": "it was\ndeleted \x1b[31mbefore"}


def evaluation(number: int, step: int, variant: str = "raw", **fields: Any) -> dict[str, Any]:
    return {"id": number, "run": "few", "step": step, "variant": variant, "suite": "quick", **fields}


STATUS: dict[str, Any] = {
    "status": "ready",
    "missing": [],
    "version": "1.0",
    "code": "5f2b9c01d7aa",
    "database": "sqlite",
    "workers": [
        {"name": "cpu#0", "host": "127.0.0.1", "refuses": "it drains", "runs": None},
        {"name": "cpu#1", "host": "127.0.0.1", "runs": AT_WORK},
    ],
    "queue": QUEUE,
    "running": [evaluation(7, 50, "ema_0.99", started_at=None, tasks=[{"name": "loss", "progress": PROGRESS}])],
    "failed": [evaluation(6, 40, state="failed", finished_at="2026-01-02T03:04:05.678+00:00", error=ERROR)],
    "warned": [evaluation(5, 30, task="loss", warnings=[WARNING] * 3)],
    "disk": {
        "free_bytes": 812_000_000_000,
        "total_bytes": 1_920_000_000_000,
        "data_bytes": 48_100_000_000,
        "data_complete": False,
        "database_bytes": 212_000_000,
    },
}


def screen(status: dict[str, Any], url: str, width: int | None = None) -> list[str]:
    return status_screen(Status.model_validate(status), url, width)


def test_everything_is_on_one_screen() -> None:
    assert screen(STATUS, "http://127.0.0.1:8321") == [
        "evalsvc 1.0 (code 5f2b9c01d7aa) at http://127.0.0.1:8321: ready, database sqlite",
        "disk: 812 GB of 1.92 TB free; the data folder has more than 48.1 GB, the database 212 MB",
        "workers: 2, 1 at work",
        "  cpu#0 on 127.0.0.1: idle; takes no shards: it drains",
        "  cpu#1 on 127.0.0.1: few@50, loss (run) for 2 min",
        "queue: 3 evaluations wait, the oldest for 67 min; 1 run; 12 in the last hour, about 20 min left",
        "  many: 2 wait (the oldest for 67 min), 0 run",
        "  few: 1 wait (the oldest for 20 s), 1 run",
        "running:",
        "  evaluation 7: few@50:ema_0.99, quick: loss 10/4,000 sequences, 12.3/s, 2 min left",
        "failed last:",
        "  2026-01-02 03:04 evaluation 6: few@40, quick: [checkpoint_gone] it was deleted [31mbefore",
        "suspicious:",
        "  evaluation 5: few@30, quick (and 2 more): loss/total: 9 sequences [31m were cut",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_go_on_where_the_terminal_ends(width: int) -> None:
    """The message of a failure was cut, in the only place where a user could read it."""
    message = "the file /checkpoints/few/epoch_40.pt was deleted; " * 3 + "keep checkpoints until they are evaluated"
    failed = [{**STATUS["failed"][0], "error": {"code": "checkpoint_gone", "message": message}}]
    lines = screen({**STATUS, "failed": failed}, "http://127.0.0.1:8321", width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert message in " ".join(" ".join(lines).split())
    assert all(line.startswith("    ") for line in lines[lines.index("failed last:") + 2 : lines.index("suspicious:")])


def test_an_idle_service_that_cannot_work_and_one_with_many_runs() -> None:
    empty = {**QUEUE, "queued": 0, "running": 0, "runs": [], "seconds_left": None}
    status = {**STATUS, "status": "not_ready", "missing": ["no live worker"], "workers": [], "queue": empty}
    lines = screen({**status, "running": [], "failed": [], "warned": [], "disk": None}, "http://x")
    assert lines == [
        "evalsvc 1.0 (code 5f2b9c01d7aa) at http://x: NOT READY, database sqlite",
        "  ! no live worker",
        "workers: 0, 0 at work",
        "queue: empty; 12 evaluations in the last hour",
    ]

    runs = [{"run": f"r{index}", "queued": index, "running": 0, "oldest_seconds": 1.0} for index in range(1, 21)]
    lines = screen({**STATUS, "queue": {**QUEUE, "runs": runs}}, "http://x")
    assert ("  … and 12 more runs" in lines, len(lines) < 24) == (True, True)


def test_ready_and_not(evalsvc: Shell, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = evalsvc("status")
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[0].endswith(": ready, database sqlite")
    assert evalsvc("status --format json").json["queue"]["queued"] == 0
    [row] = evalsvc("status --format csv").rows
    assert (row["status"], json.loads(row["queue"])["queued"]) == ("ready", 0)
    monkeypatch.setattr(service.coordinator, "processes", 0)
    shown = evalsvc("status")
    assert (shown.code, "NOT READY" in shown.out) == (1, True)


def test_a_token_is_shown_once_alone_on_standard_output(evalsvc: Shell) -> None:
    """`EVALSVC_TOKEN=$(evalsvc tokens create …)` must get the token and nothing else."""
    made = evalsvc("tokens create trainer --scope submit --days 30 --new")
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
        create("trainer", data_dir=tmp_path / "data", new=True)
        monkeypatch.undo()
    assert TOKEN.fullmatch(read_token(file, "EVALSVC_TOKEN"))


def test_from_the_first_token_to_the_last(evalsvc: Shell) -> None:
    """On a database that is not there yet, and is named: the first token may be made before the service is started."""
    option = "--database-url sqlite:///named.db"
    assert evalsvc(f"tokens create ci --new {option}").code == 0
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
    for words in ("list", "revoke ci", "create ci"):
        refused = evalsvc(f"tokens {words} --data-dir mistyped")
        assert (refused.code, "there is no database" in refused.err) == (2, True)
    assert not (tmp_path / "mistyped").exists()
    open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False).close()
    assert "no token exists, so anyone on this machine can use" in evalsvc(f"tokens list --data-dir {tmp_path}").out


def test_a_forgotten_url_makes_no_second_database_in_a_data_folder(evalsvc: Shell, tmp_path: Path) -> None:
    """A token in it would be refused by the service, and a backup of it would have none of the results."""
    write_owner(tmp_path, "b" * 32, "postgresql+psycopg://evalsvc:secret@db.example/evalsvc")
    named = "data folder of postgresql+psycopg://evalsvc:***@db.example/evalsvc: give the URL of that database with"
    for words in ("tokens create ci", "tokens list", "backup b.tar"):
        refused = evalsvc(f"{words} --data-dir {tmp_path}")
        assert (refused.code, named in refused.err) == (2, True), refused.err
    assert not (tmp_path / "evalsvc.db").exists()
    copy_migrated(tmp_path / "evalsvc.db")
    for words in ("tokens create ci --new", "tokens create ci", "backup b.tar"):
        refused = evalsvc(f"{words} --data-dir {tmp_path}")
        assert (refused.code, "has the artifacts of another database" in refused.err) == (2, True), refused.err
    assert not (tmp_path / "b.tar").exists()


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
    writer = f"code {code_digest()}, commit {find_commit()}"
    assert evalsvc(restore).out == f"restored b.tar, written by {writer}; data folder: restored\n"
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
