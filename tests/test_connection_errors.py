"""Every way not to reach a service or a scheduler says why, and what to do about that and not about another one."""

import socket
import ssl
from pathlib import Path

import pytest
from distributed.comm.core import CommClosedError
from http_pages import Pair, make_pair, server

from evalsvc.client import Client
from evalsvc.connection_errors import CERTIFICATES, explain_scheduler, find_cause, speaks_tls
from evalsvc.errors import ServiceUnreachable


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"))


def why(url: str, ca: Path | None = None, timeout: float = 30.0) -> str:
    trusted = None if ca is None else str(ca)
    with Client(url, ca=trusted, timeout=timeout) as client, pytest.raises(ServiceUnreachable) as caught:
        client.runs()
    return caught.value.message


@pytest.mark.parametrize(("asked", "spoken"), [("http", "https"), ("https", "http")])
def test_a_service_that_speaks_another_protocol(pair: Pair, asked: str, spoken: str) -> None:
    with server(pair if spoken == "https" else None) as port:
        said = why(f"{asked}://127.0.0.1:{port}")
    assert said.endswith(f"(it speaks {spoken}, not {asked}); give {spoken}://127.0.0.1:{port} by --url (EVALSVC_URL)")


def test_a_certificate_that_nobody_trusted_has_signed(pair: Pair, tmp_path: Path) -> None:
    """`evalsvc serve` was the advice, for a service that ran."""
    other = make_pair(tmp_path / "other")
    with server(pair) as port:
        unset, wrong = why(f"https://127.0.0.1:{port}"), why(f"https://127.0.0.1:{port}", ca=other.cert)
    for said in (unset, wrong):
        assert "its certificate is signed by an authority that is not trusted here" in said
        assert "evalsvc serve" not in said
    assert unset.endswith("set SSL_CERT_FILE to the authority's certificate file")
    assert wrong.endswith(f"{other.cert}, the ca of this client, has not signed this certificate")


@pytest.mark.parametrize(
    ("name", "days", "words"),
    [
        ("elsewhere.example", (-1, 1), "its certificate is not for '127.0.0.1'); use a name that the certificate has"),
        ("127.0.0.1", (-3, -1), "its certificate has expired); renew it, or correct this machine's clock"),
        ("127.0.0.1", (1, 3), "its certificate is not yet valid); renew it, or correct this machine's clock"),
    ],
)
def test_a_certificate_that_does_not_hold(name: str, days: tuple[int, int], words: str, tmp_path: Path) -> None:
    made = make_pair(tmp_path, name=name, days=days)
    with server(made) as port:
        assert words in why(f"https://127.0.0.1:{port}", ca=made.cert)


def test_a_service_that_is_not_there_or_hangs() -> None:
    said = why("http://no-such-host.invalid:8321")
    assert "(the name 'no-such-host.invalid' does not resolve); check the spelling" in said
    assert "evalsvc serve" not in said
    for url in ("http://127.0.0.1:1", "https://127.0.0.1:1"):
        assert why(url).startswith(f"no evaluation service answers at {url} (connection refused); start one")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = why(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
    assert "(no answer within 0.2 s); check the address and firewalls; if the service is busy, try again" in said


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8321", "localhost", "http://", "http://:80", ""])
def test_what_is_no_address(url: str) -> None:
    said = why(url)
    assert "is no address of a service; give http://HOST:PORT or https://HOST:PORT" in said.replace(", which", "")
    for odd in (url, "http://127.0.0.1:1", "http://127.0.0.1:99999", "http://[", "http://no-such-host.invalid"):
        assert not speaks_tls(odd)


def raised(cause: BaseException | None) -> OSError:
    closed = CommClosedError(f"in <TLSConnector>: {cause}")
    closed.__cause__ = cause
    error = OSError("Timed out trying to connect to tls://gpu-0:8786 after 10 s")
    error.__cause__ = closed
    return error


def handshake(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def unverified(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused; start a scheduler there with `evals"),
        (socket.gaierror(-2, "Name or service not known"), "the name 'gpu-0' does not resolve; check the spelling"),
        (OSError(113, "No route to host"), "no network leads to this address; check the address"),
        (handshake("WRONG_VERSION_NUMBER"), "the server does not speak TLS; what listens there is no `evalsvc sched"),
        (handshake("TLSV1_ALERT_UNKNOWN_CA"), f"the TLS handshake failed: tlsv1 alert unknown ca; {CERTIFICATES}"),
        (unverified(18), f"its certificate is signed by an authority that is not trusted here; {CERTIFICATES}"),
        (None, "CommClosedError: in <TLSConnector>: None; check that `evalsvc scheduler` runs at this address"),
    ],
)
def test_why_a_scheduler_is_not_reached(cause: BaseException | None, words: str) -> None:
    assert explain_scheduler(raised(cause), "tls://gpu-0:8786").startswith(words)
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_cause(first, "host") is None, "the search ends"
