"""Recorded values of metrics, compared with another program's if both are of the same data and protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from evalsvc.spec.protocol import canonical_json
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.recorded import RecordedMetric


@dataclass(frozen=True)
class RecordedValues:
    """Recorded values by name of the metric."""

    metrics: Mapping[str, RecordedMetric]
    unfit: str = ""
    """Reason why the values cannot be compared; empty if they can."""

    @classmethod
    def of(cls, metrics: Iterable[RecordedMetric], dtype: str = "float32") -> RecordedValues:
        """Create recorded values of a task that computes in `dtype`; the second program computes in float32."""
        unfit = "" if dtype == "float32" else f"the recorded value was computed in {dtype}, this in float32"
        return cls({metric.name: metric for metric in metrics}, unfit)

    def over(self, n: int, total: int) -> RecordedValues:
        """Return the values for a computation over `n` of the `total` sequences or documents."""
        if n == total or self.unfit:
            return self
        return replace(self, unfit=f"over {n:,} of {total:,}; --n {total} compares the recorded value")

    def compare(self, now: Agreement, protocol: Mapping[str, object]) -> Iterator[Finding]:
        """Yield `now`, which compares values computed here, with the recorded value instead of evalsvc's.

        If the recorded value has another protocol than `protocol`, a separate finding says so.
        """
        metric = self.metrics.get(now.quantity)
        if metric is None or self.unfit:
            yield replace(now, note=_joined("computed here", self.unfit if metric else "", now.note))
        elif differing := _differing(metric.protocol, protocol):
            yield replace(now, note=_joined("computed here", now.note))
            reason = f"recorded by another protocol, with another {', '.join(differing)}; evaluate again"
            yield Untried(f"{now.quantity} as recorded", now.program, reason)
        else:
            assert now.theirs is not None, "numbers are compared"
            note = _joined("recorded", now.note)
            yield Agreement.of_numbers(now.quantity, now.program, metric.value, now.theirs, now.tolerance, note)


def _differing(recorded: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    keys = sorted({*recorded, *now})
    return [key for key in keys if canonical_json(recorded.get(key)) != canonical_json(now.get(key))]


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
