"""Parameters of tasks as data, and new suites from them."""

import re
from pathlib import Path

import pytest

from evalsvc.errors import UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.parameters import PLACEHOLDER, inline_yaml, new_suite, placeholder, task_parameters, type_in_words
from evalsvc.spec.suite import parse_suite
from evalsvc.spec.yaml_text import read_yaml

PLUG_INS = Path(__file__).parents[1] / "support" / "plug_ins"
KINDS = sorted(catalog.COMPONENTS["tasks"])


def test_a_parameter_has_type_default_and_meaning() -> None:
    found = {parameter.name: parameter for parameter in task_parameters("loss")}
    assert (found["data"].required, found["data"].type) == (True, "path")
    assert (found["decoder"].type, found["decoder"].default) == ("asset or path, or `null`", None)
    assert found["crop"].type == "`center`, `center-torchvision`, `center-adm` or `none`"
    assert found["name"].default == "loss"
    assert list(found) == list(catalog.load("tasks", "loss").model_fields)
    # Keys of a mapping are parameters too.
    [benchmarks] = [parameter for parameter in task_parameters("language") if parameter.name == "benchmarks"]
    assert benchmarks.type == "list of 1 to 1,000 mappings"
    keys = {key.name: key for key in benchmarks.keys}
    assert keys["name"].required
    assert keys["data"].type == "path, or `null`"
    assert benchmarks.to_json()["keys"][0]["name"] == "name"


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_says_what_it_means(kind: str) -> None:
    """The docstrings of the fields are the reference page. A default that is not the task's would be believed."""
    example = {"kind": kind, **catalog.load("tasks", kind).example}
    [task] = parse_suite({"tasks": [example]}, "test").tasks
    for parameter in task_parameters(kind):
        for one in (parameter, *parameter.keys):
            assert one.meaning, f"{kind}.{one.name}"
            assert "any value" not in one.type, f"{kind}.{one.name}"
            assert not one.meaning.startswith(("Of ", "As ")), f"{kind}.{one.name} does not stand alone"
        if parameter.name not in example and parameter.name != "name":
            assert task.parameters[parameter.name] == parameter.default, parameter.name


def test_types_in_words_and_placeholders() -> None:
    assert type_in_words({"type": "number", "exclusiveMinimum": 0, "maximum": 10}) == "number, above 0 and at most 10"
    assert type_in_words({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}) == "integer, at least 0"
    pair = {"type": "array", "prefixItems": [{"type": "integer", "minimum": 1, "maximum": 9}] * 2}
    assert type_in_words(pair) == "list of 2 integers, 1 to 9"
    assert type_in_words({"type": "array", "items": {"enum": [64, 2048]}}) == "list of values, each `64` or `2048`"
    # A placeholder fits the type.
    [data, tokenizer, limit] = task_parameters("alignment")[2:5]
    found = [placeholder(parameter.name, parameter.schema) for parameter in (data, tokenizer, limit)]
    assert found == ["/path/to/data", "/path/to/tokenizer", 1]
    assert [placeholder("x", schema) for schema in ({"enum": ["a", "b"]}, {"const": 3})] == ["a", 3]


def test_a_plug_ins_task_has_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="no task is named 'letters'"):
        task_parameters("letters")
    monkeypatch.syspath_prepend(PLUG_INS)
    defaults = [("name", "letters"), ("engine", None), ("times", 1)]
    assert [(parameter.name, parameter.default) for parameter in task_parameters("letters")] == defaults
    assert "    #times: 1\n" in new_suite(["letters"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_in_comments_are_the_defaults(kind: str) -> None:
    """A reader who removes a `#` and changes nothing has the same suite."""
    text = new_suite([kind])
    switched_on = re.sub(r"^( *)#(\w+: )", r"\1\2", text, flags=re.MULTILINE)
    keys = set(read_yaml(switched_on)["tasks"][0])
    assert keys == {"kind", *(parameter.name for parameter in task_parameters(kind))}
    brief = new_suite([kind], brief=True)
    assert parse_suite(switched_on, "new") == parse_suite(text, "new") == parse_suite(brief, "new")
    assert not re.search(r"^ *#\w", brief, flags=re.MULTILINE)


def test_a_new_suite() -> None:
    """Several tasks have names of their own, and paths to replace say what belongs there."""
    tasks = parse_suite(new_suite(["loss", "completions", "loss"]), "new").tasks
    assert [task.name for task in tasks] == ["loss", "completions", "loss_2"]
    text = new_suite(["text_to_image"])
    assert f"captions: {PLACEHOLDER}captions.jsonl" in text
    assert max(map(len, text.splitlines())) <= 120
    with pytest.raises(UnknownName, match="did you mean 'loss'"):
        new_suite(["los"])


@pytest.mark.parametrize(
    "value", [None, True, 1.5, "word", "true", "no", "12", "a: b", "two\nlines", "", [50, "x y"], {"a": [None]}]
)
def test_a_value_on_one_line_is_read_as_itself(value: object) -> None:
    assert read_yaml(f"x: {inline_yaml(value)}") == {"x": value}
