"""Benchmarks for tests: YAML files as lm-eval reads them, and the rows that they are about."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CHOICE = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 2.0},
}

KINDS: Mapping[str, Mapping[str, Any]] = {
    "word": {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "{{choices[gold]}}"},
    "text": {"output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_target": "{{question}}"},
    "free": {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "{{choices[gold]}}"},
    "schema": {"doc_to_text": "gold", "doc_to_choice": "choices", "doc_to_target": "{{question}}"},
}
"""Changes to CHOICE for benchmarks of every other kind; a schema has contexts as options."""


def questions(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows for CHOICE: question n has the options n, n + 1 and n + 2."""
    rows = range(first, first + count)
    return [{"question": f"what is {n}?", "choices": [str(n + i) for i in range(3)], "gold": n % 3} for n in rows]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_benchmark(folder: Path, name: str, rows: Sequence[Mapping[str, Any]] | None = None, **changes: Any) -> Path:
    """`folder/name.yaml`, CHOICE with `changes` (None takes a key out), and its rows in `folder/name.jsonl`."""
    content = {"task": name, **CHOICE}
    if rows is not None:
        write_rows(folder / f"{name}.jsonl", rows)
        content["dataset_kwargs"] = {"data_files": {"test": f"{name}.jsonl"}}
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
