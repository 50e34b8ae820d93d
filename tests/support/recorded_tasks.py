"""Tasks as a service has recorded them, evaluated in this process."""

from typing import Any

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.spec.suite import parse_suite
from evalsvc.verify.recorded import RecordedMetric, RecordedTask
from evalsvc.worker.local import run_suite


def evaluated(checkpoint: CheckpointRef, base: CheckpointRef | None = None, **task: Any) -> RecordedTask:
    """Evaluate a task, and return it with its values and their protocols."""
    suite = parse_suite({"tasks": [task]}, "test")
    result = run_suite(suite, checkpoint, lambda *_: None, base)
    assert result.errors == {}
    metrics = [
        RecordedMetric(metric.name, float(metric.value), metric.n, result.protocols[metric.protocol])
        for metric in result.metrics
    ]
    [spec], [items] = suite.tasks, result.items.values()
    return RecordedTask(checkpoint, spec, metrics, items)
