"""The loss task on a small model, stage by stage, with its outputs as they come over the wire."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from task_runs import do_all

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.models import Transformer
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.protocol import MetricValue
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.work import LossShard, LossWork
from evalsvc.tasks.task import Plan, TaskResult
from evalsvc.worker.context import ShardContext

LAYOUT: Mapping[str, Any] = {
    "text": {"size": 80},
    "image": {"offset": -16, "size": 16},
    "special": {"doc": 80, "/doc": 81, "text": 82, "/text": 83, "image": 84, "/image": 85, "pad": 86},
    "template": ["doc", "text", "TEXT", "/text", "image", "IMAGE", "/image", "/doc", "pad"],
}
RECORDS: list[dict[str, Any]] = [
    {"text_ids": [5, 6, 7, 79], "image_codes": [0, 15, 3, 3]},
    {"text_ids": [1, 2]},
    {"image_codes": [4, 5, 6]},
    {"text_ids": list(range(20, 40)), "image_codes": [1, 1, 2, 2, 3, 3]},
    {"text_ids": [9], "image_codes": [7]},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def slow_targets(
    model: Transformer, record: Mapping[str, Any], in_template: bool, layout: Any = LAYOUT
) -> Iterator[tuple[str, int, float, float, float]]:
    """The definition, of one sequence: for each target its type, its place among the ids of the type, its loss over all
    ids and within the type, and the probability of image ids."""
    resolved = parse_layout(layout).resolve(112)
    ids = resolved.sequence(record.get("text_ids"), record.get("image_codes"), in_template).ids
    logits, seen = model(torch.tensor([ids]))[0].double(), Counter[str]()
    for position, target in enumerate(ids):
        kind = "text" if target < 80 else "image" if target >= 96 else "special"
        place, seen[kind] = seen[kind], seen[kind] + 1
        if position and target != 86:
            log_p = logits[position - 1].log_softmax(0)
            block = log_p[{"text": slice(80), "image": slice(96, 112)}.get(kind, slice(112))]
            within = log_p[target] - block.logsumexp(0)
            yield kind, place, -float(log_p[target]), -float(within), float(log_p[96:].exp().sum())


def context_of(
    checkpoint: CheckpointRef, batch_tokens: int = 8192, report: Callable[[int], None] = lambda done: None
) -> ShardContext:
    return ShardContext(checkpoint, Settings(devices="cpu", threads=1, batch_tokens=batch_tokens), report)


def loss_of(data: Path | str, **parameters: Any) -> Loss:
    return Loss(**{"name": "x", "data": str(data), **parameters})


def plan(loss: Loss, checkpoint: CheckpointRef) -> Plan[LossShard]:
    return LossWork(loss).plan(context_of(checkpoint))


def evaluate(loss: Loss, checkpoint: CheckpointRef, batch_tokens: int = 8192) -> TaskResult:
    return do_all(LossWork(loss), context_of(checkpoint, batch_tokens))


def values(result: TaskResult) -> dict[str, MetricValue]:
    return {metric.name.partition("/")[2]: metric for metric in result.metrics}


def loss_profile(result: TaskResult) -> dict[str, Any]:
    """The content of the task's only artifact."""
    [artifact] = result.artifacts
    found: dict[str, Any] = json.loads(artifact.content)
    return found
