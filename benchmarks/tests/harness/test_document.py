"""The document of the harness: its stored schema is that of the code, and measurements are valid by it."""

import json
from typing import Any

import jsonschema
import pytest
from example_documents import example
from harness import document
from harness.document import BenchDocument, trimmed

from evalsvc.compare.gate import compare
from evalsvc.compare.result import Result
from evalsvc.spec.documents.results import ResultDocument, TaskMetric


def test_the_stored_schema_is_that_of_the_code() -> None:
    stored = json.loads(document.SCHEMA.read_text())
    assert stored == document.schema(), "run `python benchmarks/bench.py --schema`"
    jsonschema.Draft202012Validator.check_schema(stored)


def test_the_example_is_valid_and_is_read_as_a_result() -> None:
    content: Any = example(BenchDocument).model_dump()
    jsonschema.validate(content, document.schema())
    assert BenchDocument.model_validate(content).format == document.FORMAT
    assert [metric.name for metric in ResultDocument.model_validate(content).metrics] == ["pairs/text"]


@pytest.mark.parametrize("field", ["format", "machine", "run", "metrics"])
def test_a_document_that_lacks_a_field_is_not_valid(field: str) -> None:
    content: Any = example(BenchDocument).model_dump()
    del content[field]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, document.schema())


def result(shift: float) -> ResultDocument:
    rows: list[dict[str, object]] = [
        {"index": i, "document": i // 2, "nll": 3 + shift + i % 3, "tokens": 2, "codes": [1] * 9} for i in range(40)
    ]
    total = sum(float(str(row["nll"])) for row in rows)
    metric = TaskMetric(
        name="pairs/image", value=total / 80, stderr=0.05, n=40, unit="nats/token", direction="lower", protocol="p",
        items=["nll", "tokens"], groups=20, grouped_by="document", task="pairs",
    )  # fmt: skip
    whole = metric.model_copy(update={"name": "pairs/share", "items": [], "grouped_by": None, "groups": None})
    return ResultDocument(metrics=[metric, whole], protocols={"p": {"task": "loss"}}, items={"pairs": rows})


def test_what_is_trimmed_changes_no_verdict() -> None:
    sides = [Result(name, result(shift)) for name, shift in (("candidate", 0.1), ("baseline", 0.0))]
    small = [Result(side.name, trimmed(side.document)) for side in sides]
    assert small[0].document.items["pairs"][0] == {"index": 0, "document": 0, "nll": 3.1, "tokens": 2}
    assert compare(*small).comparisons == compare(*sides).comparisons


def test_seeds_of_a_metric_are_put_together() -> None:
    def metric(name: str, value: float) -> TaskMetric:
        return TaskMetric(name=name, value=value, stderr=None, n=9, unit="", direction="higher", protocol="p")

    given = [
        metric("digits/agreement", 0.5),
        metric("digits-seed1/agreement", 0.7),
        metric("digits-seed2/agreement", 0.6),
    ]
    names = {0: "digits", 1: "digits-seed1", 2: "digits-seed2"}
    found = document.between_seeds(ResultDocument(metrics=[*given, metric("digits/only", 1.0)]), {"digits": names})
    assert set(found) == {"digits/agreement"}
    assert found["digits/agreement"].values == {"0": 0.5, "1": 0.7, "2": 0.6}
    assert found["digits/agreement"].median == 0.6
    assert found["digits/agreement"].deviation == pytest.approx(0.1)


def test_a_written_document_is_read_again(tmp_path: Any) -> None:
    document.write(tmp_path / "result.json", result(0.0))
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == result(0.0).model_dump()
    rows = [line for line in (tmp_path / "result.json").read_text().splitlines() if '"nll":' in line]
    assert len(rows) == 40, "each row has its line, which a review shows alone"
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o644


def test_a_text_is_written_as_it_is(tmp_path: Any) -> None:
    """Lines are broken between members, and never within a text that looks like members."""
    odd = result(0.0).model_copy(update={"protocols": {"p": {"text": '},{"a":1},\n[{'}}})
    document.write(tmp_path / "result.json", odd)
    assert json.loads((tmp_path / "result.json").read_text()) == odd.model_dump()
