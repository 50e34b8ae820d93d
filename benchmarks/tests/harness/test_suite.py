"""Suites of the harness: those of the repository are valid, and a wrong one is refused with the key that is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.baseline import FOLDER, read_quality
from harness.suite import name_of, read_bench

from evalsvc.compare.gate_rules import read_rules
from evalsvc.errors import InvalidSuite, UnknownName
from evalsvc.spec.suite import build_task, parse_suite

SUITES = Path(__file__).parents[2] / "suites"

CONTENT: dict[str, Any] = {
    "checkpoint": {"weights": "weights.pt", "layout": "layout.yaml"},
    "quality": [{"kind": "loss", "data": "pairs.jsonl"}],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **changes}))
    return path


@pytest.mark.parametrize("name", ["quick", "full"])
def test_a_suite_of_the_repository_names_files_that_exist(name: str) -> None:
    bench = read_bench(SUITES / f"{name}.yaml")
    assert bench.weights.is_file()
    assert bench.layout.is_file()
    assert bench.base is None or bench.base.is_file()
    for task in (*bench.quality, *bench.timed):
        values = [value for given in task.values() for value in (given if isinstance(given, list) else [given])]
        paths = [value for value in values if isinstance(value, str) and value.startswith("..")]
        assert paths
        assert [path for path in paths if not (bench.folder / path).exists()] == []


@pytest.mark.parametrize("name", ["quick", "full"])
def test_the_rules_and_the_headline_are_about_what_a_suite_measures(name: str) -> None:
    """A rule of a metric that nothing measures makes the gate fail; one that is missing judges nothing."""
    bench = read_bench(SUITES / f"{name}.yaml")
    tasks = [build_task(spec) for spec in parse_suite({"tasks": list(bench.quality)}, "suite", bench.folder).tasks]
    rules = [rule for rule in read_rules(SUITES / "rules.yaml").rules if not rule.metric.startswith("speed-")]
    for rule in rules:
        wanted = rule.metric.replace("*", "")
        assert rule.missing == "ignore" or any(task.may_measure(wanted) for task in tasks), rule.metric
    for metric in bench.headline:
        assert any(task.may_measure(metric) for task in tasks), metric
        assert any(rule.matches(metric) for rule in rules), metric


@pytest.mark.parametrize("name", ["quick", "full"])
def test_the_stored_values_are_those_that_the_rules_and_the_headline_name(name: str) -> None:
    """A baseline without a value would let the gate judge nothing of it, or fail each build."""
    bench = read_bench(SUITES / f"{name}.yaml")
    stored = read_quality(FOLDER / f"{name}.json")
    names = {metric.name for metric in stored.metrics}
    assert set(bench.headline) <= names
    assert {metric.task for metric in stored.metrics} >= {name_of(task) for task in bench.quality}
    for rule in read_rules(SUITES / "rules.yaml").rules:
        matched = [metric for metric in names if rule.matches(metric)]
        assert matched or rule.missing == "ignore" or rule.metric.startswith("speed-"), rule.metric


def test_each_seed_is_a_task_of_its_own_where_a_task_draws(tmp_path: Path) -> None:
    sampled = {"kind": "text_to_image", "name": "digits", "captions": "a.jsonl", "decoder": "b.ckpt", "metrics": []}
    path = written(tmp_path, seeds=[4, 5], quality=[*CONTENT["quality"], sampled])
    bench = read_bench(path)
    assert [(name_of(task), task.get("seed")) for task in bench.quality] == [
        ("loss", None),
        ("digits", 4),
        ("digits-seed5", 5),
    ]
    assert bench.seeded == {"digits": {4: "digits", 5: "digits-seed5"}}
    assert bench.digest == read_bench(written(tmp_path, seeds=[4, 5], quality=[*CONTENT["quality"], sampled])).digest
    assert bench.digest != read_bench(written(tmp_path, seeds=[4, 6], quality=[*CONTENT["quality"], sampled])).digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality": []}, ["neither `quality` nor `speed`"]),
        ({"qualty": []}, ["qualty", "quality"]),
        ({"checkpoint": {"weights": "a.pt"}}, ["checkpoint.layout"]),
        ({"speed": {"tasks": [{"kind": "loss", "data": "a.jsonl"}], "turns": 3}}, ["speed.turns", "8"]),
        ({"speed": {"tasks": []}}, ["speed.tasks"]),
        ({"speed": {"tasks": [{"kind": "loss", "data": "a.jsonl", "limt": 3}]}}, ["limt", "limit"]),
        ({"quality": [{"kind": "loss", "name": "speed-loss", "data": "a.jsonl"}]}, ["speed-loss"]),
        ({"quality": [{"kind": "loss", "data": "a.jsonl"}] * 2}, ["two tasks named 'loss'"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [1, 1]}, ["seeds", "twice"]),
        ({"quality": [{"data": "a.jsonl"}]}, ["kind"]),
        ({"quality": ["loss"]}, ["quality"]),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidSuite) as caught:
        read_bench(written(tmp_path, **changes))
    for word in words:
        assert word in caught.value.message


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="loss"):
        read_bench(written(tmp_path, quality=[{"kind": "los", "data": "a.jsonl"}]))


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("[1, 2]")
    with pytest.raises(InvalidSuite, match=r"the suite .* does not map names to values; write lines such as `seeds:"):
        read_bench(path)
