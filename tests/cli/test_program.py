"""`evalsvc` itself: its help, its settings, and how it ends."""

import resource
import subprocess
import sys
from collections.abc import Sequence

import pytest
from console import Command

from evalsvc.cli.program import COMMANDS


@pytest.mark.usefixtures("short_process")
def test_help_is_quick_and_imports_little() -> None:
    """Whoever asks for help does not wait for torch."""
    heavy = {"torch", "numpy", "fastapi", "starlette", "sqlalchemy", "distributed", "dask", "pydantic", "uvicorn"}
    code = (
        "import sys; sys.argv = ['evalsvc', '--help']\n"
        "from evalsvc.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print('heavy:', sorted({heavy} & set(sys.modules)))"
    )
    seconds = 1.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor, which others may want at the same time.
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if seconds < 0.5:
            break
    assert "heavy: []" in found.stdout
    assert [name for name in COMMANDS if f" {name} " not in found.stdout] == []
    assert seconds < 0.5


def test_version(command: Command) -> None:
    from evalsvc import __version__

    assert command("--version").out == f"evalsvc {__version__}\n"


@pytest.mark.usefixtures("short_process")
@pytest.mark.parametrize("options", [("--version", "--verbose"), ("--verbose", "--version")])
def test_version_in_full(command: Command, options: Sequence[str]) -> None:
    lines = command(*options).out.splitlines()
    assert lines[0] == command("--version").out.strip()
    assert {"commit", "python", "platform", "package"} <= {line.partition(":")[0] for line in lines}


def test_verbose_alone_is_refused(command: Command) -> None:
    result = command("--verbose", "metrics")
    assert (result.code, result.out) == (2, "")
    assert "evalsvc --version --verbose" in result.err


def test_interrupt(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evalsvc.client.Client.headline", interrupted)
    result = command("history", "run-a")
    assert (result.code, "Traceback" in result.err) == (130, False)


def test_unknown_setting(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_PROT", "80")
    monkeypatch.setenv("EVALSVC_SERVICE_HOST", "10.0.0.1")
    result = command("certificates", "certificates")
    assert (result.code, len(result.out.splitlines())) == (0, 3)
    assert result.err == (
        "warning: EVALSVC_PROT is not a setting of evalsvc and is ignored; did you mean EVALSVC_PORT?\n"
    )
