"""Results as `evalsvc run --output` writes them, made up; and what a JUnit report must be valid by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lxml import etree

from evalsvc.compare.result import Result
from evalsvc.spec.documents import ResultDocument
from evalsvc.spec.protocol import MetricValue, Protocol

SCHEMA = Path(__file__).parents[1] / "golden" / "junit" / "junit-10.xsd"

PROTOCOL = Protocol({"data": "0" * 64, "sampling": {"seed": 0, "temperature": 1.0}})


def value(name: str, number: float, stderr: float | None = 0.01, **fields: Any) -> MetricValue:
    defaults: dict[str, Any] = {"n": 100, "unit": "nats/token", "direction": "lower", "protocol": PROTOCOL}
    return MetricValue(name, number, stderr, **(defaults | fields))


def document(
    *metrics: MetricValue, items: Any = None, errors: Any = None, task: str | None = None, code: str = "out_of_memory"
) -> dict[str, Any]:
    """`items` and `errors` (messages) are by task; every metric is of `task`, else of the first half of its name."""
    return {
        "metrics": [{**metric.to_json(), "task": task or metric.name.partition("/")[0]} for metric in metrics],
        "protocols": {metric.protocol.id: dict(metric.protocol.content) for metric in metrics},
        "items": dict(items or {}),
        "errors": {name: {"code": code, "message": message} for name, message in (errors or {}).items()},
    }


def result(*metrics: MetricValue, name: str = "candidate", **more: Any) -> Result:
    return read_document(name, document(*metrics, **more))


def read_document(name: str, content: Mapping[str, Any]) -> Result:
    return Result(name, ResultDocument.model_validate(content))


def read_junit(content: bytes) -> Any:
    schema = etree.XMLSchema(etree.parse(str(SCHEMA)))
    root = etree.fromstring(content)
    schema.assertValid(root)
    return root
