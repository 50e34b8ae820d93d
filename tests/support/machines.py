"""A cluster of many machines as people start it: `evalsvc scheduler` and `evalsvc worker`, which tests may kill. With a
prefix such as `ip netns exec NAME` a process runs where that command puts it."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from evalsvc.cluster.certificates import write_certificates

SUPPORT = str(Path(__file__).parent)

PATIENCE, BUSY = 90.0, 20
"""Seconds that anything has on a busy machine, and that such a machine takes more."""

TTL = 5
"""EVALSVC_WORKER_TTL in tests of workers that fall silent, in seconds."""

GIVEN_UP_WITHIN = 2 * TTL + 10
"""Seconds after which a silent worker is given up at the latest."""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)
    return found


def worker_processes(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


class Command:
    def __init__(self, log: Path, arguments: Sequence[str], prefix: Sequence[str] = (), **environment: str) -> None:
        self.log = log
        path = os.pathsep.join([SUPPORT, os.environ.get("PYTHONPATH", "")])
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "evalsvc.cli", *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path, "EVALSVC_LOG_LEVEL": "info"} | environment,
            )

    def wait_for_text(self, pattern: str, seconds: float = PATIENCE) -> str:
        def found() -> re.Match[str] | None:
            assert self.process.poll() is None or re.search(pattern, self.log.read_text()), self.log.read_text()
            return re.search(pattern, self.log.read_text())

        match: re.Match[str] = wait_for(found, f"{pattern!r} in {self.log.read_text()}", seconds)
        return match[match.lastindex or 0]

    def workers(self) -> list[psutil.Process]:
        return worker_processes(self.process.pid)

    def stop(self) -> None:
        if self.process.poll() is None:
            below = self.workers()
            self.process.kill()
            self.process.wait(timeout=20)
            for child in below:
                if child.is_running():
                    child.kill()
            psutil.wait_procs(below, timeout=20)


class Machines:
    def __init__(self, folder: Path, host: str = "127.0.0.1", prefix: Sequence[str] = (), **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.prefix = prefix
        self.environment = environment
        self.host, self.port = host, free_port()
        self.address = f"tls://{host}:{self.port}"
        self.tls = str(folder / "tls")
        write_certificates(folder / "tls")
        self.options = ["--tls", self.tls]
        self.started: list[Command] = []
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> Command:
        listen = ["scheduler", "--host", self.host, "--port", str(self.port), *self.options]
        self.scheduler = self._start("scheduler", listen, self.prefix)
        self.scheduler.wait_for_text(r"listens on (tls://[^\s\"]+)")
        return self.scheduler

    def start_worker(self, *options: str, prefix: Sequence[str] = (), wait: bool = True) -> Command:
        options = options or ("--devices", "cpu", "--threads", "1")
        worker = self._start("worker", ["worker", self.address, *self.options, *options], prefix or self.prefix)
        if wait:
            worker.wait_for_text(r"worker (tls://\S+) on")
        return worker

    def settings(self) -> dict[str, Any]:
        return {"scheduler": self.address, "tls": self.tls}

    def _start(self, name: str, arguments: Sequence[str], prefix: Sequence[str]) -> Command:
        log = self.folder / f"{name}-{len(self.started)}.log"
        self.started.append(Command(log, arguments, prefix, **self.environment))
        return self.started[-1]

    def stop(self) -> None:
        for command in reversed(self.started):
            command.stop()


def term(command: Command) -> None:
    command.process.send_signal(signal.SIGTERM)


LOW, HIGH = 20_000, 32_000
"""Below the ports that systems hand out by themselves: one of those goes to a neighbour while its server is away."""


def free_port() -> int:
    while True:
        port = random.SystemRandom().randrange(LOW, HIGH)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
