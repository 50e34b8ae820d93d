"""A service with planted secrets, through every path that fails: none of them comes out anywhere. Not in an answer, not
in the log, not in an error of the command line, not in the list of processes, and not in the environment of the
workers, who need none of them."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from machines import wait_for
from postgresql_server import PostgresqlServer
from service_process import ServiceProcess
from sqlalchemy import make_url

from evalsvc.store.session import open_store
from evalsvc.store.tokens import create_token, revoke_token

pytestmark = pytest.mark.usefixtures("child_process")

PASSWORD = "hunter2-planted/@:%"
ENCODED = "hunter2-planted%2F%40%3A%25"
PASSPHRASE = "planted-passphrase-of-the-database"


@dataclass
class Planted:
    """A running service with everything secret that it has, and all that was answered or printed."""

    service: ServiceProcess
    database: PostgresqlServer
    tokens: dict[str, str]
    said: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx2.Response:
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        response = self.service.ask(method, path, headers=headers, **options)
        self.said.append(f"{response.headers}\n{response.text}")
        return response

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "evalsvc.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
        self.said.append(done.stdout + done.stderr)
        return done


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    with PostgresqlServer() as database:
        url = make_url(database.url).set(password=PASSWORD).update_query_dict({"sslpassword": PASSPHRASE})
        address = url.render_as_string(hide_password=False)
        assert ENCODED in address
        store = open_store(address, migrate=False)
        with store.transaction() as session:
            tokens = {name: create_token(session, name, scope) for name, scope in SCOPES.items()}
            tokens["expired"] = create_token(session, "expired", "admin", 1e-9)
            revoke_token(session, "revoked")
        store.close()
        monkeypatch.setenv("EVALSVC_DATABASE_URL", address)
        monkeypatch.setenv("EVALSVC_TOKEN", tokens["admin"])
        # All that can be logged, for machines, who keep it longest.
        monkeypatch.setenv("EVALSVC_LOG_LEVEL", "debug")
        monkeypatch.setenv("EVALSVC_LOG_FORMAT", "json")
        with ServiceProcess(tmp_path / "data", "--devices", "cpu") as service:
            yield Planted(service, database, tokens)


SCOPES: dict[str, Any] = {"read": "read", "submit": "submit", "admin": "admin", "revoked": "admin"}


def every_way_to_fail(planted: Planted, tmp_path: Path) -> None:
    """Requests that are refused, and some that are not: with each token, in each place where one might be put."""
    for token in planted.tokens.values():
        planted.ask("GET", f"/v1/runs?token={token}")
        planted.ask("PUT", "/v1/suites/bad", token, content="tasks: [")
        planted.ask("POST", "/v1/checkpoints", token, content=b"{", headers={"Content-Type": "application/json"})
        planted.ask("POST", "/v1/checkpoints", token, json={"run": "a", "step": -1, "uri": 5, "nonsense": 1})
        planted.ask("POST", "/v1/checkpoints", token, json={"run": "a", "step": 1, "uri": str(tmp_path / "none.pt")})
        planted.ask("POST", "/v1/evaluations", token, json={"checkpoint": 1, "suite": "none"})
        planted.ask("DELETE", "/v1/runs", token)
        planted.ask("GET", "/v1/runs", token, headers={"X-Request-ID": token})
        for path in ("/v1/runs", "/v1/artifacts/1", "/readyz", "/v1/evaluations/1/events", "/metrics"):
            planted.ask("GET", path, token)
    admin = planted.tokens["admin"]
    for header in (f"Basic {admin}", admin, f"Token {admin}", f"Bearer {admin}x"):
        planted.ask("GET", "/v1/runs", headers={"Authorization": header})
    for path in ("/openapi.json", "/docs", "/healthz"):
        planted.ask("GET", path)


def test_secrets_stay_where_they_are(planted: Planted, tmp_path: Path) -> None:
    every_way_to_fail(planted, tmp_path)
    asked = {"EVALSVC_URL": planted.service.url}
    assert planted.command("history", "nobody", **asked).stderr.endswith("[unknown_name]\n")

    assert planted.service.process is not None
    service = psutil.Process(planted.service.process.pid)
    wait_for(planted.service.workers, "a worker has started")
    children = service.children(recursive=True)
    planted.said += [" ".join(process.cmdline()) for process in (service, *children)]
    planted.said += [json.dumps(process.environ()) for process in children]

    planted.database.stop()
    time.sleep(2.5)  # longer than a copy of the tokens holds
    answer = planted.ask("GET", "/v1/runs", planted.tokens["read"])
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unusable")
    every_way_to_fail(planted, tmp_path)
    doctor = planted.command("doctor")
    assert doctor.returncode == 1
    assert re.search(r"EVALSVC_TOKEN +set +environment", doctor.stdout)
    planted.service.stop()

    log = planted.service.log.read_text()
    secrets = [PASSWORD, ENCODED, "hunter2-planted", PASSPHRASE, *planted.tokens.values()]
    everything = "\n".join([*planted.said, log])
    assert "database_unusable" in everything, "what is searched has what was said"
    assert '"path": "/v1/runs"' in log, "and the requests that are logged"
    assert [secret for secret in secrets if secret in everything] == []
