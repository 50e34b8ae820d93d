"""What web pages of elsewhere try by way of a browser on this machine."""

from collections.abc import Callable

import pytest
from app_in_process import App, refused
from signed_in import bearer
from starlette.datastructures import Headers

from evalsvc.api.middleware.browsers import SECURITY_HEADERS, check_browser, is_loopback
from evalsvc.config import Settings
from evalsvc.errors import Forbidden

Start = Callable[..., App]

BODY = '{"run": "a", "step": 1, "uri": "/nowhere.pt"}'


def check(method: str, allowed_hosts: str = "", **headers: str) -> None:
    named = Headers({name.replace("_", "-"): text for name, text in headers.items()})
    check_browser(method, named, Settings(allowed_hosts=allowed_hosts))


def test_names_of_this_machine_and_those_that_the_operator_allows() -> None:
    for host in ("localhost:8321", "127.9.9.9", "[::1]:8321", "LocalHost.", "a.localhost"):
        check("GET", host=host)
    for host in ("gpu-node:8321", "eval.example", "localhost"):
        check("GET", "gpu-node, Eval.Example", host=host)
    with pytest.raises(Forbidden):
        check("GET", "gpu-node, Eval.Example", host="other")
    check("POST", host="localhost:8321", origin="http://localhost:8321", sec_fetch_site="same-origin")
    assert all(map(is_loopback, ("127.0.0.1", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil", "")))


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example:8321", "localhost.evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", "notlocalhost"),
        *("localhost:8321@evil.example", "10.0.0.1", "localhost:99999", "[::1", "2130706433"),
    ],
)
def test_a_name_that_a_page_gave_itself_is_refused(host: str) -> None:
    """DNS rebinding: evil.example is given the address 127.0.0.1, and its page may read what it fetches from there."""
    with pytest.raises(Forbidden, match=r"only accepts localhost.*ALLOWED_HOSTS") as error:
        check("GET", host=host)
    assert host in error.value.message


def test_requests_are_checked_at_the_door(start_app: Start) -> None:
    app = start_app(allowed_hosts="")
    evil = {"Host": "evil.example"}
    refused(app.http.get("/v1/runs", headers=evil), 403, "forbidden", "only accepts localhost")
    assert app.http.get("/healthz", headers=evil).status_code == 200, "probes come by any name"
    local = {"Host": "localhost:8321"}
    assert app.http.get("/v1/runs", headers=local).status_code == 200
    foreign = local | {"Origin": "https://evil.example"}
    # To cancel an evaluation takes no body, so that its type protects nothing.
    for path in ("/v1/checkpoints", "/v1/evaluations/1/cancel"):
        refused(app.http.post(path, content=BODY, headers=foreign), 403, "forbidden", "a web page of")
    # Of what a page may send without asking first, nothing is read as a request, if its browser sends no Origin.
    for content_type in ({"Content-Type": "text/plain"}, {}):
        response = app.http.post("/v1/checkpoints", content=BODY, headers=local | content_type)
        refused(response, 422, "invalid_request", "the body must be JSON", "send Content-Type: application/json")


def test_with_tokens_names_do_not_matter(start_app: Start) -> None:
    """No page of elsewhere has one, and proxies give the service whatever names they like."""
    app = start_app(allowed_hosts="")
    headers = bearer(app, "submit") | {"Host": "eval.example"}
    assert app.http.get("/v1/runs", headers=headers).status_code == 200
    posted = app.http.post("/v1/checkpoints", content=BODY, headers={**headers, "Origin": "https://eval.example"})
    assert posted.status_code == 422


def test_pages_of_elsewhere_do_not_post() -> None:
    """A form or a fetch without CORS sends it, and though the page cannot read the answer, it would be done."""
    origins = ("https://evil.example", "http://localhost:3000", "null", "http://localhost:8321.evil.example")
    sites = [{"sec_fetch_site": site} for site in ("cross-site", "same-site")]
    for headers in [*({"origin": name} for name in origins), *sites]:
        with pytest.raises(Forbidden, match=r"a web page of .*only pages of this service may.*tokens create"):
            check("POST", host="localhost:8321", **headers)
        check("GET", host="localhost:8321", **headers)


def test_pages_of_elsewhere_read_nothing(start_app: Start) -> None:
    """CORS is off: no answer allows it, and what a browser asks first is refused."""
    app = start_app(allowed_hosts="")
    headers = {"Host": "localhost", "Origin": "https://evil.example"}
    asked = headers | {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    for status in (405, 401):
        answers = [app.http.get(path, headers=headers) for path in ("/v1/runs", "/healthz", "/openapi.json", "/no")]
        answers.append(app.http.options("/v1/suites/mine", headers=asked))
        assert answers[-1].status_code == status
        assert [name for answer in answers for name in answer.headers if name.startswith("access-control")] == []
        bearer(app, "read", str(status))


def test_every_answer_has_the_headers(start_app: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    app = start_app(allowed_hosts="")
    local = {"Host": "localhost"}
    paths = ("/v1/runs", "/healthz", "/v1/nothing", "/v1/table?format=csv")
    answers = [app.http.get(path, headers=local) for path in paths]
    answers.append(app.http.get("/v1/runs", headers={"Host": "evil"}))
    answers.append(app.http.put("/v1/suites/a", content=b" " * 1_000_001, headers=local))
    monkeypatch.setattr("evalsvc.api.routes.runs.runs_view", lambda *_: 1 / 0)
    answers.append(app.http.get("/v1/runs", headers=local))
    assert answers[-1].status_code == 500
    for answer in answers:
        assert SECURITY_HEADERS.items() <= {name: answer.headers.get(name) for name in SECURITY_HEADERS}.items()
