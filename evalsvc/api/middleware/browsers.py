"""Protection against other sites' pages in a browser, and against content that an evaluation left.

A browser on this machine reaches the loopback address for any page, and a page can map its own host name to that
address (DNS rebinding). An open service, which has no tokens, therefore checks the host names in requests. A service
with tokens needs no such check, since no page of another site has a token.
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
    # Answers are data: what a browser takes for a page all the same loads and runs nothing, in no frame.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every answer that does not set them itself."""


class SecurityHeaders:
    """Add `SECURITY_HEADERS` to every answer."""

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
    """Tell whether only this machine can reach an address."""
    name = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def check_browser(method: str, headers: Headers, settings: Settings) -> None:
    """Refuse requests that another site's page makes a browser send to an open service.

    Raises:
        Forbidden: the request names another host, or a page of another site posts the request.
    """
    names = settings.allowed_host_names
    host = headers.get("host", "")
    if (is_loopback(settings.host) or names) and not _is_ours(host, names):
        raise Forbidden(
            f"the request is for the host {host[:100]!r}, and this service goes by localhost only, so that no web page "
            "reaches it by a name of its own; use the address that `evalsvc serve` prints, or name the host in "
            "EVALSVC_ALLOWED_HOSTS"
        )
    if method in ("GET", "HEAD", "OPTIONS"):
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    if foreign or site not in ("same-origin", "none"):
        raise Forbidden(
            f"a web page of {(origin or 'another site')[:100]!r} has a browser post here, which only this service's "
            "own pages may; to post from another page, give the service tokens and use one: evalsvc tokens create NAME"
        )


def _is_ours(host: str, names: tuple[str, ...]) -> bool:
    name = urlsplit(f"//{host}").hostname if _is_host(host) else None
    return name is not None and (is_loopback(name) or name.rstrip(".") in names)


def _is_host(host: str) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        return parts.netloc == host and parts.port != 0 and "@" not in host
    except ValueError:
        return False
