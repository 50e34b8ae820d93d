"""What web pages of elsewhere try by way of a browser on this machine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from app_in_process import App, app_in_process, refused

from evalsvc.api.middleware.browsers import SECURITY_HEADERS, is_loopback
from evalsvc.store.tokens import create_token

Start = Callable[..., App]

BODY = '{"run": "a", "step": 1, "uri": "/nowhere.pt"}'


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(app_in_process(tmp_path / "data", **{"allowed_hosts": "", **given}))


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8321", "127.0.0.1:8321", "127.9.9.9", "[::1]:8321", "LocalHost.", "a.localhost"]
)
def test_names_of_this_machine(start: Start, host: str) -> None:
    assert start().http.get("/v1/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8321", "localhost.evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1"),
        *("localhost:8321@evil.example", "10.0.0.1", "localhost:99999", "[::1", "notlocalhost", "2130706433"),
    ],
)
def test_a_name_that_a_page_gave_itself_is_refused(start: Start, host: str) -> None:
    """DNS rebinding: evil.example is given the address 127.0.0.1, and its page may read what it fetches from there."""
    app = start()
    detail = refused(
        app.http.get("/v1/runs", headers={"Host": host}), 403, "forbidden", "goes by localhost only", "ALLOWED_HOSTS"
    )
    assert host[:100] in detail
    assert app.http.get("/healthz", headers={"Host": host}).status_code == 200, "probes come by any name"


def test_names_that_the_operator_allows(start: Start) -> None:
    app = start(allowed_hosts="gpu-node, Eval.Example")
    for host in ("gpu-node:8321", "eval.example", "localhost"):
        assert app.http.get("/v1/runs", headers={"Host": host}).status_code == 200
    refused(app.http.get("/v1/runs", headers={"Host": "other"}), 403, "forbidden")


def test_with_tokens_names_do_not_matter(start: Start) -> None:
    """No page of elsewhere has one, and proxies give the service whatever names they like."""
    app = start()
    with app.store.transaction() as session:
        headers = {"Authorization": f"Bearer {create_token(session, 'ci', 'submit')}", "Host": "eval.example"}
    assert app.http.get("/v1/runs", headers=headers).status_code == 200
    posted = app.http.post("/v1/checkpoints", content=BODY, headers={**headers, "Origin": "https://eval.example"})
    assert posted.status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8321.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/checkpoints", "/v1/evaluations/1/cancel", "/v1/evaluations/1/retry"])
def test_pages_of_elsewhere_do_not_post(start: Start, path: str, headers: dict[str, str]) -> None:
    """A form or a fetch without CORS sends it, and though the page cannot read the answer, it would be done.

    To cancel an evaluation takes no body, so that its type protects nothing.
    """
    app = start()
    response = app.http.post(
        path, content=BODY, headers={"Host": "localhost:8321", "Content-Type": "text/plain", **headers}
    )
    refused(response, 403, "forbidden", "a web page of", "which only this service's own pages may", "token create")


def test_the_services_own_pages_do_post(start: Start) -> None:
    headers = {"Host": "localhost:8321", "Origin": "http://localhost:8321", "Sec-Fetch-Site": "same-origin"}
    app = start()
    refused(app.http.post("/v1/evaluations/1/cancel", headers=headers), 404, "unknown_name")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_only_json_is_taken_for_json(start: Start, content_type: str | None) -> None:
    """Of what a page may send without asking first, nothing is read as a request, if its browser sends no Origin."""
    headers = {"Host": "localhost"} | ({"Content-Type": content_type} if content_type else {})
    response = start().http.post("/v1/checkpoints", content=BODY, headers=headers)
    refused(response, 422, "invalid_request", "the body must be JSON", "send Content-Type: application/json")


@pytest.mark.parametrize("with_token", [False, True])
def test_pages_of_elsewhere_read_nothing(start: Start, with_token: bool) -> None:
    """CORS is off: no answer allows it, and what a browser asks first is refused."""
    app = start()
    if with_token:
        with app.store.transaction() as session:
            create_token(session, "ci", "read")
    headers = {"Host": "localhost", "Origin": "https://evil.example"}
    asked = headers | {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    answers = [
        app.http.get(path, headers=headers) for path in ("/v1/runs", "/healthz", "/openapi.json", "/docs", "/no")
    ]
    preflight = app.http.options("/v1/suites/mine", headers=asked)
    assert preflight.status_code == (401 if with_token else 405)
    for answer in [*answers, preflight]:
        assert [name for name in answer.headers if name.startswith("access-control")] == []


def has_headers(answer: httpx.Response) -> None:
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get(name) == value, (answer.url, name)


def test_every_answer_has_the_headers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    app = start()
    local = {"Host": "localhost"}
    for path in ("/v1/runs", "/healthz", "/openapi.json", "/v1/nothing", "/v1/table?format=csv"):
        has_headers(app.http.get(path, headers=local))
    has_headers(app.http.get("/v1/runs", headers={"Host": "evil"}))
    has_headers(app.http.put("/v1/suites/a", content=b" " * 1_000_001, headers=local))
    monkeypatch.setattr("evalsvc.api.routes.runs.runs_view", lambda session: 1 / 0)
    failed = app.http.get("/v1/runs", headers=local)
    assert failed.status_code == 500
    has_headers(failed)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil", "")),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
