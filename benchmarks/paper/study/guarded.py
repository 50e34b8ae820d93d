"""Run a command that ends when the process that asked for it ends, however that one ends.

    python guarded.py COMMAND...

The parent holds the other end of this process's standard input. The pipe closes when the parent ends, by SIGKILL too;
then the command is told to end. A training or a service that outlived its parent would write into the folder of the
next one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE = 30.0
"""Seconds between SIGTERM and SIGKILL."""


def start_guarded(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command under this module, with its output in a file, and return the process of the guard.

    The exit code of the guard is that of the command. SIGTERM to the guard ends the command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, __file__, *command],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )


def end_guarded(process: subprocess.Popen[bytes]) -> None:
    """End the command of a guard unless it has ended, wait for both, and close the pipe."""
    process.terminate()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command, with SIGKILL if SIGTERM does not suffice."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _end_with_parent(process: subprocess.Popen[bytes]) -> None:
    """End the command as soon as standard input is closed."""
    while os.read(0, 4096):  # a buffered reader would hold a lock when the interpreter ends
        pass
    _end(process)


def main() -> int:
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children in order
    threading.Thread(target=_end_with_parent, args=(process,), daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
