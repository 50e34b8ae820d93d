import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalsvc.errors import EvalsvcError, InvalidSuite, UnknownName
from evalsvc.spec import bounds, catalog
from evalsvc.spec import suite as suites
from evalsvc.spec.suite import SHIPPED_SUITES, examine_suite, find_suite, load_suite, parse_suite, suite_files
from evalsvc.tasks.loss.spec import Loss

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
    assert suites.build_task(suite.tasks[0]) == Loss(name="pairs", data="/data/pairs.jsonl")


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
        ("- kind: loss", InvalidSuite, ["is list; write a mapping with a list `tasks`"]),
        ("", InvalidSuite, ["suite 'small' is empty; write a mapping"]),
        ({}, InvalidSuite, ["has no list `tasks`; give at least one"]),
        ({"tasks": {"kind": "loss"}}, InvalidSuite, ["has no list `tasks`"]),
        ({"tasks": [LOSS], "description": {}}, InvalidSuite, ["the description is dict; put it in quotes"]),
        ({"task": [LOSS]}, InvalidSuite, ["'task'", "did you mean 'tasks'"]),
        ({"name": "big", "tasks": [LOSS]}, InvalidSuite, ["suite 'small' calls itself 'big'"]),
        ({"tasks": ["loss"]}, InvalidSuite, ["task 1 is 'loss'; write a mapping with the key `kind`"]),
        ({"tasks": [LOSS, {"data": "/d"}]}, InvalidSuite, ["task 2 has no `kind`; choose one of: ", "loss"]),
        ({"tasks": [{"kind": "los"}]}, UnknownName, ["no task is named 'los'", "did you mean 'loss'"]),
        ({"tasks": [{**LOSS, "dtyp": "x"}]}, InvalidSuite, ["task 1 (loss)", "'dtyp'", "did you mean 'dtype'"]),
        ({"tasks": [{**LOSS, "dtype": "int8"}]}, InvalidSuite, ["dtype: input should be 'float32'", "found 'int8'"]),
        ({"tasks": [{"kind": "loss"}]}, InvalidSuite, ["task 1 (loss): data: field required"]),
        ({"tasks": [{**LOSS, "limit": 0}]}, InvalidSuite, ["limit: input should be greater than", "found 0"]),
        ({"tasks": [{**LOSS, "name": "a/b"}]}, InvalidSuite, ["the name is 'a/b'; use at most 128 letters"]),
        ({"tasks": [LOSS, LOSS]}, InvalidSuite, ["two tasks named 'loss'; give one of them another `name`"]),
        ({"tasks": [{**LOSS, "data": "p.jsonl"}]}, InvalidSuite, ["data: 'p.jsonl' is relative", "datasets:NAME"]),
    ],
)
def test_wrong_suites_say_what_is_wrong(content: Any, error: type[EvalsvcError], fragments: list[str]) -> None:
    with pytest.raises(error) as caught:
        parse_suite(content, "small")
    told = " ".join(problem.message for problem in examine_suite(content, "small")[1])
    for fragment in fragments:
        assert fragment in caught.value.message
        assert fragment in told


def test_a_suite_is_examined_to_its_end() -> None:
    """Whoever corrects one mistake at a time starts a run for each."""
    wrong = {"kind": "loss", "dat": "/d", "limt": 1, "data": "/d", "limit": 0}
    right = {**LOSS, "name": "right"}
    tasks, errors = examine_suite({"tasks": [wrong, {"kind": "los"}, right], "descr": "", "description": 5}, "small")
    assert [task.name for task in tasks] == ["right"]
    found = [error.message for error in errors]
    words = ["'descr'", "task 1 (loss): no key is named 'dat'", "'limt'", "task 1 (loss): limit:", "task 2: no task"]
    assert len(found) == 6
    assert all(word in message for word, message in zip([*words, "description is int"], found, strict=True))
    assert examine_suite({"tasks": [right]}, "small") == ([*parse_suite({"tasks": [right]}, "small").tasks], [])


def test_suites_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    """A broken suite disturbs no other, and one of one's own hides the shipped one."""
    (tmp_path / "broken.yaml").write_text("tasks: [")
    (tmp_path / "mine.yaml").write_text(json.dumps({"tasks": [LOSS]}))
    assert set(suite_files(tmp_path)) == {*suite_files(None), "broken", "mine"}
    assert find_suite("mine", tmp_path) == find_suite(str(tmp_path / "mine.yaml"), None)
    assert find_suite("loss", tmp_path) == load_suite(SHIPPED_SUITES / "loss.yaml")
    (tmp_path / "loss.yaml").write_text(json.dumps({"tasks": [LOSS]}))
    assert find_suite("loss", tmp_path) == load_suite(tmp_path / "loss.yaml")
    with pytest.raises(UnknownName, match="no suite is named 'mien'; did you mean 'mine'"):
        find_suite("mien", tmp_path)
    with pytest.raises(InvalidSuite, match="suite 'broken' is not valid YAML"):
        find_suite("broken", tmp_path)
    with pytest.raises(InvalidSuite, match=r"the suite folder .*none does not exist"):
        suite_files(tmp_path / "none")
    with pytest.raises(InvalidSuite, match=r"the suite file .* cannot be read: no such file"):
        find_suite(str(tmp_path / "none.yaml"), None)
    for name in ("", "a b", "-a", "a/b", "x" * 129):
        with pytest.raises(InvalidSuite, match="use at most 128 letters, digits"):
            parse_suite({"tasks": [LOSS]}, name)


@pytest.mark.parametrize("name", sorted(suite_files(None)))
def test_shipped_suites_say_what_they_need_and_name_their_dtype(name: str) -> None:
    """It is up to three times the time, and a default that moved would end every series."""
    assert load_suite(suite_files(None)[name]).description
    assert load_suite(suite_files(None)[name]).headline
    if name == "miniature":
        return
    content = yaml.safe_load((SHIPPED_SUITES / f"{name}.yaml").read_text())
    tasks = [task for task in content["tasks"] if "dtype" in catalog.load("tasks", task["kind"]).model_fields]
    expected = {"bfloat16" if name == "coco-fid-30k" else "float32"}
    assert {task.get("dtype") for task in tasks} == (set() if name == "images" else expected)


def unbounded(schema: Mapping[str, Any], where: str) -> Iterator[str]:
    """Places in a JSON schema that a value of any size fits into."""
    sizes = {"integer": {"minimum", "maximum"}, "string": {"maxLength"}, "array": {"maxItems"}}
    needed = {**sizes, "object": {"properties"}}
    kind = schema.get("type", "")
    least = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    told = schema.keys() | ({"minimum", "maximum"} if None not in least else set())
    if not {"enum", "const"} & schema.keys() and not needed.get(kind, set()) <= told:
        yield f"{where} is a {kind} without {' and '.join(sorted(needed[kind] - told))}"
    for name, item in (*schema.get("properties", {}).items(), *schema.get("$defs", {}).items()):
        yield from unbounded(item, f"{where}.{name}")
    items = [schema["items"]] if "items" in schema else []
    for item in (*schema.get("anyOf", ()), *schema.get("prefixItems", ()), *items):
        yield from unbounded(item, where)


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_every_parameter_has_a_bound(kind: str) -> None:
    """A count without one became 7.6 GB of objects while a suite was checked; the next one would, too."""
    schema = catalog.load("tasks", kind).model_json_schema()
    del schema["properties"]["name"]  # of every task, bounded by its pattern
    assert list(unbounded(schema, kind)) == []


MANY_FILES = [{"name": f"b{index}", "data": "/a"} for index in range(501)]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"kind": "completions", "samples": 100_000_000}, "samples: input should be less than or equal to 10000"),
        ({"kind": "completions", "samples": 9000, "max_tokens": 5000}, "90,010,000 ids, more than 10,000,000"),
        ({"kind": "completions", "samples": 2, "seed": 2**63 - 1}, "which leaves no seeds for 2 `samples`"),
        ({"kind": "completions", "prompts": ["a"] * 1001}, "prompts: tuple should have at most 1000 items"),
        ({**LOSS, "data": "/" + "a/" * 65}, "data: the path has 66 folders; use at most 64"),
        ({**LOSS, "data": "/" + "a" * 5000}, "data: string should have at most 4096 characters, found '/aaa"),
        ({**LOSS, "limit": 10**30}, "tasks.0.limit: a whole number of more than 64 bits; use a smaller number"),
        ({**LOSS, "limit": float("nan")}, "tasks.0.limit: nan is not a valid parameter"),
        ({**LOSS, "data": "/" + "x" * 30_000}, "tasks.0.data: a text of 30,001 characters; use at most 20,000"),
        ({**LOSS, "limit": [0] * 30_000}, "the suite has more than 25,000 values; move some tasks to another suite"),
        ({**LOSS, "limit": ["x" * 20_000] * 26}, "the suite's texts have more than 500,000 characters"),
        ({"kind": "language", "benchmarks": MANY_FILES}, "benchmarks.500.data: the suite names more than 500 files"),
        ({"kind": ["loss"] * 1000}, "the kind is ['loss', 'loss',"),
        ({"kind": "language", "benchmarks": [1] * 50}, "; and 43 more"),
    ],
)
def test_what_is_too_much_is_refused_before_it_is_expanded(task: Mapping[str, Any], words: str) -> None:
    with pytest.raises(InvalidSuite) as caught:
        parse_suite({"tasks": [task]}, "small")
    assert words in caught.value.message
    assert len(caught.value.message) < 2500, "what was found is not sent back whole"


def test_yaml_has_less_room_than_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes forty times as long to read."""
    text = "tasks: [{kind: loss, data: /data/pairs.jsonl}]\n"
    with pytest.raises(InvalidSuite, match="is 131,073 characters of YAML; give at most 131,072, or send it as JSON"):
        parse_suite(text + "#" * (131_073 - len(text)), "small")
    with pytest.raises(InvalidSuite, match="it has more than 10,000 values, with aliases counted"):
        parse_suite("x: [" + "1," * 10_000 + "]", "small")
    assert parse_suite(text + "#" * (131_072 - len(text)), "small").tasks
    # What is kept has the defaults filled in, and is read again.
    monkeypatch.setattr(bounds, "MAX_VALUES", 20)
    with pytest.raises(InvalidSuite, match="suite 'small': the suite has more than 20 values"):
        parse_suite(text, "small")


BENCHMARKS = {"kind": "language", "name": "quick", "benchmarks": ["arc_easy", "mmlu"], "mean": ["acc"]}


@pytest.mark.parametrize("metric", ["loss/text", "arc_easy/acc_token", "mmlu_anatomy/acc", "quick/mean", "mmlu/mcc"])
def test_a_headline_names_metrics_of_the_tasks(metric: str) -> None:
    suite = parse_suite({"headline": [metric], "tasks": [LOSS, BENCHMARKS]}, "small")
    assert suite.headline == (metric,)
    assert parse_suite(suite.to_json(), "small") == suite
    assert suite.digest == parse_suite({"tasks": [LOSS, BENCHMARKS]}, "small").digest, "it moves no number"
    _, errors = examine_suite({"headline": [metric], "tasks": [{**LOSS, "dtyp": "float32", "limit": -1}]}, "small")
    assert not [error for error in errors if "headline" in error.message], "a broken task is no mistake of it"


@pytest.mark.parametrize(
    ("headline", "words"),
    [
        ("loss/text", "headline is 'loss/text'; give a list of metrics"),
        ([1], "headline is [1]; give a list"),
        ({"loss/text": 1}, "give a list of metrics"),
        (["loss/text"] * 2, "has 'loss/text' twice"),
        ([f"loss/text_position_{place}" for place in range(7)], "has 7 metrics; name at most 6"),
        (["loss/txet"], "no metric is named 'loss/txet'; did you mean 'loss/text'"),
        (["arc_easy/ac"], "did you mean 'arc_easy/acc'"),
        (["quick/acc"], "no metric is named 'quick/acc'"),
        ([""], "no metric is named ''"),
        (["loss/text\x1b[2J"], "no metric is named"),
        (["loss/" + "x" * 100_000], "a text of 100,005 characters; use at most 20,000"),
        (["loss/" + "x" * 10_000], "headline has a metric of 10,005 characters"),
    ],
)
def test_a_headline_of_something_else_is_refused(headline: object, words: str) -> None:
    suite = {"headline": headline, "tasks": [LOSS, BENCHMARKS]}
    with pytest.raises(InvalidSuite) as caught:
        parse_suite(suite, "small")
    for told in (caught.value.message, "".join(error.message for error in examine_suite(suite, "small")[1])):
        assert words in told
        assert len(told) < 2_000


@pytest.mark.parametrize("second", ["_" * 19_000, "_" * 240, "x_" * 120 + "chang"])
def test_a_headline_that_is_slow_to_match_is_refused_at_once(second: str) -> None:
    """Patterns such as `<benchmark>_<metric>_change` take the square of a name's length."""
    started = time.process_time()
    with pytest.raises(InvalidSuite):
        parse_suite({"headline": [f"forgetting/{second}"], "tasks": [{"kind": "forgetting", "text": "/t.jsonl"}]}, "s")
    assert time.process_time() - started < 0.5
