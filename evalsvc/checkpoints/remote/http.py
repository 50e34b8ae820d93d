"""Checkpoints behind http(s), if the operator allows it. Requests of a `submitter` reach no private network.

An address is checked after its name was resolved, for every connection and so for every redirect. The connection goes
to the checked address, so changing the name's address afterwards has no effect.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from email.message import Message
from urllib.parse import quote, urljoin, urlsplit

from evalsvc.checkpoints.remote.source import BLOCK, METADATA_SECONDS, Listing, RemoteFile, within
from evalsvc.checkpoints.remote.uri import HTTP, RemoteUri, without_secrets
from evalsvc.errors import CheckpointChanged, CheckpointNotAllowed, NotACheckpoint, SourceUnreachable

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
PLAIN = "/%:@!$&'()*+,;=~?"  # punctuation of addresses, and the sign of encoded characters

AZURE_METADATA = "168.63.129.16/32"  # a public address that Azure serves internally
SPECIAL = [
    ipaddress.ip_network(text)
    for text in (
        *(AZURE_METADATA, "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
]
"""Networks of IANA's registries of special-purpose addresses that Python's versions take for global ones."""
UNICAST = ipaddress.ip_network("2000::/3")
"""All that IANA has allocated of IPv6 for global addresses."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], list[str]]
Connect = Callable[[str, int, float], socket.socket]


def resolve_host(host: str, port: int) -> list[str]:
    """Return the addresses of a host. The system's resolver also accepts decimal, octal and hexadecimal ones."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def connect_to(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), seconds)


class HttpSource:
    """A file behind http(s). `resolve` and `connect` access the network."""

    def __init__(
        self,
        uri: RemoteUri,
        schemes: frozenset[str],
        *,
        seconds: float,
        resolve: Resolve = resolve_host,
        connect: Connect = connect_to,
    ) -> None:
        self.uri = uri
        self._schemes = schemes & set(HTTP)
        self._seconds = seconds
        self._resolve = resolve
        self._connect = connect

    def list(self) -> Listing:
        return within(METADATA_SECONDS, self.uri, self._list)

    def _list(self) -> Listing:
        deadline = time.monotonic() + METADATA_SECONDS
        with self._answer("HEAD", {}, deadline) as response:
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise NotACheckpoint(
                    f"{self.uri}: the server does not report the file's size; download the file and post its path"
                )
            return Listing([RemoteFile(self.uri.name, int(length), str(self.uri), _tag(response.headers))], False)

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        deadline = time.monotonic() + self._seconds
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._answer("GET", headers, deadline) as response:
            if _tag(response.headers) != file.etag:
                raise CheckpointChanged(
                    f"{self.uri} was replaced while it was fetched; post it again with replace=true"
                )
            skip = offset if response.status != 206 else 0
            while True:
                if time.monotonic() > deadline:
                    raise SourceUnreachable(
                        f"{self.uri}: was not fetched within {self._seconds:g} s; raise EVALSVC_SHARD_DEADLINE"
                    )
                try:
                    block = response.read1(BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise self._unreachable(error) from error
                if not block:
                    return
                yield block[skip:]
                skip = max(0, skip - len(block))

    @contextmanager
    def _answer(self, method: str, headers: Mapping[str, str], deadline: float) -> Iterator[http.client.HTTPResponse]:
        url = str(self.uri)
        for _ in range(MAX_REDIRECTS + 1):
            with ExitStack() as stack:
                response = self._request(stack, method, url, headers, deadline)
                target = response.headers.get("Location") if response.status in REDIRECTS else None
                if target is None:
                    self._require_success(response.status)
                    yield response
                    return
            url = urljoin(url, target)
            parts = urlsplit(url)
            if parts.scheme not in self._schemes or "@" in parts.netloc:
                raise CheckpointNotAllowed(
                    f"{self.uri}: redirects to {without_secrets(url)}, which is not allowed; post the final address"
                )
        raise SourceUnreachable(f"{self.uri}: has more than {MAX_REDIRECTS} redirects; post the final address")

    def _request(
        self, stack: ExitStack, method: str, url: str, headers: Mapping[str, str], deadline: float
    ) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise CheckpointNotAllowed(f"{self.uri}: redirects to an invalid port; post the final address") from None
        path = quote(parts.path or "/", safe=PLAIN) + (f"?{quote(parts.query, safe=PLAIN)}" if parts.query else "")
        try:
            connection = self._connection(parts.scheme, host, port, deadline)
            stack.callback(connection.close)
            connection.request(method, path, headers={"Accept-Encoding": "identity", **headers})
            return stack.enter_context(connection.getresponse())
        except UnicodeError:  # a name that the encoding of host names cannot express
            raise CheckpointNotAllowed(
                f"{self.uri}: redirects to {host[:80]!r}, which is not a host name; post the final address"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _connection(self, scheme: str, host: str, port: int, deadline: float) -> http.client.HTTPConnection:
        """Connect to the first address of a host. Refuse the host if any of its addresses is not public."""
        addresses = self._resolve(host, port)
        for address in addresses:
            if not is_public(address):
                raise CheckpointNotAllowed(
                    f"{self.uri}: {host} is at {address}, which is not public; download the file and post its path"
                )
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connected = self._connect(addresses[0], port, min(CONNECT_SECONDS, left))
        connected.settimeout(min(READ_SECONDS, left))
        if scheme == "https":
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = connected
        return connection

    def _require_success(self, status: int) -> None:
        if status in (404, 410):
            raise FileNotFoundError(str(self.uri))
        if status in (401, 403):
            raise CheckpointNotAllowed(
                f"{self.uri}: the server refuses access ({status}); use a public file, or post a path"
            )
        if status not in (200, 206):
            raise SourceUnreachable(f"{self.uri}: the server answers {status}; try again later")

    def _unreachable(self, error: Exception) -> SourceUnreachable:
        return SourceUnreachable(
            f"{self.uri}: the server cannot be read ({type(error).__name__}); check the network and try again"
        )


def is_public(text: str) -> bool:
    """Return whether an address is public, in whatever form it is written."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):  # may stand for an IPv4 address, mapped or translated
        translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        address = address.ipv4_mapped or translated or address
    is_unicast = not (address.is_multicast or address.is_reserved) if address.version == 4 else address in UNICAST
    return address.is_global and is_unicast and not any(address in network for network in SPECIAL)


def _tag(headers: Message) -> str:
    return (headers.get("ETag") or headers.get("Last-Modified") or "").strip('"')
