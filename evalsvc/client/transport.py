"""Requests to the service: from a path to a document, or to the error that the service answered with."""

from __future__ import annotations

import json
import operator
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from evalsvc.connection_errors import service_unreachable, speaks_tls, without_password
from evalsvc.errors import InvalidRequest, ServiceUnreachable, leaves, os_reason
from evalsvc.spec import documents
from evalsvc.spec.documents.document import validation_message

D = TypeVar("D", bound=documents.Document)
P = TypeVar(
    "P",
    documents.Runs,
    documents.Checkpoints,
    documents.Evaluations,
    documents.Artifacts,
    documents.Protocols,
    documents.Suites,
    documents.History,
)

Query = Sequence[tuple[str, str]]
"""Names and values of query parameters; a parameter with several values is repeated."""

MAX_PAGE = 1000
"""Largest number of rows that a request for a page of a list may ask for."""

MAX_RETRY_AFTER = 3600
"""Largest number of seconds that the client takes over from a header `Retry-After`."""

_ERRORS = {leaf.code: leaf for leaf in leaves()}


class Transport:
    """The connection to a service, shared by all methods of a client."""

    def __init__(
        self, url: str, token: str | None, ca: str | None, timeout: float, transport: httpx2.BaseTransport | None
    ) -> None:
        self.url = url.rstrip("/")
        self.shown_url = without_password(self.url)
        self._ca = ca
        self._is_direct = transport is None
        # A proxy for the internet would look for 127.0.0.1 on its own machine, so no proxy is used. Redirects are not
        # followed: the token must reach no other address.
        self._http = httpx2.Client(
            timeout=timeout,
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            headers={"Authorization": f"Bearer {token.strip()}"} if token else None,
            # Plain http needs no certificates, and loading the system's authorities takes longer than a request.
            verify=_tls_context(ca) if ca or not self.url.lower().startswith("http://") else False,
        )

    @property
    def timeout(self) -> httpx2.Timeout:
        return self._http.timeout

    def close(self) -> None:
        self._http.close()

    def get(self, kind: type[D], path: str, query: Query = ()) -> D:
        return self.fetch(kind, "GET", path, query=query)

    def fetch(
        self,
        kind: type[D],
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        query: Query = (),
        yaml: str | None = None,
    ) -> D:
        """Send a request with a JSON body or a YAML text, and return the document that the service answers with."""
        arguments: dict[str, Any] = {}
        if body is not None:
            content = json.dumps(body, default=operator.index)  # a trainer's step may be an integer of NumPy
            arguments |= {"content": content.encode(), "headers": {"Content-Type": "application/json"}}
        if yaml is not None:
            arguments |= {"content": yaml.encode(), "headers": {"Content-Type": "application/yaml"}}
        return self.parse(kind, self.read(self.request(method, path, query, **arguments)), method, path)

    def pages(self, kind: type[P], path: str, query: Query = (), page_size: int = MAX_PAGE) -> Iterator[P]:
        """Yield the pages of a list, and request each page with the cursor of the page before."""
        cursor: str | None = None
        while True:
            page = self.get(kind, path, [*query, *query_of(limit=page_size, cursor=cursor)])
            yield page
            if (cursor := page.next_cursor) is None:
                return

    def request(self, method: str, path: str, query: Query = (), **arguments: Any) -> httpx2.Response:
        """Send a request, with `arguments` of `httpx2.Client.request`, and return the answer, an error included."""
        try:
            return self._http.request(method, self.url + path, params=list(query) or None, **arguments)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from None

    @contextmanager
    def stream(self, path: str, query: Query, silence: float) -> Iterator[httpx2.Response]:
        """Open an answer that arrives over time; more than `silence` seconds without a byte are an error."""
        timeout = httpx2.Timeout(self.timeout.connect, read=silence)
        try:
            with self._http.stream("GET", self.url + path, params=list(query) or None, timeout=timeout) as response:
                yield response
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from None

    def read(self, response: httpx2.Response) -> dict[str, object]:
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            self.refuse(response)
        if response.is_success:
            return content
        kind = _ERRORS.get(str(content.get("code")))
        if kind is None:
            self.refuse(response)
        error, seconds = kind(str(content.get("detail"))), response.headers.get("retry-after", "")
        if seconds.isascii() and seconds.isdecimal():
            error.retry_after = min(int(seconds[:9]), MAX_RETRY_AFTER)
        raise error

    def parse(self, kind: type[D], content: object, method: str, path: str) -> D:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            raise ServiceUnreachable(
                f"what answers at {self.shown_url} is no evalsvc of this version ({method} {path}: "
                f"{validation_message(error)}); "
                "check --url (EVALSVC_URL), or install the version of the service"
            ) from None

    def refuse(self, response: httpx2.Response) -> NoReturn:
        """Raise ServiceUnreachable for an answer that no evaluation service of this version gives."""
        raise ServiceUnreachable(
            f"what answers at {self.shown_url} is no evalsvc of this version "
            f"({response.status_code} {response.reason_phrase}); check --url (EVALSVC_URL)"
        )

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        is_cut_off = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError)
        if is_cut_off and self._is_direct and self.url.lower().startswith("http://") and speaks_tls(self.url):
            return ServiceUnreachable(
                f"no evaluation service answers at {self.shown_url} (it speaks https, not http); "
                f"give https://{self.shown_url.partition('://')[2]} by --url (EVALSVC_URL)"
            )
        return service_unreachable(error, self.url, self._ca, self.timeout.read)


class MethodGroup:
    """Methods of `Client` on one subject. All groups of a client share one transport."""

    _transport: Transport


def query_of(**parameters: str | float | Sequence[str] | None) -> list[tuple[str, str]]:
    """Return query parameters. None is left out, and a list repeats the parameter."""
    pairs: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if isinstance(value, (str, int, float)):
            pairs.append((name, str(value).lower() if isinstance(value, bool) else str(value)))
        else:
            pairs += [(name, text) for text in value or ()]
    return pairs


def segment(name: str) -> str:
    """Return a name as one segment of a path: slashes and other special characters are escaped."""
    return quote(name, safe="")


def _tls_context(ca: str | None) -> ssl.SSLContext:
    try:
        # Without `ca`, the certificates in SSL_CERT_FILE or SSL_CERT_DIR, else those of the system.
        return ssl.create_default_context(cafile=ca) if ca else httpx2.create_ssl_context()
    except OSError as error:  # `ssl.SSLError`, for a file without certificates, is an OSError too
        reason = os_reason(error)
        raise InvalidRequest(
            f"{ca or 'SSL_CERT_FILE'} is no file of certificates: {reason}; give the PEM file of the authority that "
            "has signed the service's certificate"
        ) from None
