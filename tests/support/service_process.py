"""`evalsvc serve` as a person starts it: a process of its own, which tests may kill."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from machines import wait_for

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"
CHECKPOINT = GOLDEN / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"
"""A small checkpoint to post, where nothing looks into it."""

START_TIMEOUT = 60
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
        support = str(Path(__file__).parent)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [support, os.environ.get("PYTHONPATH")]))},
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not (found := re.search(r"listens on (https?://\S+)", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        self.url = found[1]
        return self

    def workers(self) -> list[psutil.Process]:
        """The worker processes, which are children of the service."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def kill(self) -> None:
        """kill -9 of the service; its workers end by themselves."""
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

    def request(self, method: str, path: str, **options: Any) -> Any:
        response = self.ask(method, path, **options)
        assert response.is_success, response.text
        return response.json()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Whatever the answer is."""
        # By http, and without reading the certificates of the world's authorities each time, which takes 15 ms.
        return httpx.request(method, self.url + path, **{"timeout": 60, "verify": False, **options})

    def post(self, run: str, step: int, uri: Path, suites: list[str], **fields: Any) -> list[int]:
        """Post a checkpoint; the ids of its evaluations."""
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
        deadline = time.monotonic() + seconds
        while (document := self.evaluation(evaluation))["state"] not in OVER:
            assert time.monotonic() < deadline, document
            time.sleep(0.05)
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
    """How often each `shard step` of a log of the task `steps` was begun."""
    return Counter(" ".join(line.split()[:2]) for line in log.read_text().splitlines())
