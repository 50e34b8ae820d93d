"""Checkpoints in an object store, as they are posted and evaluated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from app_in_process import App, app_in_process, refused
from loss_task import LAYOUT, RECORDS, write
from object_store import ObjectStore, object_store
from service_process import ServiceProcess

Patch = pytest.MonkeyPatch


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data", schemes="file,memory", roots=f"{tmp_path}:memory://posted") as found:
        fsspec.filesystem("memory").pipe("/posted/x.pt", b"weights")
        yield found


def test_a_post_again_is_the_same_and_another_object_is_a_conflict(app: App) -> None:
    assert [app.post("memory://posted/x.pt").status_code for _ in range(2)] == [201, 200]
    fsspec.filesystem("memory").pipe("/posted/x.pt", b"other weights")
    refused(app.post("memory://posted/x.pt"), 409, "conflict", "with 7 bytes and etag")


@pytest.mark.parametrize(
    ("uri", "fields", "status", "code", "words"),
    [
        ("posted/x.pt", {"spool": "link"}, 422, "invalid_request", "from which no file can be linked"),
        ("posted/none.pt", {}, 422, "checkpoint_not_found", "does not exist"),
        ("another/x.pt", {}, 403, "checkpoint_not_allowed", "outside the allowed locations"),
        ("k:hunter2@posted/x.pt", {}, 403, "checkpoint_not_allowed", "holds a user or password"),
    ],
)
def test_refused_at_the_post(app: App, uri: str, fields: dict[str, str], status: int, code: str, words: str) -> None:
    assert "hunter2" not in refused(app.post(f"memory://{uri}", **fields), status, code, words)


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture
def service(store: ObjectStore, tmp_path: Path, monkeypatch: Patch, child_process: None) -> Iterator[ServiceProcess]:
    write(tmp_path / "pairs.jsonl", RECORDS)
    settings = {"SCHEMES": "file,s3", "ROOTS": f"/:s3://{store.bucket}", "DEVICES": "cpu", "THREADS": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"EVALSVC_{name}", value)
    with ServiceProcess(tmp_path / "service") as running:
        running.put_suite("losses", {"kind": "loss", "data": str(tmp_path / "pairs.jsonl")})
        yield running


def test_the_numbers_are_those_of_the_file(service: ServiceProcess, store: ObjectStore, open_lm_case: Path) -> None:
    """As a file, as its spooled copy after the original is gone, and as the parent of a virtual checkpoint. By real
    worker processes, and S3 over its real protocol."""
    weights = open_lm_case / "checkpoints" / "epoch_1.pt"
    model = next(path for path in open_lm_case.rglob("*.json") if "hidden_dim" in path.read_text())

    def post(run: str, uri: str, **fields: str) -> Any:
        body = {"run": run, "step": 1, "uri": uri, "suites": ["losses"], "layout": dict(LAYOUT), **fields}
        return service.request("POST", "/v1/checkpoints", json=body)

    def finished(posted: dict[str, Any]) -> dict[str, Any]:
        return service.wait(posted["evaluations"][0]["id"])

    there, copied, other = (store.put(f"run/{name}.pt", weights.read_bytes()) for name in ("a", "copied", "other"))
    posted = [
        post("here", str(weights), model=str(model)),
        post("there", there, model=str(model)),
        post("spooled", copied, model=str(model), spool="copy"),
    ]
    changed = post("other", other, model=str(model), sha256="0" * 64)
    assert [finished(each)["state"] for each in posted] == ["succeeded"] * 3
    assert finished(changed)["tasks"][0]["error"]["code"] == "checkpoint_changed"
    assert finished(post("there", "lerp(there@1, here@1, 0.5)", variant="mixed"))["state"] == "succeeded"
    wanted = service.history("here")
    assert len(wanted) > 0
    assert service.history("spooled") == wanted
    assert service.history("there", variant="raw") == wanted
    assert service.history("there", variant="mixed") == pytest.approx(wanted, rel=1e-5)
    documents = [service.request("GET", f"/v1/checkpoints/{each['checkpoint']['id']}") for each in posted]
    assert len({document["sha256"] for document in documents}) == 1, "found by the worker, wherever it read"
    assert documents[2]["spool_state"] == "released"
    assert "secret-of-the-tests" not in service.log.read_text()
