"""What a look at 4,096 images takes: memory of the service and of the worker that merges, and bytes between the two.

Codes and 2,048 features are drawn at random (`drawn_images.py`); shards, queue, service, worker, merge and metrics are
those of any evaluation. The first evaluation computes the statistics of the real images, the second one is measured:
from its first shard to its last result, with looks at 256, 512, … images.

- *own*: the worker is the service's own and has its data folder;
- *elsewhere*: the worker serves a scheduler and has a data folder of its own, as one on another machine, where the
  service's shared folder is mounted.

Each is measured with a metric that needs the moments of the real images (`fid`) and one that needs their features
(`kid`). Peaks are what a process had in memory at most, beyond what it had before the evaluation. Bytes are those of
the worker's connections, both ways.

    python benchmarks/looks.py [--quick]

Needs Linux and `ss`. Prints a card, a table and as last line one JSON document; `ratios` is empty, since there is no
peer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from side_by_side import machine, print_last_line

from evalsvc.cluster.certificates import write_certificates
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout

RUN = ROOT / "runs" / "pretrained"
START_SECONDS = 180.0
EVALUATION_SECONDS = 900.0
SHARD = 256
POLL = 0.1
"""Seconds between two looks at the worker's connections."""

ENTRY_POINT = {
    "METADATA": "Metadata-Version: 2.1\nName: evalsvc-drawn\nVersion: 1\n",
    "entry_points.txt": "[evalsvc.tasks]\ndrawn_images = drawn_task:DrawnImages\n",
}


@dataclass(frozen=True)
class Sizes:
    samples: int = 4096
    real: int = 8192
    metrics: tuple[str, ...] = ("fid", "kid")


QUICK = Sizes(samples=512, real=512, metrics=("kid",))


class Command:
    """`evalsvc …` as a process that knows the task `drawn_images`."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        plug_in = folder / "plug-in" / "evalsvc_drawn-1.dist-info"
        plug_in.mkdir(parents=True, exist_ok=True)
        for file, text in ENTRY_POINT.items():
            (plug_in / file).write_text(text)
        paths = [str(plug_in.parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "evalsvc.cli", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                    "EVALSVC_DATA_DIR": str(folder / name),
                    "EVALSVC_SHARED": str(folder / "shared"),
                    "EVALSVC_LOG_LEVEL": "info",  # at which a worker says that it serves
                },
            )

    def wait_for(self, pattern: str) -> str:
        """The first group of what appears in the log."""
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(pattern, self.log.read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log.read_text()[-2000:])
            time.sleep(0.1)
        return found[1]

    def workers(self) -> list[psutil.Process]:
        """The worker processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def stop(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for child in psutil.wait_procs(children, 10)[1]:
            child.kill()


@dataclass
class Connections:
    """Bytes that went over the connections of a process, counted by the kernel while the block lasts."""

    process: int
    _bytes: dict[str, tuple[int, int]] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Connections:
        self._before = self._count()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def moved(self) -> tuple[int, int]:
        """Bytes received and sent."""
        received, sent = (sum(found[way] for found in self._bytes.values()) for way in (0, 1))
        known = self._before
        return received - sum(known[key][0] for key in known), sent - sum(known[key][1] for key in known)

    def _poll(self) -> None:
        while not self._done.wait(POLL):
            self._bytes |= self._count()
        self._bytes |= self._count()

    def _count(self) -> dict[str, tuple[int, int]]:
        lines = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout.splitlines()
        found = {}
        for line in lines:
            if f"pid={self.process}," in line:
                columns = line.split()
                numbers = [int(match[1]) if (match := re.search(rf"{name}:(\d+)", line)) else 0 for name in COUNTED]
                found[f"{columns[3]} {columns[4]}"] = (numbers[0], numbers[1])
        return found


COUNTED = ("bytes_received", "bytes_sent")


def resident(process: int, line: str = "VmRSS") -> int:
    """Bytes of a process in memory now; `VmHWM`: at most so far."""
    found = re.search(rf"^{line}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


@dataclass(frozen=True)
class Use:
    """What an evaluation took."""

    service_peak: int
    worker_peak: int
    received: int
    """By the worker."""
    sent: int
    seconds: float


@contextmanager
def started(folder: Path, elsewhere: bool) -> Iterator[tuple[Command, Command, str]]:
    """A service, and the command whose child is the one worker."""
    commands: list[Command] = []

    def start(name: str, *arguments: str) -> Command:
        commands.append(Command(folder, name, *arguments))
        return commands[-1]

    try:
        options = ["serve", "--port", "0"]
        if elsewhere:
            write_certificates(folder / "tls")
            tls = ["--tls", str(folder / "tls")]
            scheduler = start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", *tls)
            address = scheduler.wait_for(r"listens on (tls://\S+)")
            worker = start("worker", "worker", address, *tls, "--devices", "cpu", "--threads", "1")
            worker.wait_for(r"worker (tls://\S+) on")
            service = start("service", *options, "--scheduler", address, *tls)
        else:
            worker = service = start("service", *options, "--devices", "cpu", "--threads", "1")
        url = service.wait_for(r"listens on (https?://\S+)")
        deadline = time.monotonic() + START_SECONDS
        while not worker.workers() and time.monotonic() < deadline:
            time.sleep(0.2)
        yield service, worker, url
    finally:
        for command in reversed(commands):
            command.stop()


def ask(url: str, method: str, path: str, body: object = None) -> dict[str, Any]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.load(response)
        return found


def evaluate(url: str, sizes: Sizes, folder: Path, metric: str, step: int) -> None:
    task = {
        "kind": "drawn_images",
        "name": "images",
        "captions": str(folder / "captions.jsonl"),
        "samples": sizes.samples,
        "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
        "reference": str(folder / "real.safetensors"),
        "metrics": [metric],
        "batch": 64,
        "keep": 0,
        "shard_size": SHARD,
    }
    suite = f"{metric}-{step}"
    ask(url, "PUT", f"/v1/suites/{suite}", {"tasks": [task]})
    checkpoint = {
        "run": "run",
        "step": step,
        "uri": str(RUN / "checkpoints" / f"epoch_{step}.pt"),
        "suites": [suite],
        "layout": parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json(),
    }
    [evaluation] = ask(url, "POST", "/v1/checkpoints", checkpoint)["evaluations"]
    deadline = time.monotonic() + EVALUATION_SECONDS
    while (found := ask(url, "GET", f"/v1/evaluations/{evaluation['id']}"))["state"] in ("queued", "running"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not over within {EVALUATION_SECONDS:g} s: {found}")
        time.sleep(0.2)
    if found["state"] != "succeeded":
        raise RuntimeError(str(found))


def measure(service: Command, worker: Command, work: Any) -> Use:
    [process] = [child.pid for child in worker.workers()]
    before = [resident(number) for number in (service.process.pid, process)]
    for number in (service.process.pid, process):
        Path(f"/proc/{number}/clear_refs").write_text("5")  # the peak begins anew
    begun = time.monotonic()
    with Connections(process) as connections:
        work()
    seconds = time.monotonic() - begun
    peaks = [resident(number, "VmHWM") for number in (service.process.pid, process)]
    received, sent = connections.moved()
    return Use(peaks[0] - before[0], peaks[1] - before[1], received, sent, seconds)


def write_inputs(folder: Path, sizes: Sizes) -> None:
    captions = (f'{{"text": "the digit {index % 10}"}}\n' for index in range(sizes.samples))
    (folder / "captions.jsonl").write_text("".join(captions))
    images = torch.randint(0, 256, (sizes.real, 3, 32, 32), dtype=torch.uint8)
    save_file({"images": images}, folder / "real.safetensors")


def run(sizes: Sizes) -> dict[str, Use]:
    found = {}
    for place in ("own", "elsewhere"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_inputs(folder, sizes)
            with started(folder, elsewhere=place == "elsewhere") as (service, worker, url):
                for metric in sizes.metrics:
                    evaluate(url, sizes, folder, metric, 1)
                    use = measure(service, worker, lambda: evaluate(url, sizes, folder, metric, 2))  # noqa: B023
                    found[f"{place} {metric}"] = use
    return found


def table(found: Mapping[str, Use]) -> Sequence[str]:
    header = f"{'case':16} {'service peak':>14} {'worker peak':>14} {'to worker':>12} {'from worker':>12} {'s':>7}"
    rows = [
        f"{case:16} {use.service_peak / 1e6:11.1f} MB {use.worker_peak / 1e6:11.1f} MB "
        f"{use.received / 1e6:9.1f} MB {use.sent / 1e6:9.1f} MB {use.seconds:7.1f}"
        for case, use in found.items()
    ]
    return [header, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few images: shows that it works")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    print(f"{machine()}\n{sizes.samples:,} images of 2,048 features, {sizes.real:,} real ones")
    found = run(sizes)
    print("\n".join(table(found)))
    print_last_line("looks", {}, **{case: vars(use) for case, use in found.items()})


if __name__ == "__main__":
    main()
