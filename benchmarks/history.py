"""The history by HTTP, against MLflow's tracking server on the same machine in the same run.

Both keep it in SQLite and answer from one server process; both are asked by one client library, and every answer is
parsed. The sides take turns. What each is asked:

- *1 × 100,000*: every value of one metric. MLflow: `metrics/get-history`.
- *50 × 2,000*: every value of fifty metrics. Here one request; MLflow has no such one, so fifty.
- *500 buckets*: one metric of 100,000 values for a plot. MLflow: `metrics/get-history-bulk-interval`, which gives 500
  of the values; here `min`, `max`, `mean` and `last` of 500 ranges.
- *writing*: 10,000 values of a new metric. Here one request; MLflow takes at most 1,000 in a `runs/log-batch`.

    python benchmarks/history.py [--quick] [--mlflow PATH] [--readers SECONDS]

MLflow is installed into an environment of its own unless `--mlflow` says where its program is. *floor* is the same
values read from the same file by `sqlite3` and written as JSON, in this process and without any server. At the end 200
readers ask for a minute while the service evaluates checkpoints of the miniature, whose results it stores. Prints a
card, a table and as last line one JSON document; `ratios` are the peer's time over ours, above 1 when ours is faster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from compare import service
from side_by_side import interleaved, machine, medians, print_last_line, ratios

from evalsvc.client import OVER, Client
from evalsvc.config import Settings
from evalsvc.miniature import ROOT

OURS, PEER, FLOOR, PLAIN = "evalsvc", "MLflow", "floor", "evalsvc, not compressed"
AT_ONCE = 1_000
"""What MLflow's log-batch takes."""
START_SECONDS = 120.0
READERS = 200


@dataclass(frozen=True)
class Sizes:
    long: int = 100_000
    metrics: int = 50
    short: int = 2_000
    written: int = 10_000
    points: int = 500
    turns: int = 7


QUICK = Sizes(long=2_000, metrics=5, short=200, written=1_000, points=100, turns=2)

Curves = Mapping[str, Sequence[float]]
"""Values by metric; the place of a value is its step."""


def drawn_curves(sizes: Sizes) -> Curves:
    own = random.Random(0)
    lengths = {"long": sizes.long} | {f"m{index}/loss": sizes.short for index in range(sizes.metrics)}
    return {name: [own.gauss(2.0, 1.0) for _ in range(length)] for name, length in lengths.items()}


class Evalsvc:
    """Our side."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=600, trust_env=False)

    def write(self, run: str, curves: Curves) -> None:
        series = [
            {"metric": name, "step": list(range(len(values))), "value": list(values)} for name, values in curves.items()
        ]
        _read(self.http.post(f"/v1/runs/{run}/metrics", json={"source": "drawn at random", "series": series}))

    def read(self, *names: str, **query: Any) -> dict[str, list[float]]:
        document = self._ask(names, query, {})
        return {series["metric"]: series["value"] for series in document["series"]}

    def read_plain(self, *names: str) -> None:
        self._ask(names, {}, {"Accept-Encoding": "identity"})

    def buckets(self, name: str, points: int) -> int:
        [series] = self._ask((name,), {"points": points}, {})["series"]
        return len(series["mean"])

    def _ask(self, names: Sequence[str], query: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
        return _read(self.http.get("/v1/runs/r/metrics", params={"metric": list(names), **query}, headers=headers))


class Mlflow:
    """The other side. A run of it has an id that it gives itself."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=600, trust_env=False)
        made = self._post("experiments/create", {"name": "history"})
        self.experiment = made["experiment_id"]
        self.run = self.new_run()

    def new_run(self) -> str:
        made = self._post("runs/create", {"experiment_id": self.experiment, "start_time": 0})
        identity: str = made["run"]["info"]["run_id"]
        return identity

    def write(self, run: str, curves: Curves) -> None:
        rows = [
            {"key": name, "value": value, "step": step, "timestamp": step}
            for name, values in curves.items()
            for step, value in enumerate(values)
        ]
        for start in range(0, len(rows), AT_ONCE):
            self._post("runs/log-batch", {"run_id": run, "metrics": rows[start : start + AT_ONCE]})

    def read(self, *names: str) -> dict[str, list[float]]:
        return {name: [row["value"] for row in self._pages(name)] for name in names}

    def _pages(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        query = {"run_id": self.run, "metric_key": name, "max_results": 1_000_000}
        while True:
            page = _read(self.http.get("/api/2.0/mlflow/metrics/get-history", params=query))
            rows += page.get("metrics", [])
            if not (token := page.get("next_page_token")):
                return rows
            query["page_token"] = token

    def buckets(self, name: str, points: int) -> int:
        query = {"run_ids": self.run, "metric_key": name, "max_results": points}
        path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval"
        return len(_read(self.http.get(path, params=query))["metrics"])

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return _read(self.http.post(f"/api/2.0/mlflow/{path}", json=body))


def _read(response: httpx2.Response) -> Any:
    if not response.is_success:
        raise RuntimeError(f"{response.request.url} answered {response.status_code}: {response.text[:500]}")
    return response.json()


def mlflow_program(folder: Path) -> Path:
    """MLflow, installed into an environment of its own."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", "mlflow>=3,<4"], check=True)
    return folder / "bin" / "mlflow"


@contextmanager
def mlflow_server(program: Path, folder: Path) -> Iterator[str]:
    """A tracking server on SQLite, with one worker process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    command = [str(program), "server", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    log = folder / "mlflow.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # it has children of its own
        process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(url, trust_env=False).is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(log.read_text()[-2000:])


def floor(database: Path, names: Sequence[str]) -> Callable[[], object]:
    """The values of some metrics out of the service's file, as JSON."""
    query = """
        SELECT step, value, stderr, n FROM metric_values
        JOIN series ON series.id = series_id JOIN runs ON runs.id = run_id
        WHERE runs.name = 'r' AND metric = ? ORDER BY step
    """

    def read() -> str:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return json.dumps([list(zip(*connection.execute(query, [name]), strict=True)) for name in names])

    return read


def measure(ours: Evalsvc, theirs: Mlflow, database: Path, sizes: Sizes) -> dict[str, dict[str, list[float]]]:
    """Seconds of each turn, by case and side."""
    curves = drawn_curves(sizes)
    many = [name for name in curves if name != "long"]
    ours.write("r", {"long": curves["long"]})
    ours.write("r", {name: curves[name] for name in many})
    theirs.write(theirs.run, curves)
    for names in (["long"], many):
        if ours.read(*names) != theirs.read(*names) or ours.read(*names) != {name: curves[name] for name in names}:
            raise AssertionError("the two sides do not give the values that were written")
    cases: dict[str, dict[str, Callable[[], object]]] = {
        "1 × long": {
            OURS: lambda: ours.read("long"),
            PEER: lambda: theirs.read("long"),
            PLAIN: lambda: ours.read_plain("long"),
            FLOOR: floor(database, ["long"]),
        },
        "many × short": {
            OURS: lambda: ours.read("m*/loss"),
            PEER: lambda: theirs.read(*many),
            PLAIN: lambda: ours.read_plain("m*/loss"),
            FLOOR: floor(database, many),
        },
        "buckets": {
            OURS: lambda: ours.buckets("long", sizes.points),
            PEER: lambda: theirs.buckets("long", sizes.points),
        },
        "writing": _writing(ours, theirs, curves["long"][: sizes.written]),
    }
    for work in [work for sides in cases.values() for work in sides.values()]:
        work()  # once without a watch: what is first compiled or opened is so now
    return {name: interleaved(sides, sizes.turns) for name, sides in cases.items()}


def _writing(ours: Evalsvc, theirs: Mlflow, values: Sequence[float]) -> dict[str, Callable[[], object]]:
    """Each turn writes a run that is new."""
    runs = iter(f"written-{index}" for index in range(1_000_000))
    return {
        OURS: lambda: ours.write(next(runs), {"long": values}),
        PEER: lambda: theirs.write(theirs.new_run(), {"long": values}),
    }


@dataclass
class Reading:
    """What many readers had."""

    latencies: list[float] = field(default_factory=list)
    """Seconds of each request, answered or not."""
    errors: Counter[str] = field(default_factory=Counter)
    evaluations: int = 0


def many_readers(url: str, seconds: float) -> Reading:
    """Readers of several questions, while checkpoints are posted and evaluated one after the other."""
    with Client(url) as client:
        task = {"kind": "loss", "name": "pairs", "data": str(ROOT / "heldout_pairs.jsonl"), "limit": 16}
        client.put_suite("short", {"tasks": [task]})
        return asyncio.run(_read_and_evaluate(url, client, seconds))


async def _read_and_evaluate(url: str, client: Client, seconds: float) -> Reading:
    found = Reading()
    until = time.monotonic() + seconds
    questions = [
        "metrics?metric=m1/*",
        "metrics?metric=long&points=500",
        "metrics?metric=long&limit=1000",
        "summary?metric=m*",
    ]

    async def read(http: httpx2.AsyncClient, number: int) -> None:
        while time.monotonic() < until:
            begun = time.perf_counter()
            try:
                response = await http.get(f"/v1/runs/r/{questions[number % len(questions)]}")
                if not response.is_success:
                    found.errors[response.text] += 1
            except httpx2.HTTPError as error:
                found.errors[repr(error)] += 1
            found.latencies.append(time.perf_counter() - begun)
            number += 1

    async with httpx2.AsyncClient(
        base_url=url, timeout=120, trust_env=False, limits=httpx2.Limits(max_connections=READERS)
    ) as http:
        evaluations = asyncio.create_task(asyncio.to_thread(_evaluate, client, until))
        await asyncio.gather(*(read(http, number) for number in range(READERS)))
        found.evaluations = await evaluations
    return found


def _evaluate(client: Client, until: float) -> int:
    """How many evaluations had their results stored."""
    step = 0
    while time.monotonic() < until:
        weights = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_0.pt"
        posted = client.submit(
            "stored", step, str(weights), suites=["short"], layout=str(ROOT / "runs" / "layout.yaml")
        )
        [evaluation] = posted.evaluations
        if (found := client.wait(evaluation.id, every=0.2)).state != OVER[0]:
            raise RuntimeError(str(found)[:2000])
        step += 1
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a fiftieth of the values, two turns, two seconds of readers"
    )
    parser.add_argument("--mlflow", type=Path, help="MLflow's program; without it, it is installed")
    parser.add_argument("--readers", type=float, default=60.0, help="seconds of reading at the end [60]")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evalsvc-history-")))
        program = arguments.mlflow or mlflow_program(folder / "mlflow")
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        settings = Settings(data_dir=str(folder / "evalsvc"))
        settings.data_path.mkdir()
        ours = Evalsvc(url := stack.enter_context(service(settings)))
        theirs = Mlflow(stack.enter_context(mlflow_server(program, folder)))
        print(
            f"{sizes.long:,} values of one metric, {sizes.short:,} of {sizes.metrics}; {sizes.turns} turns; {version}"
        )
        print(machine(), "\n")
        times = measure(ours, theirs, settings.data_path / "evalsvc.db", sizes)
        reading = many_readers(url, 2.0 if arguments.quick else arguments.readers)
    _print(times)
    latencies, errors = sorted(reading.latencies), reading.errors.total()
    percentiles = {name: latencies[int(len(latencies) * share)] for name, share in (("p50", 0.5), ("p99", 0.99))}
    print(
        f"{READERS} readers: {len(latencies):,} requests, {errors} errors, p50 {percentiles['p50']:.2f} s, "
        f"p99 {percentiles['p99']:.2f} s, while {reading.evaluations} evaluations were stored"
    )
    for text, number in reading.errors.items():
        print(f"{number} × {text}", file=sys.stderr)
    print_last_line(
        "history",
        {case: ratios(sides, OURS)[PEER] for case, sides in times.items()},
        mlflow=version,
        p50={case: medians(sides) for case, sides in times.items()},
        max={case: {side: max(column) for side, column in sides.items()} for case, sides in times.items()},
        written_per_second={side: sizes.written / value for side, value in medians(times["writing"]).items()},
        readers={"requests": len(latencies), "errors": errors, "evaluations": reading.evaluations} | percentiles,
    )


def _print(times: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    print(f"{'case':14} {'side':26} {'p50':>9} {'max':>9}   seconds")
    for case, sides in times.items():
        for side, column in sides.items():
            print(f"{case:14} {side:26} {statistics.median(column):9.4f} {max(column):9.4f}")
        print(f"{'':14} {PEER} / {OURS}: {ratios(sides, OURS)[PEER]:.1f}")


if __name__ == "__main__":
    main()
