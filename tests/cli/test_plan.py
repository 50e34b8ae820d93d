"""`evalsvc plan`."""

import json
from typing import Any

import pytest
from console import Command

from evalsvc.cli.runs import parse_planned
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import PlannedSuite


def test_a_plan_is_set_and_shown(command: Command, service: Any) -> None:
    assert "run run-a has no suite in its plan" in command("plan", "run-a", "--none").out
    arguments = ("loss/500", "text-quick@1000..9000/1000", "--when-behind", "newest")
    said = command("plan", "run-a", *arguments).out
    rows = [line.split() for line in said.splitlines()]
    assert ["loss", "500"] in rows
    assert ["text-quick", "1,000", "1000", "9000"] in rows
    assert said.endswith("when behind: newest\n")
    assert command("plan", "run-a").out == said
    assert json.loads(command("plan", "run-a", "--format", "json").out)["suites"][0]["every"] == 500


def test_refusing_has_a_limit(command: Command, service: Any) -> None:
    said = command("plan", "run-a", "loss", "--when-behind", "refuse", "--at-most", "3").out
    assert said.endswith("when behind: refuse, while 3 other steps wait\n")


@pytest.mark.parametrize(
    ("text", "planned"),
    [
        ("loss", PlannedSuite(suite="loss", every=1)),
        ("loss/500", PlannedSuite(suite="loss", every=500)),
        ("my.suite@5..", PlannedSuite(suite="my.suite", every=1, first=5)),
        ("loss@5..10/5", PlannedSuite(suite="loss", every=5, first=5, last=10)),
    ],
)
def test_a_planned_suite(text: str, planned: PlannedSuite) -> None:
    assert parse_planned(text) == planned


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no suite of a plan"),
        ("loss/", "is no suite of a plan"),
        ("loss@5", "is no suite of a plan"),
        ("loss/-5", "is no suite of a plan"),
        ("loss/٥", "is no suite of a plan"),
        ("loss/0", "an EVERY of at least 1"),
        ("loss@9..5", "a LAST not below FIRST"),
        ("loss/9999999999999999", "steps up to 9007199254740991"),
        ("loss/" + "9" * 5000, "is no suite of a plan"),
    ],
)
def test_what_is_no_planned_suite(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_planned(text)


def test_a_plan_of_nothing_is_said_on_purpose(command: Command, service: Any) -> None:
    refused = command("plan", "run-a", "--when-behind", "newest").err
    assert "--when-behind is given without suites and without --none; leave --when-behind out" in refused
    assert "--none is given with suites" in command("plan", "run-a", "loss", "--none").err
    assert "without --when-behind refuse" in command("plan", "run-a", "loss", "--at-most", "2").err
    assert "did you mean 'loss'" in command("plan", "run-a", "los").err
