"""Why no connection was made, read from the exceptions of the libraries, and what to do about each cause."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import httpx2

from evalsvc.errors import ServiceUnreachable

UNKNOWN_ISSUER, WRONG_DATE, WRONG_NAME = frozenset((2, 18, 19, 20, 21)), frozenset((9, 10)), frozenset((62, 64))
"""OpenSSL's verify codes of a certificate that no trusted authority has signed, a self-signed one included; that is not
valid yet, or has expired; and that is for another name or address."""

NO_TLS = frozenset(("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"))
"""OpenSSL's reasons for an answer that is not TLS."""

NO_ROUTE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN))


@dataclass(frozen=True)
class Cause:
    """Why a server was not reached."""

    kind: Literal["refused", "name", "route", "plain", "issuer", "certificate", "handshake"]
    """`plain`: the server does not speak TLS. `issuer`: no trusted authority has signed the server's certificate."""
    text: str
    """The cause as a part of a sentence."""
    cure: str
    """What to do; empty where that depends on the server."""


def find_cause(error: BaseException, host: str) -> Cause | None:
    """Return why `host` was not reached; None if neither the exception nor those that led to it tell."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for cause in reversed(chain):
        if isinstance(cause, ssl.SSLError):
            return _tls_cause(cause, host)
        if isinstance(cause, socket.gaierror):
            return Cause("name", f"the name {host!r} does not resolve", "check the spelling, or give the IP address")
        if isinstance(cause, ConnectionRefusedError):
            return Cause("refused", "connection refused", "")
        if isinstance(cause, OSError) and cause.errno in NO_ROUTE:
            return Cause("route", "no network leads to this address", "check the address and the VPN")
    return None


def _tls_cause(error: ssl.SSLError, host: str) -> Cause:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in UNKNOWN_ISSUER:
            return Cause("issuer", "its certificate is signed by an authority that is not trusted here", "")
        if error.verify_code in WRONG_NAME:
            return Cause("certificate", f"its certificate is not for {host!r}", "use a name that the certificate has")
        if error.verify_code in WRONG_DATE:
            return Cause("certificate", f"its {error.verify_message}", "renew it, or correct this machine's clock")
        return Cause("certificate", f"its certificate is refused: {error.verify_message}", "renew the certificate")
    if error.reason in NO_TLS:
        return Cause("plain", "the server does not speak TLS", "")
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return Cause("handshake", f"the TLS handshake failed: {reason}", "check the certificates of both sides")


def speaks_tls(url: str) -> bool:
    """Try a TLS handshake with the server at `url`, without a look at its certificate; return whether that works."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError, ValueError):
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=2) as plain:
            context.wrap_socket(plain).close()
            return True
    return False


def without_password(url: str) -> str:
    """Return an address without the name and password that may be in it: all up to the last @, which one may hold."""
    return re.sub(r"^([A-Za-z]*://)?.*@", lambda found: found[1] or "", url, flags=re.DOTALL)


def service_unreachable(error: Exception, url: str, ca: str | None, timeout: float | None) -> ServiceUnreachable:
    """Return the error to raise where the service at `url` gave no answer: the cause, and what to do about it."""
    shown = without_password(url)
    place = shown.partition("://")[2]
    is_address = not isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL)
    if not is_address or not (host := httpx2.URL(url).host.strip("[]")):
        return ServiceUnreachable(
            f"--url (EVALSVC_URL) is {shown!r}, which is no address of a service; give http://HOST:PORT or "
            "https://HOST:PORT"
        )
    cause = find_cause(error, host)
    if isinstance(error, httpx2.TimeoutException):
        text = "no answer in time" if timeout is None else f"no answer within {timeout:g} s"
        cure = "check the address and firewalls; if the service is busy, try again"
    elif cause is None or cause.kind == "refused":
        text = cause.text if cause else re.sub(r"\[errno -?\d+\] ", "", str(error).lower()) or type(error).__name__
        cure = "start one with `evalsvc serve`, or give its address by --url (EVALSVC_URL)"
    elif cause.kind == "plain":
        text, cure = "it speaks http, not https", f"give http://{place} by --url (EVALSVC_URL)"
    elif cause.kind == "issuer":
        trusted = f"; {ca}, the ca of this client, has not signed this certificate" if ca else ""
        text, cure = cause.text, f"set SSL_CERT_FILE to the authority's certificate file{trusted}"
    else:
        text, cure = cause.text, f"{cause.cure}; the address is that of --url (EVALSVC_URL)"
    return ServiceUnreachable(f"no evaluation service answers at {shown} ({text}); {cure}")


CERTIFICATES = "give the folder of certificates by --tls that the scheduler has (`evalsvc certificates`)"

CURES = {
    "refused": "start a scheduler there with `evalsvc scheduler`, or correct the address",
    "plain": "what listens there is no `evalsvc scheduler`; correct the address",
    **dict.fromkeys(("issuer", "certificate", "handshake"), CERTIFICATES),
}
"""What to do, by the kind of the cause."""


def explain_scheduler(error: BaseException, address: str) -> str:
    """Return the cause and its cure, as the end of a sentence about the scheduler at `address`."""
    cause = find_cause(error, urlsplit(address).hostname or address)
    if cause is None:
        innermost = error.__cause__ or error
        text = f"{type(innermost).__name__}: {innermost}".removesuffix(": ")
        text = "no answer in time" if isinstance(innermost, TimeoutError) else text
        return f"{text}; check that `evalsvc scheduler` runs at this address, and the files in --tls"
    return f"{cause.text}; {CURES.get(cause.kind, cause.cure)}"
