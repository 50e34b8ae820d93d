"""Browsers that sign in to the application of a test."""

import re
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


def get_exactly(app: App, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for a path as it is written, dots and slashes included, which clients would tidy; status, headers, body."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = {"host": "evalsvc", **headers}
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    app.portal.call(app.app, scope, receive, send)
    answered = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent)


def new_token(app: App, scope: TokenScope, name: str = "") -> str:
    with app.store.transaction() as session:
        return create_token(session, name or scope, scope)


def signed_in(app: App, scope: TokenScope, name: str = "") -> Browser:
    browser = Browser(app)
    response = browser.sign_in(new_token(app, scope, name))
    assert response.status_code == 303, response.text
    return browser
