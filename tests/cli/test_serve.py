"""`evalsvc serve`: what keeps a service from starting is one line and exit code 2."""

from pathlib import Path

from console import Command

from evalsvc.api.server import listen


def test_port_in_use(command: Command) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = command("serve", "--port", str(port))
    assert result.code == 2
    assert result.err.startswith(f"error: port {port} of 127.0.0.1 is in use")
    assert "--port (EVALSVC_PORT)" in result.err


def test_address_that_others_reach(command: Command) -> None:
    result = command("serve", "--host", "0.0.0.0", "--port", "0")
    assert (result.code, "which has no tokens; create a token first" in result.err) == (2, True)


def test_missing_suites_folder(command: Command, tmp_path: Path) -> None:
    result = command("serve", "--port", "0", "--suites", str(tmp_path / "nowhere"))
    assert (result.code, "does not exist; create it or change --suites" in result.err) == (2, True)
