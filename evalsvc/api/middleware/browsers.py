"""Protection against a `web page` of another site, and against active content in artifacts.

A browser on this machine sends requests of any web page to the loopback address, and a page can map its own host name
to this address (DNS rebinding). An open service therefore checks the host names in requests. A service with tokens
needs no check, since no page of another site has a token.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc.config import Settings
from evalsvc.errors import Forbidden

SECURITY_HEADERS: Mapping[str, str] = {
    # Answers are data. If a browser shows an answer as a page, the page must not load or run anything.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Default headers of every answer. A route may set other values."""


class SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def check_browser(method: str, headers: Headers, settings: Settings) -> None:
    """Refuse requests to an open service that a web page of another site makes a browser send."""
    names = settings.allowed_host_names
    host = headers.get("host", "")
    if (is_loopback(settings.host) or names) and not _is_allowed(host, names):
        raise Forbidden(
            f"the request is for the host {host[:100]!r}, and this service only accepts localhost, as a protection "
            "against web pages of other sites; use the address that `evalsvc serve` prints, or add the host to "
            "EVALSVC_ALLOWED_HOSTS"
        )
    if method in ("GET", "HEAD", "OPTIONS"):
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    if foreign or site not in ("same-origin", "none"):
        raise Forbidden(
            f"a web page of {(origin or 'another site')[:100]!r} sent this request by a browser, and only pages of "
            "this service may; to send requests from other pages, use tokens: evalsvc tokens create NAME"
        )


def check_same_origin(headers: Headers) -> None:
    """Refuse a form unless a page of this service made the browser send it. Browsers send `Sec-Fetch-Site` by https and
    to this machine, and `Origin` with every form."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    host = headers.get("host", "").lower()
    is_own = site in ("same-origin", "none") if site else origin and urlsplit(origin).netloc.lower() == host
    if not is_own:
        raise Forbidden(
            f"a page of {(origin or 'another site')[:100]!r} sent this form to the host {host[:100]!r}, and only pages "
            "of this service may; open the page here and send its form, and have a proxy pass on the header Host"
        )


def _is_allowed(host: str, names: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        is_host = parts.netloc == host and parts.port != 0 and "@" not in host
    except ValueError:
        return False
    name = parts.hostname if is_host else None
    return name is not None and (is_loopback(name) or name.rstrip(".") in names)
