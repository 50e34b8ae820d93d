"""`evalsvc worker`: what keeps it from starting is one line and exit code 2."""

from console import Command


class TestWorker:
    def test_address_without_tls(self, command: Command) -> None:
        result = command("worker", "tcp://127.0.0.1:8786")
        assert (result.code, "must begin with tls://" in result.err) == (2, True)

    def test_missing_certificate(self, command: Command) -> None:
        result = command("worker", "tls://127.0.0.1:8786")
        assert (result.code, "give --tls-ca FILE" in result.err) == (2, True)
