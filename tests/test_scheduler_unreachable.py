"""A scheduler that is not reached: each cause has its own cure."""

import socket
import ssl

import pytest
from distributed.comm.core import CommClosedError

from evalsvc.connection_errors import CERTIFICATES, explain_scheduler


def raised(cause: BaseException | None) -> OSError:
    """The error as Dask raises it, with the cause inside two others."""
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
        (
            ConnectionRefusedError(111, "Connection refused"),
            "connection refused; start a scheduler there with `evalsvc",
        ),
        (socket.gaierror(-2, "Name or service not known"), "the name 'gpu-0' does not resolve; check the spelling"),
        (OSError(113, "No route to host"), "no network leads to this address; check the address"),
        (
            handshake("WRONG_VERSION_NUMBER"),
            "the server does not speak TLS; what listens there is no `evalsvc scheduler`",
        ),
        (handshake("TLSV1_ALERT_UNKNOWN_CA"), f"the TLS handshake failed: tlsv1 alert unknown ca; {CERTIFICATES}"),
        (unverified(18), f"its certificate is signed by an authority that is not trusted here; {CERTIFICATES}"),
        (None, "CommClosedError: in <TLSConnector>: None; check that `evalsvc scheduler` runs at this address"),
    ],
)
def test_causes(cause: BaseException | None, words: str) -> None:
    assert explain_scheduler(raised(cause), "tls://gpu-0:8786").startswith(words)
