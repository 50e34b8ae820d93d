"""`evalsvc worker`: what keeps it from starting is one line and exit code 2."""

from console import Command


def test_address_without_tls(command: Command) -> None:
    result = command("worker", "tcp://127.0.0.1:8786")
    assert (result.code, "must begin with tls://" in result.err) == (2, True)
