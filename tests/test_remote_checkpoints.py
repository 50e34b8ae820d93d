"""Checkpoints in an object store, through the whole service: real worker processes, S3 over its real protocol."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from loss_task import LAYOUT, RECORDS, write
from object_store import ObjectStore, object_store
from service_process import ServiceProcess

pytestmark = pytest.mark.usefixtures("child_process")


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture(scope="module")
def service(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("remote")
    write(folder / "pairs.jsonl", RECORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALSVC_SCHEMES", "file,s3")
        patch.setenv("EVALSVC_ROOTS", f"/:s3://{store.bucket}")
        patch.setenv("EVALSVC_DEVICES", "cpu")
        patch.setenv("EVALSVC_THREADS", "1")
        running = ServiceProcess(folder / "service")
        try:
            running.start()
            running.put_suite("losses", {"kind": "loss", "data": str(folder / "pairs.jsonl")})
            yield running
        finally:
            running.stop()


@pytest.fixture
def weights(open_lm_case: Path) -> Path:
    return open_lm_case / "checkpoints" / "epoch_1.pt"


Post = Callable[..., httpx.Response]


@pytest.fixture
def post(service: ServiceProcess, open_lm_case: Path) -> Post:
    model = next(path for path in open_lm_case.rglob("*.json") if "hidden_dim" in path.read_text())

    def send(run: str, uri: str, step: int = 1, **fields: Any) -> httpx.Response:
        body = {"run": run, "step": step, "uri": uri, "suites": ["losses"], "layout": dict(LAYOUT), **fields}
        if "model" not in fields and "(" not in uri:
            body["model"] = str(model)
        return service.ask("POST", "/v1/checkpoints", json=body)

    return send


def finished(service: ServiceProcess, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    return service.wait(answer.json()["evaluations"][0]["id"])


def test_the_numbers_are_those_of_the_same_file_here(
    service: ServiceProcess, store: ObjectStore, post: Post, weights: Path
) -> None:
    """As a file, as its spooled copy after the original is gone, and as the parent of a virtual checkpoint."""
    uri = store.put("run/epoch_1.pt", weights.read_bytes())
    copied = store.put("run/copied.pt", weights.read_bytes())
    answers = [
        post("here", str(weights)),
        post("there", uri),
        post("spooled", copied, spool="copy"),
    ]
    assert [finished(service, answer)["state"] for answer in answers] == ["succeeded"] * 3
    virtual = post("there", "lerp(there@1, here@1, 0.5)", variant="mixed")
    assert finished(service, virtual)["state"] == "succeeded"
    wanted = service.history("here")
    assert len(wanted) > 0
    assert service.history("spooled") == wanted
    assert service.history("there", variant="raw") == wanted
    mixed = service.history("there", variant="mixed")
    assert mixed == pytest.approx(wanted, rel=1e-5)
    posted = [answer.json()["checkpoint"] for answer in answers]
    documents = [service.request("GET", f"/v1/checkpoints/{checkpoint['id']}") for checkpoint in posted]
    assert len({document["sha256"] for document in documents}) == 1, "found by the worker, wherever it read"
    assert documents[2]["spool_state"] == "released"


def test_a_post_again_is_the_same_and_another_object_is_a_conflict(
    store: ObjectStore, post: Post, weights: Path
) -> None:
    uri = store.put("again.pt", weights.read_bytes())
    assert post("again", uri).status_code == 201
    assert post("again", uri).status_code == 200
    store.put("again.pt", weights.read_bytes() + b"x")
    answer = post("again", uri)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "bytes and etag" in answer.json()["detail"]


def test_what_is_not_there_as_posted(
    service: ServiceProcess, store: ObjectStore, post: Post, weights: Path, tmp_path: Path
) -> None:
    """Replaced or deleted between post and evaluation; the workers are kept busy meanwhile, so it is not begun."""
    service.request(
        "PUT", "/v1/suites/busy", json={"tasks": [{"kind": "steps", "log": str(tmp_path / "log"), "shards": 2}]}
    )
    busy = service.post("busy", 1, weights, ["busy"], priority=9)
    found = {}
    for name, change in {
        "replaced": lambda: store.put("replaced.pt", b"other"),
        "deleted": lambda: store.delete("deleted.pt"),
    }.items():
        uri = store.put(f"{name}.pt", weights.read_bytes() + name.encode())
        answer = post(name, uri)
        change()
        found[name] = finished(service, answer)["tasks"][0]["error"]
    service.wait(busy[0])
    assert found["replaced"]["code"] == "checkpoint_changed"
    assert "has 5 bytes and etag" in found["replaced"]["message"]
    assert found["deleted"]["code"] == "checkpoint_gone"
    assert "was deleted before it was evaluated; post it again, with spool=copy" in found["deleted"]["message"]


def test_refused_at_the_post(store: ObjectStore, post: Post, weights: Path) -> None:
    uri = store.put("linked.pt", weights.read_bytes())
    for answer, status, code, words in (
        (
            post("bad", uri, spool="link"),
            422,
            "invalid_request",
            "links lead to files of this machine",
        ),
        (post("bad", f"s3://{store.bucket}/none.pt"), 422, "checkpoint_not_found", "nothing is there"),
        (post("bad", "s3://another/x.pt"), 403, "checkpoint_not_allowed", "outside the allowed places"),
        (post("bad", f"s3://{store.bucket}/../x.pt"), 403, "checkpoint_not_allowed", "has an empty part, '.' or '..'"),
        (post("bad", f"s3://k:hunter2@{store.bucket}/x.pt"), 403, "checkpoint_not_allowed", "holds a user or password"),
    ):
        document = answer.json()
        assert (answer.status_code, document["code"]) == (status, code), document
        assert words in document["detail"]
        assert "hunter2" not in answer.text


def test_no_secret_is_written_down(service: ServiceProcess) -> None:
    """Last in this file: the log has seen everything above."""
    assert "secret-of-the-tests" not in service.log.read_text()
