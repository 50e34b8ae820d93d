"""Computing tasks on text or token sequences a second time, by open_lm and by lm-eval."""

from __future__ import annotations

from collections.abc import Sequence

from evalsvc.spec.suite import build_task
from evalsvc.tasks.language.spec import BenchmarkTask
from evalsvc.tasks.loss.spec import Loss
from evalsvc.verify.agreement import Finding
from evalsvc.verify.language import verify_benchmarks
from evalsvc.verify.logits import verify_losses
from evalsvc.verify.recorded import RecordedTask, VerifyRequest, opened_context
from evalsvc.verify.recorded_values import RecordedValues


def verify_loss_task(task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    """Compute the losses of a task `loss` by the real open_lm. Raises the errors of the task."""
    spec: Loss = build_task(task.spec)
    recorded = RecordedValues.of(task.metrics, spec.dtype)
    with opened_context(task, request) as context:
        return _asked(task, request, verify_losses(context, spec, recorded, request.n))


def verify_benchmark_task(task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    """Ask the benchmarks of a task `language` or `forgetting` by lm-eval's HFLM. Raises the errors of the task."""
    spec: BenchmarkTask = build_task(task.spec)
    recorded = RecordedValues.of(task.metrics, spec.dtype)
    with opened_context(task, request) as context:
        return _asked(task, request, verify_benchmarks(context, spec, recorded, request.n))


def _asked(task: RecordedTask, request: VerifyRequest, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings without metrics that were not requested. Other quantities are kept."""
    asked = task.asked(request.metrics)
    names = {name for finding in findings if ":" not in (name := finding.quantity) and "/" in name}
    return [finding for finding in findings if not asked or finding.quantity in asked or finding.quantity not in names]
