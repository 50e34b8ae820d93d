"""Everything that runs while faults happen: a service, its workers, perhaps a scheduler, a database; all supervised."""

import heapq
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import psutil
from machines import free_port
from soak_database import Database

from evalsvc.cluster.certificates import write_certificates
from evalsvc.store.session import Store

MARK = "SOAK_WORLD"
"""The variable by which every process of a world is known, whoever its parent is by now."""

STOP_TIMEOUT = 90
SUPPORT = Path(__file__).parent


class Supervised:
    """A process that is started again whenever it has ended, as systemd or Slurm would."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self.ended_by_itself: list[int] = []
        """Exit codes of the ends that no fault brought about."""
        self._command = [sys.executable, *arguments]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._told_to_end = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def watch(self) -> None:
        """Start it, where it does not run."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            if not self._told_to_end:
                self.ended_by_itself.append(code)
            self._told_to_end = False
        self.starts += 1
        with self.log.open("ab") as stream:
            stream.write(f"--- start {self.starts} of {self.name}\n".encode())
            stream.flush()
            self._process = subprocess.Popen(
                self._command, stdout=stream, stderr=subprocess.STDOUT, env=self._environment
            )

    def kill(self) -> None:
        """kill -9; `watch` starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    def drain(self) -> None:
        """SIGTERM; once it has ended, `watch` starts it again."""
        if self._process is not None:
            self._told_to_end = True
            self._process.terminate()

    def stop(self) -> int | None:
        """SIGTERM, and its exit code."""
        if self._process is None:
            return None
        self._process.terminate()
        code = self._process.wait(timeout=STOP_TIMEOUT)
        self._process = None
        return code

    def children(self) -> list[psutil.Process]:
        """The processes that it has started to work for it."""
        return [] if self._process is None else spawned_by(self._process.pid)


def spawned_by(pid: int) -> list[psutil.Process]:
    """The child processes that multiprocessing has started, but for its own helper."""
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
    return sorted(found, key=lambda process: process.pid)


class World:
    """A service on `database`, with workers of its own or with those of an external scheduler."""

    def __init__(
        self, folder: Path, database: Database, *, workers: int, external: bool, settings: dict[str, str]
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.database = database
        self.workers_count = workers
        self.store = Store(database.url)
        self._mark = uuid.uuid4().hex
        self._settings = settings
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._stopped: dict[int, psutil.Process] = {}
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        options = ["--port", str(port), "--data-dir", str(self.data_dir), "--database-url", database.url]
        self.scheduler: Supervised | None = None
        self.supervisors: list[Supervised] = []
        if external:
            options += self._make_external(workers)
        else:
            options += ["--devices", ",".join(["cpu"] * workers)]
        self.service = self._supervised("service", ["-m", "evalsvc.cli", "serve", *options])

    @property
    def external(self) -> bool:
        return self.scheduler is not None

    def _make_external(self, workers: int) -> list[str]:
        write_certificates(self.folder / "certificates")
        tls = ["--tls", str(self.folder / "certificates")]
        address = f"tls://127.0.0.1:{free_port()}"
        self.scheduler = self._supervised("scheduler", scheduler_arguments(address, tls))
        for index in range(workers):
            arguments = ["-m", "evalsvc.cli", "worker", address, "--devices", "cpu", *tls]
            self.supervisors.append(self._supervised(f"worker-{index}", arguments))
        return ["--scheduler", address, *tls]

    def _supervised(self, name: str, arguments: Sequence[str]) -> Supervised:
        path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
        # Workers of other machines have data folders of their own, and see the shared folder of the service.
        shared = {"EVALSVC_SHARED": str(self.data_dir / "shared")}
        own = {MARK: self._mark, "PYTHONPATH": path, "XDG_DATA_HOME": str(self.folder / "home"), **shared}
        environment = os.environ | self._settings | own
        return Supervised(name, arguments, self.folder / f"{name}.log", environment)

    def supervise(self) -> None:
        """Start what has ended, and undo what is due."""
        while self._undo and self._undo[0][0] <= time.monotonic():
            heapq.heappop(self._undo)[2]()
        for part in self._parts():
            part.watch()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do this once so many seconds have passed, or when all is over."""
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._order), action))

    def undo_all(self) -> None:
        """End every fault that still lasts."""
        while self._undo:
            heapq.heappop(self._undo)[2]()

    def workers(self) -> list[psutil.Process]:
        """Worker processes that are there and not stopped."""
        if self.external:
            found = [worker for supervisor in self.supervisors for worker in supervisor.children()]
        else:
            found = self.service.children()
        return [worker for worker in found if worker.pid not in self._stopped]

    def stop_worker(self, worker: psutil.Process, seconds: float) -> None:
        """SIGSTOP now, SIGCONT after so many seconds, if it is still there."""
        worker.send_signal(signal.SIGSTOP)
        self._stopped[worker.pid] = worker

        def go_on() -> None:
            del self._stopped[worker.pid]
            with suppress(psutil.Error):
                worker.send_signal(signal.SIGCONT)

        self.later(seconds, go_on)

    def stop(self) -> int | None:
        """An orderly end of all; the service's exit code."""
        self.undo_all()
        code = self.service.stop()
        for part in (*self.supervisors, self.scheduler):
            if part is not None:
                part.stop()
        return code

    def close(self) -> None:
        """The end of everything, however it stands."""
        with suppress(Exception):
            self.undo_all()
        for part in self._parts():
            part.kill()
        for process in self.leftovers():
            with suppress(psutil.Error):
                process.kill()
        self.store.close()
        self.database.close()

    def leftovers(self, patience: float = 20) -> list[psutil.Process]:
        """Processes of this world that are still there after all that it started were told to end."""
        deadline = time.monotonic() + patience
        while (found := self._marked()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _marked(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _parts(self) -> list[Supervised]:
        return [part for part in (self.scheduler, *self.supervisors, self.service) if part is not None]


def scheduler_arguments(address: str, tls: Sequence[str]) -> list[str]:
    """How an external scheduler is started at an address."""
    host, _, port = address.removeprefix("tls://").partition(":")
    return ["-m", "evalsvc.cli", "scheduler", "--host", host, "--port", port, *tls]
