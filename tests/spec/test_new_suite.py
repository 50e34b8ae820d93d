"""`suites new`: a suite with every parameter in it."""

import re
from pathlib import Path

import pytest

from evalsvc.errors import UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.new_suite import PLACEHOLDER, inline_yaml, new_suite
from evalsvc.spec.parameters import task_parameters
from evalsvc.spec.suite import parse_suite
from evalsvc.spec.yaml_text import read_yaml

PLUG_INS = Path(__file__).parents[1] / "support" / "plug_ins"

KINDS = sorted(catalog.COMPONENTS["tasks"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_in_comments_are_the_defaults(kind: str) -> None:
    """A reader who removes a `#` and changes nothing has the same suite."""
    text = new_suite([kind])
    switched_on = re.sub(r"^( *)#(\w+: )", r"\1\2", text, flags=re.MULTILINE)
    keys = set(read_yaml(switched_on)["tasks"][0])
    assert keys == {"kind", *(parameter.name for parameter in task_parameters(kind))}
    assert parse_suite(switched_on, "new") == parse_suite(text, "new")


@pytest.mark.parametrize("kind", KINDS)
def test_brief_has_the_same_tasks(kind: str) -> None:
    brief = new_suite([kind], brief=True)
    assert parse_suite(brief, "new") == parse_suite(new_suite([kind]), "new")
    assert not re.search(r"^ *#\w", brief, flags=re.MULTILINE)


def test_several_tasks_have_names_of_their_own() -> None:
    suite = parse_suite(new_suite(["loss", "completions", "loss"]), "new")
    assert [task.name for task in suite.tasks] == ["loss", "completions", "loss_2"]


def test_paths_to_replace_say_what_belongs_there() -> None:
    text = new_suite(["text_to_image"])
    assert f"captions: {PLACEHOLDER}captions.jsonl" in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_parameter_of_a_plug_ins_task_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUG_INS)
    assert "    #times: 1\n" in new_suite(["letters"])


def test_an_unknown_kind_has_near_misses() -> None:
    with pytest.raises(UnknownName, match="did you mean 'loss'"):
        new_suite(["los"])


@pytest.mark.parametrize(
    "value", [None, True, 1.5, "word", "true", "no", "12", "a: b", "two\nlines", "", [50, "x y"], {"a": [None]}]
)
def test_a_value_on_one_line_is_read_as_itself(value: object) -> None:
    assert read_yaml(f"x: {inline_yaml(value)}") == {"x": value}
