"""What is found before anything is started."""

import socket

import pytest

from evalsvc.api.server import check_address, listen
from evalsvc.errors import InvalidRequest, PortInUse


def test_port_in_use() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 70000, "a port lies between 0 and 65535"),
        ("203.0.113.1", 0, "cannot listen on 203.0.113.1"),
        ("no.such.host.invalid", 0, "cannot listen on no.such.host.invalid"),
    ],
)
def test_bad_address(host: str, port: int, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        listen(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_allowed(host: str) -> None:
    check_address(host, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "gpu-node"])
def test_others_only_when_that_is_asked_for(host: str) -> None:
    with pytest.raises(InvalidRequest, match="no authentication yet"):
        check_address(host, insecure=False)
    check_address(host, insecure=True)


def test_answers_do_not_wait_for_delayed_acknowledgements() -> None:
    """Every request of a kept connection took 40 ms longer than its work."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as _client:
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
