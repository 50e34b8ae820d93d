"""A service of evalsvc on a free port of this machine, with its data in a folder of the caller."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evalsvc.client import Client
from evalsvc.config import Settings
from study.guarded import end_guarded, start_guarded

START_SECONDS = 240.0
"""Longest time until the service answers."""
IN_USE = "is served by another evalsvc"
"""Part of the message of a service whose database another service has."""
ANSWER_SECONDS = 120.0
"""Longest time of an answer. Trainings and workers may leave the service little of the processor."""


@dataclass(frozen=True)
class Workers:
    """Worker processes of the service, all on the CPU."""

    count: int
    threads: int | None
    """Number of threads of each worker; None: all cores."""


@contextmanager
def started_service(folder: Path, workers: Workers) -> Iterator[Client]:
    """Start the service, yield a client, and stop the service at the end of the block. The data folder is kept.

    Raises:
        SystemExit: the service does not start; the message has the end of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    log = folder / "service.log"
    process = _start(folder, workers, log)
    try:
        while (address := _address(log)) is None:
            has_ended = process.poll() is not None
            if time.monotonic() > deadline or (has_ended and IN_USE not in log.read_text()):
                raise SystemExit(f"the service did not start; its log {log} ends with:\n{log.read_text()[-2000:]}")
            if has_ended:  # the service of an interrupted computation is still ending
                end_guarded(process)
                process = _start(folder, workers, log)
            time.sleep(0.1)
        with Client(address, timeout=ANSWER_SECONDS) as client:
            yield client
    finally:
        end_guarded(process)


def _start(folder: Path, workers: Workers, log: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    options = ["--port", "0", "--data-dir", str(folder), "--devices", ",".join(["cpu"] * workers.count)]
    options += [] if workers.threads is None else ["--threads", str(workers.threads)]
    command = [sys.executable, "-P", "-m", "evalsvc.cli", "serve", *options]
    # The folder of assets would otherwise be the data folder's own, which is empty.
    return start_guarded(command, log, os.environ | {"EVALSVC_ASSETS": str(assets_folder())})


def assets_folder() -> Path:
    """Return the folder that `evalsvc assets pull` writes to."""
    return Settings.load().assets_path


def _address(log: Path) -> str | None:
    match = re.search(r"listens on (https?://\S+)", log.read_text())
    return None if match is None else match[1]
