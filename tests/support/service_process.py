"""`evalsvc serve` as a person starts it: a process of its own, which tests may kill."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
from machines import SUPPORT, wait_for, worker_processes

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"
CHECKPOINT = GOLDEN / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"

OVER = ("succeeded", "partly_failed", "failed", "cancelled")


class ServiceProcess:
    """A service on a free port; `start` again after `kill` finds the same data."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        self.options = options
        self.program: tuple[str, ...] = ("-P", "-m", "evalsvc.cli")
        self.log = data_dir / "service.log"
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "ServiceProcess":
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *self.program, "serve", "--port", "0", "--data-dir", str(self.data_dir)]
        path = os.pathsep.join(filter(None, [SUPPORT, os.environ.get("PYTHONPATH")]))
        with self.log.open("wb") as log:
            how: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "env": os.environ | {"PYTHONPATH": path}}
            process = self.process = subprocess.Popen([*command, *self.options], **how)

        def address() -> re.Match[str] | None:
            assert process.poll() is None, self.log.read_text()
            return re.search(r"listens on (https?://[^\s\"]+)", self.log.read_text())

        self.url = wait_for(address, f"the service listens, as {self.log} says")[1]
        return self

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        return worker_processes(self.process.pid)

    def kill(self) -> None:
        assert self.process is not None
        workers = self.workers()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        psutil.wait_procs(workers, timeout=10)
        self.process = None

    def wait_until_it_drains(self) -> None:
        wait_for(lambda: "draining" in self.ask("GET", "/readyz").text, "the service drains")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)
            self.process = None

    def __enter__(self) -> "ServiceProcess":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def request(self, method: str, path: str, **options: Any) -> Any:
        response = self.ask(method, path, **options)
        assert response.is_success, response.text
        return response.json()

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        # By http, and without reading the certificates of the world's authorities each time, which takes 15 ms.
        return httpx2.request(method, self.url + path, **{"timeout": 60, "verify": False, **options})

    def post(self, run: str, step: int, uri: Path, suites: list[str], **fields: Any) -> list[int]:
        body = {"run": run, "step": step, "uri": str(uri), "suites": suites, **fields}
        return [item["id"] for item in self.request("POST", "/v1/checkpoints", json=body)["evaluations"]]

    def put_suite(self, name: str, *tasks: dict[str, Any]) -> None:
        self.request("PUT", f"/v1/suites/{name}", json={"tasks": list(tasks)})

    def begin_steps(self, log: Path, **parameters: Any) -> int:
        """Post a checkpoint to be evaluated by the task `steps`, as suite `steps`, and wait for its first step."""
        self.put_suite("steps", {"kind": "steps", "log": str(log), **parameters})
        [evaluation] = self.post("run", 1, CHECKPOINT, ["steps"])
        wait_for(lambda: log.exists() and log.read_text() != "", "the first step")
        return evaluation

    def evaluation(self, evaluation: int) -> dict[str, Any]:
        document: dict[str, Any] = self.request("GET", f"/v1/evaluations/{evaluation}")
        return document

    def wait(self, evaluation: int, seconds: float = 90) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            document = self.evaluation(evaluation)
            return document if document["state"] in OVER else None

        document: dict[str, Any] = wait_for(ended, f"evaluation {evaluation} ends", seconds)
        return document

    def history(self, run: str, **query: Any) -> dict[tuple[str, int], float]:
        """(metric, step) → value, for runs whose series are few enough to be told apart by their metric."""
        document = self.request("GET", f"/v1/runs/{run}/metrics", params=query)
        return {
            (series["metric"], step): value
            for series in document["series"]
            for step, value in zip(series["x"], series["value"], strict=True)
        }


def steps_begun(log: Path) -> Counter[str]:
    return Counter(" ".join(line.split()[:2]) for line in log.read_text().splitlines())


Serve = Callable[..., ServiceProcess]
