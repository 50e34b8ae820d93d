import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evalsvc.errors import EvalsvcError, InvalidSuite, UnknownName
from evalsvc.suite import SHIPPED_SUITES, build_task, find_suite, load_suite, parse_suite, suite_files
from evalsvc.tasks.loss import Loss

LOSS = {"kind": "loss", "data": "/data/pairs.jsonl"}


def test_yaml_json_and_mappings_give_the_same_suite() -> None:
    mapping = {"tasks": [LOSS]}
    yaml = "tasks:\n  - {kind: loss, data: /data/pairs.jsonl}\n"
    suites = [parse_suite(content, "small") for content in (mapping, yaml, json.dumps(mapping).encode())]
    assert suites[0] == suites[1] == suites[2]
    assert suites[0].tasks[0].name == "loss"


def test_every_parameter_is_filled_in_and_survives_json() -> None:
    suite = parse_suite({"tasks": [{**LOSS, "name": "pairs"}], "description": " Text. "}, "small")
    assert suite.tasks[0].parameters["dtype"] == "float32"
    assert "name" not in suite.tasks[0].parameters
    assert suite.description == "Text."
    assert parse_suite(json.loads(json.dumps(suite.to_json())), "small") == suite
    task = build_task(suite.tasks[0])
    assert task == Loss(name="pairs", data="/data/pairs.jsonl")


def test_identity_is_that_of_the_tasks() -> None:
    suite = parse_suite({"tasks": [LOSS]}, "small")
    assert parse_suite({"tasks": [{**LOSS, "dtype": "float32"}], "description": "x"}, "other").digest == suite.digest
    assert parse_suite({"tasks": [{**LOSS, "dtype": "bfloat16"}]}, "small").digest != suite.digest
    assert parse_suite({"tasks": [{**LOSS, "name": "pairs"}]}, "small").digest != suite.digest


def test_data_paths_start_from_the_suites_file(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("tasks: [{kind: loss, data: pairs.jsonl, tokenizer: datasets:t.json}]")
    parameters = load_suite(tmp_path / "small.yaml").tasks[0].parameters
    assert parameters["data"] == str(tmp_path / "pairs.jsonl")
    assert parameters["tokenizer"] == "datasets:t.json"


@pytest.mark.parametrize(
    ("content", "error", "fragments"),
    [
        ("tasks: [", InvalidSuite, ["suite 'small' is not valid YAML", "line 1"]),
        (b"\xff\xfe\x00", InvalidSuite, ["is not valid YAML"]),
        ("- kind: loss", InvalidSuite, ["is list; it must be a mapping with a list `tasks`"]),
        ("", InvalidSuite, ["is NoneType"]),
        ({}, InvalidSuite, ["has no list `tasks`; give at least one"]),
        ({"tasks": []}, InvalidSuite, ["has no list `tasks`"]),
        ({"tasks": {"kind": "loss"}}, InvalidSuite, ["has no list `tasks`"]),
        ({"tasks": [LOSS], "description": {}}, InvalidSuite, ["the description is dict; put it in quotes"]),
        ({"task": [LOSS]}, InvalidSuite, ["'task'", "did you mean 'tasks'"]),
        ({"name": "big", "tasks": [LOSS]}, InvalidSuite, ["suite 'small' calls itself 'big'"]),
        ({"tasks": ["loss"]}, InvalidSuite, ["task 1 is 'loss'; it must be a mapping with the key `kind`"]),
        ({"tasks": [LOSS, {"data": "/d"}]}, InvalidSuite, ["task 2 has no `kind`; it is one of: ", "loss"]),
        ({"tasks": [{"kind": "los"}]}, UnknownName, ["no task is named 'los'", "did you mean 'loss'"]),
        ({"tasks": [{**LOSS, "dtyp": "x"}]}, InvalidSuite, ["task 1 (loss)", "'dtyp'", "did you mean 'dtype'"]),
        ({"tasks": [{**LOSS, "dtype": "int8"}]}, InvalidSuite, ["dtype: input should be 'float32'", "found 'int8'"]),
        ({"tasks": [{"kind": "loss"}]}, InvalidSuite, ["task 1 (loss): data: field required"]),
        ({"tasks": [{**LOSS, "limit": 0}]}, InvalidSuite, ["limit: input should be greater than", "found 0"]),
        ({"tasks": [{**LOSS, "name": "a/b"}]}, InvalidSuite, ["the name 'a/b' must be letters, digits"]),
        ({"tasks": [{**LOSS, "name": 5}]}, InvalidSuite, ["the name 5"]),
        ({"tasks": [LOSS, LOSS]}, InvalidSuite, ["two tasks named 'loss'; give one of them another `name`"]),
        ({"tasks": [{**LOSS, "data": "p.jsonl"}]}, InvalidSuite, ["data: 'p.jsonl' is relative", "datasets:NAME"]),
    ],
)
def test_wrong_suites_say_what_is_wrong(
    content: str | bytes | Mapping[str, Any], error: type[EvalsvcError], fragments: list[str]
) -> None:
    with pytest.raises(error) as caught:
        parse_suite(content, "small")
    for fragment in fragments:
        assert fragment in caught.value.message


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "x" * 129])
def test_names_that_do_not_fit_an_address(name: str) -> None:
    with pytest.raises(InvalidSuite, match="use letters, digits"):
        parse_suite({"tasks": [LOSS]}, name)


def test_suites_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({"tasks": [LOSS]}))
    assert find_suite("mine", tmp_path) == find_suite(str(tmp_path / "mine.yaml"), None)
    assert find_suite("loss", tmp_path) == load_suite(SHIPPED_SUITES / "loss.yaml")
    with pytest.raises(UnknownName, match="no suite is named 'mien'; did you mean 'mine'"):
        find_suite("mien", tmp_path)


def test_a_suite_of_ones_own_hides_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "loss.yaml").write_text(json.dumps({"tasks": [LOSS]}))
    assert find_suite("loss", tmp_path).tasks[0].parameters["data"] == "/data/pairs.jsonl"


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSuite, match=r"the suite folder .*none does not exist"):
        suite_files(tmp_path / "none")
    with pytest.raises(InvalidSuite, match=r"the suite file .* cannot be read: no such file"):
        find_suite(str(tmp_path / "none.yaml"), None)


def test_shipped_suites_are_valid_and_say_what_they_need() -> None:
    for path in suite_files(None).values():
        assert load_suite(path).description


def test_a_broken_suite_disturbs_no_other(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("tasks: [")
    (tmp_path / "mine.yaml").write_text(json.dumps({"tasks": [LOSS]}))
    assert set(suite_files(tmp_path)) == {*suite_files(None), "broken", "mine"}
    assert find_suite("mine", tmp_path).name == "mine"
    with pytest.raises(InvalidSuite, match="suite 'broken' is not valid YAML"):
        find_suite("broken", tmp_path)
