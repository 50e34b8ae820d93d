"""What all benchmarks share: sides that take turns, their ratios, what this machine manages, and the last line.

A ratio is the peer's time over ours, the median over turns of one run: above 1 when ours is faster. The range
of the turns is that within the run. Times of different runs are not compared, since a shared machine is another one an
hour later; the ceilings are measured in the same run.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.config import thread_waits
from evalsvc.models.packing import product

TABLE_BYTES = 512 << 20
"""More than the caches of a processor hold."""
CARD_TABLE_BYTES = 2 << 30
"""More than the caches of a card hold, and enough to keep all of its memory busy."""
STREAMS = (1, 8, 16)
"""Places from which a table is read at once. One line per core leaves half of some memories idle."""
TURNS = 6
AT_ONCE = 8
"""Copies and products between two readings of the clock on a card: to start one and to wait takes microseconds."""
SHAPES = ((1_024, 768, 6_144), (2_048, 2_048, 2_048))
CARD_SHAPES = ((8_192, 8_192, 8_192),)
"""Rows, width and columns of the products: smaller ones leave a card's cores idle."""


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, with what it started on a GPU."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def interleaved(sides: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each turn by side, the sides taking turns. Nothing is warmed up: call each side before."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, work in sides.items():
            times[name].append(seconds(work))
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(column) for name, column in times.items()}


def ratios(times: Mapping[str, Sequence[float]], ours: str) -> dict[str, float]:
    """By peer, the median over turns of its time over ours in the same turn."""
    return {
        peer: statistics.median(theirs / mine for theirs, mine in zip(column, times[ours], strict=True))
        for peer, column in times.items()
        if peer != ours
    }


def read_bandwidth(device: str = "cpu") -> float:
    """Bytes a second of reading a table once: the best of several reads, in each of the ways that torch offers."""
    best = 0.0
    for table in _tables(device):
        for streams in STREAMS:
            rows = table.view(streams, -1)
            best = max(best, table.nbytes / min(seconds(lambda: rows.sum(1)) for _ in range(TURNS)))  # noqa: B023
    return best


def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second, read and written, of copying a table: the best of several copies.

    A card's ceiling. `read_bandwidth` is a processor's: a sum over a few rows does not keep all of a card's cores busy.
    """
    on_card = torch.device(device).type == "cuda"
    table = torch.ones((CARD_TABLE_BYTES if on_card else TABLE_BYTES) // 4, device=device)
    copy = torch.empty_like(table)
    return 2 * table.nbytes / _fastest(lambda: copy.copy_(table), device)


def _fastest(work: Callable[[], object], device: str) -> float:
    """Seconds of the best of several turns; on a card a turn is `AT_ONCE` of them in a row."""
    times = AT_ONCE if torch.device(device).type == "cuda" else 1

    def turn() -> None:
        for _ in range(times):
            work()

    return min(seconds(turn) for _ in range(TURNS)) / times


def _tables(device: str) -> Iterator[Tensor]:
    """float32, from the usual allocator and, where a CPU has them, on huge pages: the misses of small ones cost."""
    yield torch.ones(TABLE_BYTES // 4, device=device)
    if device == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, TABLE_BYTES)
        memory.madvise(mmap.MADV_HUGEPAGE)
        yield torch.frombuffer(memory, dtype=torch.float32).fill_(1)


@torch.inference_mode()
def gemm_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations a second of a large matrix product without anything around it: the best of several shapes.

    Of torch's own product and oneDNN's the faster one, since neither is on every processor.
    """
    best = 0.0
    for rows, width, columns in CARD_SHAPES if torch.device(device).type == "cuda" else SHAPES:
        left = torch.randn(rows, width, device=device, dtype=dtype)
        right = torch.randn(columns, width, device=device, dtype=dtype)
        for multiply in (functional.linear, product):
            fastest = _fastest(lambda: multiply(left, right, None), device)  # noqa: B023
            best = max(best, 2 * rows * width * columns / fastest)
    return best


def machine() -> str:
    """What the times below a card belong to."""
    name = platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        models = (line.split(":", 1)[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model n"))
        name = next(models, name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def wait_as_workers() -> None:
    """Start this program again with the settings by which threads of workers wait, unless it has them.

    libgomp reads the settings when torch is imported.
    """
    if os.environ != (waits := os.environ | thread_waits()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], waits)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes of the lowest priority that never wait, each in a session of its own.

    A kernel that groups processes by session gives each of them as much of a core as this process gets there.
    """
    command = ["nice", "-n", "19", "sha1sum", "/dev/zero"]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def peak_bytes() -> int:
    """The largest memory that this process had. Not `ru_maxrss` on Linux: it survives exec and is the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_last_line(benchmark: str, ratios: Mapping[str, float], **figures: object) -> None:
    """One JSON document, for programs."""
    print(json.dumps({"benchmark": benchmark, "ratios": dict(ratios), **figures}))


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
