"""Runs with results per item, as a service holds them, and the same results as files."""

import random
from collections.abc import Sequence
from typing import Any

from gate_documents import document
from queue_steps import enter, evaluate_whole, submission, suite

from evalsvc.metrics.shares import standard_error
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.store.session import Store

BENCHMARKS = ("arc", "piqa")


def items(seed: int, right: float, n: int = 40) -> list[dict[str, Any]]:
    """Answers to n questions of each benchmark: the questions are hard or easy alike for all seeds."""
    own = random.Random(seed)
    rows = []
    for benchmark in BENCHMARKS:
        common = random.Random(benchmark)
        for index in range(n):
            ease = 0.5 * common.random() + 0.5 * own.random()
            row: dict[str, Any] = {"benchmark": benchmark, "index": index, "acc": float(ease < right)}
            rows.append(row | {"bits": 3.0 + ease, "bytes": 4 + index % 3, "scores": [[-ease, 1], [-2 * ease, 0]]})
    return rows


def metrics(rows: Sequence[dict[str, Any]], limit: int = 1) -> list[MetricValue]:
    found = []
    of_acc: dict[str, Any] = {"unit": "fraction", "direction": "higher"}
    of_bits: dict[str, Any] = {"unit": "bits/byte", "direction": "lower"}
    for benchmark in BENCHMARKS:
        own = [row for row in rows if row["benchmark"] == benchmark]
        right = [row["acc"] for row in own]
        ratio = sum(row["bits"] for row in own) / sum(row["bytes"] for row in own)
        rest: dict[str, Any] = {"n": len(own), "protocol": Protocol({"benchmark": benchmark, "limit": limit})}
        accuracy = sum(right) / len(right)
        found += [
            MetricValue(f"{benchmark}/acc", accuracy, standard_error(right), items=("acc",), **of_acc, **rest),
            MetricValue(f"{benchmark}/bits_per_byte", ratio, 0.01, items=("bits", "bytes"), **of_bits, **rest),
        ]
    return found


def put(store: Store, run: str, step: int, seed: int, right: float, limit: int = 1, n: int = 40, **fields: Any) -> Any:
    path = f"/{run}/epoch_{step}.pt"
    posted = submission(step, run=run, uri=path, path=path, **fields)
    enter(store, posted, suite(f"text-{limit}", kind="language", limit=limit))
    rows = items(seed, right, n)
    evaluate_whole(store, *metrics(rows, limit), items=rows)
    return document(*metrics(rows, limit), items={"language-0": rows}, task="language-0")
