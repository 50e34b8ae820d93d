"""Browsers and tokens of the application of a test, and requests that no client tidies."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpx2
from app_in_process import App

from evalsvc.access_tokens import TokenScope
from evalsvc.store.tokens import create_token

SAME_ORIGIN = {"Origin": "http://evalsvc", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"}

FORM_KEY = re.compile(r'name="key" value="([^"]*)"')


@dataclass
class Browser:
    """What a browser sends: its cookie, and where its requests come from."""

    app: App
    cookie: str = ""

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.app.http.get(path, headers={"Cookie": self.cookie, "Sec-Fetch-Site": "same-origin"} | headers)

    def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx2.Response:
        response = self.app.http.post(path, data=fields, headers={"Cookie": self.cookie} | SAME_ORIGIN | headers)
        self.app.http.cookies.clear()  # they are those of one browser
        return response

    def sign_in(self, token: str, target: str = "/") -> httpx2.Response:
        response = self.post("/sign-in", {"token": token, "next": target})
        if "set-cookie" in response.headers:
            self.cookie = response.headers["set-cookie"].partition(";")[0]
        return response

    def form_key(self, path: str = "/status") -> str:
        shown = FORM_KEY.search(self.get(path).text)
        assert shown is not None
        return shown[1]


def sent_by(
    app: App, path: str, messages: Iterable[Any], headers: Mapping[str, str] | None = None, **scope: Any
) -> list[Any]:
    """Return what the application sends to a request as a server passes it on, and to a client that leaves then."""
    incoming, sent = iter(messages), list[Any]()

    async def receive() -> Any:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    raw, _, query = path.partition("?")
    pairs = {"host": "evalsvc", **(headers or {})}.items()
    address = {"path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "scheme": "http"}
    given = [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs]
    request = {"type": "http", "method": "GET", "headers": given, "client": ("127.0.0.1", 1), "server": ("evalsvc", 80)}
    app.portal.call(app.app, address | request | scope, receive, send)
    return sent


def new_token(app: App, scope: TokenScope, name: str = "") -> str:
    with app.store.transaction() as session:
        return create_token(session, name or scope, scope)


def bearer(app: App, scope: TokenScope, name: str = "") -> dict[str, str]:
    """Create a token; return the headers that show it."""
    return {"Authorization": f"Bearer {new_token(app, scope, name)}"}


def signed_in(app: App, scope: TokenScope, name: str = "") -> Browser:
    browser = Browser(app)
    response = browser.sign_in(new_token(app, scope, name))
    assert response.status_code == 303, response.text
    return browser
