"""What a suite may not do. It is data of whoever may post, and code, files and time of the service are not theirs."""

import time
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidSuite, UnknownName
from evalsvc.spec.paths import local_data
from evalsvc.spec.suite import parse_suite


def refused(content: str | Mapping[str, Any], roots: Path | None = None) -> EvalsvcError:
    """The error with which the service refuses a suite whose files must lie below `roots`."""
    settings = Settings() if roots is None else Settings(roots=str(roots), data_dir=str(roots / "data"))
    with pytest.raises((InvalidSuite, UnknownName)) as caught:
        parse_suite(content, "mine", allowed=partial(local_data, settings))
    assert len(caught.value.message) < 1000, "what was sent is not sent back"
    return caught.value


LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghijkl")
)
BOMBS = {
    "aliases": (LAUGHS, "it has more than 10,000 values, with aliases counted each time"),
    "merges": (
        "a: &a {k: 1}\n" + "".join(f"{n}: &{n} {{<<: [*{b}, *{b}, *{b}]}}\n" for b, n in pairwise("abcdefghijklmn")),
        "it has more than 10,000 values",
    ),
    "itself": ("tasks: &a [*a]", "the value in line 1 contains itself"),
    "deep": ("tasks: " + "[" * 100_000, "it is nested deeper than 64"),
    "deep mappings": ("".join(" " * depth + "a:\n" for depth in range(300)), "it is nested deeper than 64"),
    "number": ("tasks: " + "9" * 100_000, "the number in line 1 has 100,000 digits"),
    "base 60": ("tasks: 1" + ":59" * 40_000, "the number in line 1 has 120,001 digits"),
    "date": ("tasks: 2001-99-99", "a value is not what it looks like: month must be in 1..12"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_that_is_made_to_be_expensive(bomb: str) -> None:
    """A billion laughs are refused before they are told: in bounded time and memory, and never as a bug."""
    text, words = BOMBS[bomb]
    before = psutil.Process().memory_info().rss
    begun = time.monotonic()
    error = refused(text)
    assert time.monotonic() - begun < 20
    assert psutil.Process().memory_info().rss - before < 300e6
    assert f"suite 'mine' is not valid YAML: {words}" in error.message


@pytest.mark.parametrize(
    ("task", "words"),
    [
        *(
            (f"{tag} ['touch /tmp/x']", "could not determine a constructor for the tag")
            for tag in ("!!python/object/apply:os.system", "!!python/name:os.system", "!function")
        ),
        ("{kind: 'os:system'}", "no task is named 'os:system'"),
        ("{kind: evalsvc.tasks.loss.spec:LossTask, data: 'datasets:a'}", "no task is named"),
        ("{kind: language, benchmarks: [{name: arc_easy, trust_remote_code: true}]}", "extra inputs are not permitted"),
        ("{kind: language, benchmarks: [arc_easy], trust_remote_code: true}", "no key is named 'trust_remote_code'"),
        ("{kind: language, benchmarks: [arc_easy], include_path: [../x]}", "'../x' is relative"),
        ("{kind: language, benchmarks: [{task: a, class: os.system}]}", "name: field required"),
    ],
)
def test_tasks_that_ask_for_code(task: str, words: str) -> None:
    assert words in refused(f"tasks: [{task}]").message


@pytest.mark.parametrize("parameter", ["data", "tokenizer", "general_text", "images", "decoder", "decoder_config"])
def test_data_outside_the_roots(tmp_path: Path, parameter: str) -> None:
    """Whoever may post may not read what the service may."""
    error = refused({"tasks": [{"kind": "loss", "data": "datasets:a", parameter: "/etc/shadow"}]}, tmp_path)
    assert f"{parameter}: '/etc/shadow' is, or links, outside the allowed folders" in error.message


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["datasets:a"] * 10_000, "has 10,000 tasks; give at most 256, and the rest in another suite"),
        (["/" + "a/" * 400_000], "characters; use at most 20,000"),
        (["datasets:" + "../" * 200_000], "characters; use at most 20,000"),
        (["/etc/shadow\0.jsonl"], "the path contains a NUL character"),
    ],
    ids=["tasks", "folders", "parents", "nul"],
)
def test_more_than_a_request_can_check(paths: list[str], words: str) -> None:
    """Whoever posts waits for the checks: a body of a megabyte held the service for a minute and a half."""
    tasks = [{"kind": "loss", "data": path, "name": f"t{index}"} for index, path in enumerate(paths)]
    begun = time.monotonic()
    assert words in refused({"tasks": tasks}).message
    assert time.monotonic() - begun < 5
