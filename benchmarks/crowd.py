"""What a crowd of clients leaves to the others: probes, a trainer that posts, an operator who revokes a token.

200 connections that each ask for a run's history once a second, and 90 that ask for `/v1/table?format=csv` and never
read the answer, come from a process of their own on one core; they show tokens, as the service asks. Meanwhile
`/healthz` and `/readyz` are asked on new connections, 50 checkpoints are posted one after the other, and a token is
revoked in the database, as `evalsvc tokens revoke` does.

    python benchmarks/crowd.py [--quick] [--seconds N] [--postgresql]

Prints a card, a table and as last line one JSON document; `met` says which limits held. There is no peer and no ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from compare import postgresql, service
from side_by_side import machine, print_last_line

from evalsvc.config import Settings
from evalsvc.store.session import open_store
from evalsvc.store.tokens import create_token, revoke_token

READER_TOKENS = 10
"""A token has a hundred requests a second."""

PROBE_EVERY = 0.05

LIMITS = {"healthz p99": 0.3, "readyz p99": 0.3, "revoked": 5.0, "posts": 15.0}
"""Seconds."""


@dataclass(frozen=True)
class Sizes:
    readers: int = 200
    stalled: int = 90
    posts: int = 50
    seconds: float = 40.0
    """At most; the crowd stays until everything is measured, or so long."""
    history: int = 2_000
    """Values that a reader asks for."""
    table: int = 100_000
    """Values of the table, beside them."""


QUICK = Sizes(readers=20, stalled=10, posts=5, seconds=10.0, history=200, table=20_000)

METRICS = 20
"""Into which the values are cut."""


@dataclass(frozen=True)
class Crowd:
    """What the process of the crowd is told."""

    host: str
    port: int
    tokens: Sequence[str]
    readers: int
    stalled: int
    seconds: float


@dataclass
class Served:
    """What the crowd had."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


@dataclass
class Measured:
    """Seconds of each request."""

    probes: dict[str, list[float]] = field(default_factory=lambda: {"/healthz": [], "/readyz": []})
    statuses: Counter[str] = field(default_factory=Counter)
    """Answers of probes that are not 200."""
    posts: list[float] = field(default_factory=list)
    revoked: float = float("inf")
    """From the revocation until the token was refused."""


# The crowd


def crowd_process() -> None:
    """Be the crowd; its orders come by standard input, and what it had goes to standard output."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    orders = Crowd(**json.load(sys.stdin))
    until = time.monotonic() + orders.seconds
    stalled = threading.Thread(target=_stall, args=(orders, until), daemon=True)
    stalled.start()
    served = asyncio.run(_read(orders, until))
    stalled.join()
    print(json.dumps(vars(served)))


def _stall(orders: Crowd, until: float) -> None:
    """Keep connections open on which an answer comes that nobody reads; a new one for each that is closed."""
    request = _request("/v1/table?format=csv", orders.tokens[0])
    connections: dict[int, socket.socket] = {}
    closed = select.poll()
    while time.monotonic() < until:
        for number, _ in closed.poll(100):
            closed.unregister(number)
            connections.pop(number).close()
        while len(connections) < orders.stalled:
            with suppress(OSError):
                connection = socket.create_connection((orders.host, orders.port), timeout=5)
                connection.sendall(request)
                connections[connection.fileno()] = connection
                closed.register(connection, select.POLLRDHUP)
    for connection in connections.values():
        connection.close()


async def _read(orders: Crowd, until: float) -> Served:
    served = Served()

    async def read(number: int) -> None:
        request = _request("/v1/runs/history/metrics", orders.tokens[number % len(orders.tokens)])
        await asyncio.sleep(number / orders.readers)
        while time.monotonic() < until:
            with suppress(OSError, asyncio.IncompleteReadError):
                await _ask_each_second(orders, request, until, served)

    await asyncio.gather(*(read(number) for number in range(orders.readers)))
    return served


async def _ask_each_second(orders: Crowd, request: bytes, until: float, served: Served) -> None:
    """Ask on one connection, once a second, or as soon as the last answer has come."""
    reader, writer = await asyncio.open_connection(orders.host, orders.port)
    try:
        while (begun := time.monotonic()) < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            await reader.readexactly(int(lines[b"content-length"]))
            served.statuses[head[9:12].decode()] += 1
            served.latencies.append(time.monotonic() - begun)
            await asyncio.sleep(max(0.0, begun + 1 - time.monotonic()))
    finally:
        writer.close()


def _request(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


@contextmanager
def crowd(orders: Crowd) -> Iterator[subprocess.Popen[str]]:
    """A crowd that has come."""
    command = [sys.executable, __file__, "--crowd"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(asdict(orders)))
        process.stdin.close()
        process.stdin = None
        yield process
    finally:
        process.terminate()
        process.wait()


# The others


def probe(url: str, measured: Measured, ended: threading.Event) -> None:
    while not ended.wait(PROBE_EVERY):
        for path, seconds in measured.probes.items():
            begun = time.monotonic()
            try:
                # On a new connection, and by little: this process has to wait for its processor too.
                connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
                connection.request("GET", path)
                status = str(connection.getresponse().status)
                connection.close()
            except (OSError, HTTPException) as error:
                status = type(error).__name__
            seconds.append(time.monotonic() - begun)
            if status != "200":
                measured.statuses[f"{path} {status}"] += 1


def post(url: str, token: str, weights: Sequence[Path], measured: Measured) -> None:
    with httpx2.Client(base_url=url, headers=_shows(token), timeout=60, trust_env=False) as client:
        for step, path in enumerate(weights):
            begun = time.monotonic()
            body = {"run": "posted", "step": step, "uri": str(path), "suites": ["loss"]}
            answer = client.post("/v1/checkpoints", json=body)
            if not answer.is_success:
                raise RuntimeError(f"a post was answered by {answer.status_code}: {answer.text}")
            measured.posts.append(time.monotonic() - begun)


def revoke(url: str, settings: Settings, name: str, token: str, measured: Measured) -> None:
    store = open_store(settings.database, migrate=False)
    with httpx2.Client(base_url=url, headers=_shows(token), timeout=60, trust_env=False) as client:
        with store.transaction() as session:
            revoke_token(session, name)
        begun = time.monotonic()
        # It may be asked four times as long as it is allowed to take.
        while time.monotonic() - begun < 4 * LIMITS["revoked"]:
            if client.get("/v1/nothing").status_code == 401:  # with a token there is nothing: 404
                measured.revoked = time.monotonic() - begun
                break
            time.sleep(0.1)
    store.close()


def _shows(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def fill(url: str, token: str, sizes: Sizes) -> None:
    for run, values in {"history": sizes.history, "table": sizes.table}.items():
        steps = list(range(values // METRICS))
        series = [
            {"metric": f"m{metric}/loss", "step": steps, "value": [step * 1e-3 + metric / 7 for step in steps]}
            for metric in range(METRICS)
        ]
        body = {"source": "made up", "series": series}
        answer = httpx2.post(f"{url}/v1/runs/{run}/metrics", json=body, headers=_shows(token), timeout=600)
        answer.raise_for_status()


def measure(settings: Settings, sizes: Sizes, folder: Path) -> tuple[Measured, Served]:
    store = open_store(settings.database, migrate=False)
    with store.transaction() as session:
        readers = [create_token(session, f"reader-{number}", "read") for number in range(READER_TOKENS)]
        trainer, leaving = create_token(session, "trainer", "submit"), create_token(session, "leaving", "read")
    store.close()
    weights = [folder / f"epoch_{step}.pt" for step in range(sizes.posts)]
    for path in weights:
        path.write_bytes(b"no weights")
    measured, ended = Measured(), threading.Event()
    with service(settings) as url:
        fill(url, trainer, sizes)
        place = urlsplit(url)
        assert place.hostname is not None
        assert place.port is not None
        orders = Crowd(place.hostname, place.port, readers, sizes.readers, sizes.stalled, sizes.seconds)
        with crowd(orders) as process:
            time.sleep(min(5.0, sizes.seconds / 4))  # until all are there
            others = [
                threading.Thread(target=post, args=(url, trainer, weights, measured)),
                threading.Thread(target=revoke, args=(url, settings, "leaving", leaving, measured)),
            ]
            probes = threading.Thread(target=probe, args=(url, measured, ended))
            for thread in (probes, *others):
                thread.start()
            served = Served(**json.loads(process.communicate()[0]))
            ended.set()
            for thread in (probes, *others):
                thread.join()
    return measured, served


def percentile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] if seconds else float("inf")


def report(database: str, sizes: Sizes, measured: Measured, served: Served) -> dict[str, float]:
    """Print the table; the figures that are held to a limit."""
    rows = {
        "history, crowd": served.latencies,
        "healthz": measured.probes["/healthz"],
        "readyz": measured.probes["/readyz"],
        "post": measured.posts,
    }
    print(f"{database}\n{'request':16} {'number':>7} {'p50':>8} {'p99':>8} {'max':>8}   seconds")
    for name, seconds in rows.items():
        shown = [statistics.median(seconds or [float("inf")]), percentile(seconds, 0.99), max(seconds, default=0.0)]
        print(f"{name:16} {len(seconds):7,} " + " ".join(f"{value:8.3f}" for value in shown))
    posts = sum(measured.posts) if len(measured.posts) == sizes.posts else float("inf")
    print(f"{sizes.posts} posts {posts:.2f} s; a revoked token is refused after {measured.revoked:.2f} s")
    print(
        f"answers to the crowd {dict(served.statuses)}; probes that were not answered by 200: {dict(measured.statuses)}"
    )
    probes = {f"{name} p99": percentile(rows[name], 0.99) for name in ("healthz", "readyz")}
    return probes | {"revoked": measured.revoked, "posts": posts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the clients and posts, 10 seconds")
    parser.add_argument("--seconds", type=float, help="how long the crowd stays at most [40]")
    parser.add_argument("--postgresql", action="store_true", help="on PostgreSQL in the place of SQLite")
    parser.add_argument("--crowd", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.crowd:
        crowd_process()
        return
    sizes = QUICK if arguments.quick else Sizes()
    seconds = arguments.seconds or sizes.seconds
    sizes = Sizes(**asdict(sizes) | {"seconds": seconds})
    print(
        f"{sizes.readers} connections that read {sizes.history:,} values a second, {sizes.stalled} that never read "
        f"a table of {sizes.history + sizes.table:,}, all from one core, {sizes.seconds:g} s"
    )
    print(machine(), "\n")
    with ExitStack() as stack:
        url = stack.enter_context(postgresql()) if arguments.postgresql else ""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evalsvc-crowd-")))
        settings = Settings(data_dir=str(folder / "data"), database_url=url, roots=str(folder))
        settings.data_path.mkdir()
        measured, served = measure(settings, sizes, folder)
    database = "PostgreSQL" if url else "SQLite"
    figures = report(database, sizes, measured, served)
    met = {name: value <= LIMITS[name] for name, value in figures.items()}
    failed = dict(measured.statuses)
    print_last_line("crowd", {}, database=database, figures=figures, limits=LIMITS, met=met, failed_probes=failed)


if __name__ == "__main__":
    main()
