"""What the service itself costs: per shard, per idle worker, and how many workers it keeps busy.

A service of its own processes evaluates tasks that do nothing (`sleep_task.py`), so all that is measured is the way of
a shard from the queue to a worker and of its result into the database:

- *overhead*: shards without any work, one worker. From the start of one to the start of the next, median and 95 %.
- *idle*: processor and memory of the service and a worker while nothing waits.
- *sleeping*: shards which sleep, the same on one worker and on sixteen. On a machine with fewer cores only sleep can
  be done by so many at once; the ratio says what the service loses them.

    python benchmarks/service.py [--quick]

From the processor's time that sixteen workers cost the service, per shard and per worker and second, comes what a
thousand would cost it. Prints a card, a table and as last line one JSON document; `ratios` has one worker's time over
that of sixteen.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from distributed.scheduler import heartbeat_interval
from side_by_side import machine, print_last_line

from evalsvc.client import Client
from evalsvc.miniature import ROOT

RUN = ROOT / "runs" / "pretrained"
MANY = 16
GPUS = 1_000
START_SECONDS = 180.0
ENTRY_POINT = {
    "METADATA": "Metadata-Version: 2.1\nName: evalsvc-sleep\nVersion: 1\n",
    "entry_points.txt": "[evalsvc.tasks]\nsleep = sleep_task:Sleep\n",
}


@dataclass(frozen=True)
class Sizes:
    empty: int = 500
    """Shards without work."""
    sleeping: int = 160
    seconds: float = 1.0
    """Of each shard that sleeps."""
    idle: float = 30.0
    """Seconds of doing nothing."""
    many: int = MANY


QUICK = Sizes(empty=30, sleeping=8, seconds=0.2, idle=1.0, many=2)


@dataclass(frozen=True)
class Use:
    """What processes had of the machine in some seconds."""

    service: float
    """Seconds of processor."""
    worker: float
    """Of one worker, the mean over all."""
    seconds: float


class Service:
    """A service whose task `sleep` is known, with so many workers."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        plug_in = folder / "plug-in" / "evalsvc_sleep-1.dist-info"
        plug_in.mkdir(parents=True)
        for name, text in ENTRY_POINT.items():
            (plug_in / name).write_text(text)
        paths = [str(plug_in.parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        options = ["--port", "0", "--data-dir", str(folder), "--devices", ",".join(["cpu"] * workers), "--threads", "1"]
        self.log = folder / "service.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "evalsvc.cli", "serve", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            )
        self.client = Client(self._wait_for(r"listens on (https?://\S+)"))
        self._wait_for_workers(workers)
        self.step = 0

    def _wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(pattern, self.log.read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log.read_text()[-2000:])
            time.sleep(0.1)
        return found[1]

    def _wait_for_workers(self, workers: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while len(self.workers()) < workers and time.monotonic() < deadline:
            time.sleep(0.2)

    def workers(self) -> list[psutil.Process]:
        """The worker processes, children of the service."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def evaluate(self, shards: int, seconds: float) -> tuple[list[float], Use]:
        """Run a task of so many shards: when each began and the last one ended, and what it cost."""
        name = f"s{shards}-{self.step}"
        task = {"kind": "sleep", "name": "sleep", "shards": shards, "seconds": seconds}
        self.client.put_suite(name, {"tasks": [task]})
        weights = RUN / "checkpoints" / "epoch_0.pt"
        before = self._processor()
        begun = time.monotonic()
        layout = str(ROOT / "runs" / "layout.yaml")
        posted = self.client.submit("sleeping", self.step, str(weights), suites=[name], layout=layout)
        self.step += 1
        [evaluation] = posted.evaluations
        done = self.client.wait(evaluation.id, every=0.5)
        if done.state != "succeeded":
            raise RuntimeError(str(done)[:2000])
        return self._times(evaluation.id), self._used_since(before, begun)

    def idle(self, seconds: float) -> Use:
        """What nothing costs."""
        before, begun = self._processor(), time.monotonic()
        time.sleep(seconds)
        return self._used_since(before, begun)

    def memory(self) -> dict[str, float]:
        """MB of memory that is the process's own, of the service and of the largest worker."""
        return {
            "service": psutil.Process(self.process.pid).memory_full_info().uss / 1e6,
            "worker": max(worker.memory_full_info().uss for worker in self.workers()) / 1e6,
        }

    def _processor(self) -> tuple[float, float]:
        def seconds(process: psutil.Process) -> float:
            times = process.cpu_times()
            return float(times.user + times.system)

        workers = self.workers()
        return seconds(psutil.Process(self.process.pid)), sum(map(seconds, workers)) / len(workers)

    def _used_since(self, before: tuple[float, float], begun: float) -> Use:
        service, worker = self._processor()
        return Use(service - before[0], worker - before[1], time.monotonic() - begun)

    def _times(self, evaluation: int) -> list[float]:
        query = """
            SELECT started_at, finished_at FROM attempts JOIN shards ON shards.id = shard_id
            JOIN tasks ON tasks.id = task_id WHERE evaluation_id = ? AND stage = 'run'
        """
        with sqlite3.connect(f"file:{self.folder / 'evalsvc.db'}?mode=ro", uri=True) as connection:
            rows = connection.execute(query, [evaluation]).fetchall()
        moments = [[datetime.fromisoformat(moment).timestamp() for moment in row] for row in rows]
        return [*sorted(started for started, _ in moments), max(finished for _, finished in moments)]

    def close(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


@contextmanager
def running(workers: int) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="evalsvc-service-") as folder:
        service = Service(Path(folder), workers)
        try:
            # What a worker imports at its first shard, and what is first compiled, is so now.
            service.evaluate(4 * workers, 0.5)
            yield service
        finally:
            service.close()


def one_worker(sizes: Sizes) -> dict[str, Any]:
    with running(1) as service:
        starts, use = service.evaluate(sizes.empty, 0.0)
        gaps = [1e3 * (later - earlier) for earlier, later in pairwise(starts)]
        idle = service.idle(sizes.idle)
        memory = service.memory()
        asleep, _ = service.evaluate(sizes.sleeping, sizes.seconds)
    return {
        "overhead_ms": {"median": statistics.median(gaps), "p95": _quantile(gaps, 0.95), "max": max(gaps)},
        "service_cpu_ms_per_shard": 1e3 * use.service / sizes.empty,
        "idle_percent": {"service": 100 * idle.service / idle.seconds, "worker": 100 * idle.worker / idle.seconds},
        "memory_mb": memory,
        "sleeping_seconds": asleep[-1] - asleep[0],
    }


def many_workers(sizes: Sizes, alone: float) -> dict[str, Any]:
    """`alone`: per cent of a core that a service with one worker has when idle."""
    with running(sizes.many) as service:
        idle = service.idle(sizes.idle)
        asleep, use = service.evaluate(sizes.sleeping, sizes.seconds)
        memory = service.memory()
    # The service has a load of its own, and one worker's.
    per_worker = (idle.service / idle.seconds - alone / 100) / (sizes.many - 1)
    return {
        "sleeping_seconds": asleep[-1] - asleep[0],
        "idle_percent": {"service": 100 * idle.service / idle.seconds, "worker": 100 * idle.worker / idle.seconds},
        "memory_mb": memory,
        "service_cpu_ms_per_worker_second": 1e3 * per_worker,
        "service_cpu_ms_per_shard": 1e3 * (use.service - idle.service / idle.seconds * use.seconds) / sizes.sleeping,
    }


def on_paper(many: dict[str, Any]) -> dict[str, float]:
    """A thousand GPUs on one service, whose scheduler and coordinator share one core.

    What a worker costs is its heartbeats, which Dask has come the less often the more workers there are.
    """
    often = heartbeat_interval(MANY) / heartbeat_interval(GPUS)
    watching = GPUS * often * many["service_cpu_ms_per_worker_second"] / 1e3
    per_shard = many["service_cpu_ms_per_shard"] / 1e3
    return {
        "gpus": GPUS,
        "core_for_watching": watching,
        "core_at_shards_of_60_s": watching + GPUS / 60 * per_shard,
        # Negative: the workers alone are more than a core.
        "shortest_shards_s": GPUS * per_shard / (1 - watching) if watching < 1 else -1.0,
    }


def _table(sizes: Sizes, one: dict[str, Any], many: dict[str, Any], ratio: float, paper: dict[str, float]) -> str:
    gaps, idle, memory = one["overhead_ms"], one["idle_percent"], one["memory_mb"]
    busy = 1 / (one["service_cpu_ms_per_shard"] / 1e3)
    lines = {
        "overhead per shard": f"{gaps['median']:.1f} ms median, {gaps['p95']:.1f} at 95 %, {gaps['max']:.1f} at most; "
        f"{one['service_cpu_ms_per_shard']:.1f} ms of the service's processor, so at most {busy:.0f} shards/s",
        "idle": f"service {idle['service']:.2f} %, worker {idle['worker']:.2f} % of a core",
        "memory": f"service {memory['service']:.0f} MB, worker {memory['worker']:.0f} MB of their own",
        f"{sizes.sleeping} shards of {sizes.seconds:g} s": f"one worker {one['sleeping_seconds']:.1f} s, {sizes.many} "
        f"workers {many['sleeping_seconds']:.2f} s: {ratio:.1f} times as fast",
        f"{sizes.many} workers": f"{many['service_cpu_ms_per_shard']:.1f} ms of the service's processor a shard, "
        f"{many['service_cpu_ms_per_worker_second']:.2f} ms a second for each worker; "
        f"idle {many['idle_percent']['service']:.1f} %",
        f"on paper, {GPUS} GPUs": f"{paper['core_for_watching']:.2f} of a core to watch them, "
        f"{paper['core_at_shards_of_60_s']:.2f} with shards of 60 s; "
        f"full at shards of {paper['shortest_shards_s']:.1f} s",
    }
    return "\n".join(f"{name:24}{text}" for name, text in lines.items())


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few shards, two workers for sixteen")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    print(machine())
    one = one_worker(sizes)
    many = many_workers(sizes, one["idle_percent"]["service"])
    ratio = one["sleeping_seconds"] / many["sleeping_seconds"]
    paper = on_paper(many)
    print(_table(sizes, one, many, ratio, paper))
    print_last_line("service", {f"{sizes.many} workers": ratio}, one=one, many=many, paper=paper)


if __name__ == "__main__":
    main()
