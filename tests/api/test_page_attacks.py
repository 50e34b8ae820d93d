"""Attacks on the pages, on the forms and on the sessions of the dashboard."""

import re
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from app_in_process import App, refused
from signed_in import SAME_ORIGIN, Browser, new_token, sent_by, signed_in

from evalsvc.api.routes.pages import MAX_FORM
from evalsvc.web.page import PAGES

pytestmark = pytest.mark.usefixtures("many_cases")

SCRIPT = "<script>alert(1)</script>"

HOSTILE = {
    "markup": SCRIPT,
    "attribute": '"><img src=x onerror=alert(1)>',
    "template": "{{ 1337 * 1337 }}{% raw %}",
    "nul": "a\0b",
    "newline": "a\r\nSet-Cookie: a=b",
    "long": "x" * 10_000,
    "right-to-left": "\u202etxt.exe",
    "emoji": "🦊" * 50,
    "dots": "../../../../etc/passwd",
    "format": "%s%n{0.__class__}",
    "sql": "' OR 1=1 --",
    "address": "//evil.example/",
    "scheme": "javascript:alert(1)",
}

CANCEL = "/evaluations/1/cancel"


@pytest.fixture
def waiting(app: App, weights: Path) -> App:
    """An application whose evaluation 1 waits."""
    app.post(weights, suites=["loss"]).raise_for_status()
    return app


def state(app: App, browser: Browser) -> str:
    """The state of evaluation 1."""
    return str(browser.get("/v1/evaluations/1").json()["state"])


def told(response: httpx2.Response, status: int, *words: str) -> None:
    """Check a refusal in HTML."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("text/html")
    for word in words:
        assert word in response.text, response.text


def asked_exactly(app: App, path: str, **headers: str) -> httpx2.Response:
    """Ask for a path as it is written, dots and slashes included, which clients would tidy."""
    start, *rest = sent_by(app, path, [{"type": "http.request", "body": b""}], headers)
    content = b"".join(message.get("body", b"") for message in rest)
    return httpx2.Response(start["status"], headers=start["headers"], content=content)


def test_the_own_form_works(waiting: App) -> None:
    """What the attacks below differ from by one thing each."""
    browser = signed_in(waiting, "submit")
    answer = browser.post(CANCEL, {"key": browser.form_key("/evaluations/1")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/evaluations/1")
    assert state(waiting, browser) == "cancelled"


def test_a_form_without_the_key_of_its_session(waiting: App) -> None:
    browser, other = signed_in(waiting, "submit", "me"), signed_in(waiting, "submit", "other")
    for key in ("", "x", "0" * 43, "ÿ", "\0", other.form_key()):
        told(browser.post(CANCEL, {"key": key}), 403, "forbidden", "The form is not from this session")
    told(browser.post(CANCEL, {}), 403, "forbidden")
    told(browser.post(CANCEL + "?key=" + browser.form_key(), {}), 403, "forbidden")
    assert state(waiting, browser) == "queued"


def test_forms_of_other_pages(waiting: App) -> None:
    """With the right key, which another page cannot know: each of the two walls holds alone."""
    browser, stranger = signed_in(waiting, "submit"), Browser(waiting)
    key, token, words = browser.form_key(), new_token(waiting, "read"), "only pages of this service may"
    for headers in (
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": ""},
        {"Origin": "http://evalsvc:9999", "Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evalsvc.evil.example", "Sec-Fetch-Site": ""},
        {"Origin": "null", "Sec-Fetch-Site": ""},
        {"Origin": "", "Sec-Fetch-Site": ""},
        {"Origin": "http://evalsvc", "Sec-Fetch-Site": "cross-site"},
    ):
        refused(browser.post(CANCEL, {"key": key}, **headers), 403, "forbidden", words)
        told(browser.post("/sign-out", {"key": key}, **headers), 403, words)
        told(stranger.post("/sign-in", {"token": token}, **headers), 403, words)
    assert state(waiting, browser) == "queued"


def test_a_session_of_a_read_token_changes_nothing(waiting: App) -> None:
    browser = signed_in(waiting, "read")
    assert "/evaluations/1/cancel" not in browser.get("/evaluations/1").text
    for act in ("cancel", "retry", "again"):
        answer = browser.post(f"/evaluations/1/{act}", {"key": browser.form_key()})
        refused(answer, 403, "forbidden", "has the scope read", "needs submit")
    assert state(waiting, browser) == "queued"


def test_a_session_does_not_change_anything_by_rest(waiting: App) -> None:
    """A page that another page runs a script in could else do all that the token may."""
    browser = signed_in(waiting, "admin")
    for method, path in (
        ("POST", "/v1/evaluations/1/cancel"),
        ("DELETE", "/v1/runs/run-a?confirm=run-a"),
        ("PUT", "/v1/suites/loss"),
        ("POST", "/v1/checkpoints"),
    ):
        headers = {"Cookie": browser.cookie, "X-HTTP-Method-Override": "POST"} | SAME_ORIGIN
        refused(waiting.http.request(method, path, headers=headers, json={}), 401, "unauthorized")
    assert state(waiting, browser) == "queued"


def test_bodies_that_are_no_form(waiting: App) -> None:
    browser, form = signed_in(waiting, "submit"), "application/x-www-form-urlencoded"
    for body, media_type, word in (
        (b'{"key": "x"}', "application/json", "must be a form"),
        (b"--a\r\n\r\n--a--", "multipart/form-data; boundary=a", "must be a form"),
        (b"key=" + b"x" * MAX_FORM, form, "larger than"),
        (b"&".join([b"a=b"] * 1000), form, "more than"),
        (b"key=\xff", form, "not UTF-8"),
        (b"key=%ff%fe", form, "not from this session"),
        (b"x", "", "must be a form"),
    ):
        headers = {"Cookie": browser.cookie, "Content-Type": media_type} | SAME_ORIGIN
        answer = waiting.http.post(CANCEL, content=body, headers=headers)
        told(answer, 403 if word == "not from this session" else 422, word)
        assert waiting.http.post("/sign-in", content=body, headers=headers).status_code in (401, 422)
    assert state(waiting, browser) == "queued"


def test_acts_that_there_are_not(waiting: App) -> None:
    browser = signed_in(waiting, "submit")
    for status, acts in {
        404: ("1/delete", "1/__class__", "4711/cancel"),
        409: ("1/retry",),
        422: ("-1/cancel", "1e3/cancel", "99999999999999999999/cancel", "1%00/cancel"),
    }.items():
        for act in acts:
            told(browser.post(f"/evaluations/{act}", {"key": browser.form_key()}), status)
    assert state(waiting, browser) == "queued"


def test_a_planted_cookie_is_not_taken_over_and_others_are_none(app: App) -> None:
    """Fixation: who knows the cookie before the sign-in must not share the session after it."""
    browser = Browser(app, cookie="evalsvc=" + "A" * 43)
    assert browser.sign_in(new_token(app, "read")).status_code == 303
    before = browser.cookie
    assert before != "evalsvc=" + "A" * 43
    assert Browser(app, cookie="evalsvc=" + "A" * 43).get("/status").status_code == 303
    assert browser.sign_in(new_token(app, "submit")).status_code == 303
    assert Browser(app, cookie=before).get("/status").status_code == 303, "signing in again ends the session before"
    token = new_token(app, "read", "other")
    for cookie in (
        *("evalsvc=", "evalsvc", "=", ";;;=;", "evalsvc=" + "x" * 60_000, "; ".join(["evalsvc=a"] * 5_000)),
        *("evalsvc=../../etc/passwd", 'evalsvc="; Path=/', "EVALSVC=a", "__Host-evalsvc=a", "evalsvc=a\tb"),
        *("; ".join(f"a{number}=b" for number in range(5_000)), f"evalsvc={token}"),
        f"evalsvc={token.removeprefix('evalsvc_')}",
    ):
        assert Browser(app, cookie=cookie).get("/status").status_code == 303, cookie[:20]


def test_a_script_of_another_page_reads_nothing(app: App) -> None:
    """A page on another port of this host is of the same site, and its requests have the cookie."""
    browser = signed_in(app, "read")
    for site in ("same-site", "cross-site"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        refused(browser.get("/v1/runs", **headers), 401, "unauthorized")
        assert "evalsvc " not in browser.get("/status", **headers).text


def test_the_sign_in_leads_nowhere_else(app: App) -> None:
    """By none of the three ways on; which addresses lead elsewhere is tested of `local_path`."""
    token, browser, target = new_token(app, "read"), Browser(app), "/\r\nX-Evil: 1"
    address = "/sign-in?next=" + quote(target, safe="")
    assert 'name="next" value="/"' in browser.get(address).text
    answer = browser.sign_in(token, target)
    assert answer.headers["location"] == "/"
    assert "x-evil" not in answer.headers
    assert browser.get(address).headers["location"] == "/"


def test_an_address_with_two_slashes_leads_nowhere(app: App) -> None:
    new_token(app, "read")
    names = ("//evil.example", "//evil.example/..", "//evil.example/%2e%2e/status", "/%2f%2fevil.example")
    for path in (*names, "/\\evil.example"):
        for site in ("none", "cross-site"):
            answer = asked_exactly(app, path, **{"Sec-Fetch-Site": site})
            assert answer.status_code == 401, path
            assert "location" not in answer.headers
            assert b"refresh" not in answer.content


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_in_every_place(waiting: App, text: str) -> None:
    """Each page and panel answers, and shows what it was sent as text or not at all."""
    browser = signed_in(waiting, "submit")
    shown = quote(text, safe="")
    places = [re.sub(r"\{\w+\}", shown, path) for path in PAGES if "{" in path]
    places += [f"{path}?{name}={shown}" for path in ("/", "/compare", "/status") for name in ("a", "find", shown)]
    places += [f"/panels/curve.html?run={shown}&metric={shown}", f"/panels/{shown}.html", f"/panels/curve.{shown}"]
    places += [f"/compare?a={shown}&b={shown}", f"/compare?b={shown}&to=base", f"/sign-in?next={shown}"]
    places += [f"/vega/{shown}", f"/static/{shown}", f"/evaluations/1?{shown}={shown}"]
    answers = {place: browser.get(place) for place in places}
    wrong = {"token": text, "next": text, text[:100]: text[:1000]}
    answers["the form"] = answer = Browser(waiting).post("/sign-in", wrong)
    assert answer.status_code == (422 if len(text) > 5_000 else 401)
    for place, answer in answers.items():
        assert answer.status_code < 500, (place, answer.text)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers, place
        if answer.headers.get("content-type", "").startswith("text/html"):
            assert "<script>alert" not in answer.text, place
            assert "<img src=x" not in answer.text, place
            assert "1787569" not in answer.text, place


def test_every_page_is_private_and_in_no_frame(waiting: App) -> None:
    browser = signed_in(waiting, "submit")
    places = ["/", "/runs/run-a", "/runs/run-a/images", "/runs/run-a/text", "/compare", "/evaluations/1", "/status"]
    for place in [*places, "/runs/nothing", "/sign-in?next=/nothing"]:
        headers = browser.get(place).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"], place
        assert "default-src 'none'" in headers["content-security-policy"], place
        assert "unsafe" not in headers["content-security-policy"], place
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert re.search("private|no-store", headers["cache-control"]), place
        assert "access-control-allow-origin" not in headers


def test_an_unchanged_page_is_not_that_of_another_session(waiting: App) -> None:
    """The tag of a page is of its whole content, with the key of its forms."""
    browser, other = signed_in(waiting, "submit", "me"), signed_in(waiting, "submit", "other")
    tag = browser.get("/evaluations/1").headers["etag"]
    same, policy = browser.get("/evaluations/1", **{"If-None-Match": tag}), "content-security-policy"
    assert same.status_code == 304
    # Or a page that is opened twice has no scripts.
    assert same.headers[policy] == browser.get("/evaluations/1").headers[policy]
    answer = other.get("/evaluations/1", **{"If-None-Match": tag})
    assert answer.status_code == 200
    assert "other" in answer.text


def test_paths_of_files_lead_to_no_other_file(app: App) -> None:
    """Files need no token: nothing but what is the same for everybody may come out of these folders."""
    new_token(app, "read")
    for path in (
        *("/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/static/....//page.py"),
        *("/static//etc/passwd", "/static/%00", "/static/style.css%00.html", "/static/..\\page.py", "/static/"),
        *("/vega/../static/style.css", "/vega/%2e%2e%2fevalsvc.db", "/vega/..%2f..%2fevalsvc.db", "/vega/vega-0.js"),
        *("/static/../v1/runs", "/vega/../v1/runs", "/vega/", "/static/templates/base.html"),
    ):
        answer = asked_exactly(app, path)
        assert answer.status_code in (307, 404), path
        assert answer.headers.get("location", "http://evalsvc/").startswith("http://evalsvc/")
        assert b"from __future__" not in answer.content
        assert b"root:" not in answer.content
        assert b"{" not in answer.content or answer.headers["content-type"] == "application/problem+json"


def test_pages_answer_reads_alone_and_a_link_does_nothing(waiting: App) -> None:
    """A preloading browser, a crawler and an image of another page all send GET."""
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
        for path in ("/", "/status", "/compare", "/evaluations/1", "/panels/curve.html", "/static/style.css"):
            assert waiting.http.request(method, path, headers=SAME_ORIGIN).status_code == 405, (method, path)
    browser = signed_in(waiting, "submit")
    headers = {"Cookie": browser.cookie, "X-HTTP-Method-Override": "POST"} | SAME_ORIGIN
    for path in (CANCEL, "/evaluations/1/again", "/sign-out"):
        for method in ("GET", "HEAD"):
            address = f"{path}?_method=POST&key={browser.form_key()}"
            assert waiting.http.request(method, address, headers=headers).status_code in (401, 404, 405)
    assert state(waiting, browser) == "queued"
    assert browser.get("/status").status_code == 200


def test_a_hostile_host_is_text(waiting: App) -> None:
    """A service with tokens takes any host name, since proxies give it whatever they like."""
    waiting.coordinator.work()
    browser = signed_in(waiting, "read")
    answer = browser.get("/panels/curve.html?run=run-a&metric=loss/text", Host=f'a">{SCRIPT}')
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    for file in ("__init__.html", ".html", "curve", "curve.exe", "os.json"):
        told(browser.get(f"/panels/{file}"), 404)
