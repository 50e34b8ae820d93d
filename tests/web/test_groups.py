"""Groups of runs by a tag, with the mean and the spread of their values."""

from typing import Any

import pytest
from app_in_process import App
from history_reference import Point, write
from queue_steps import enter, measure, submission

from evalsvc.client import Client
from evalsvc.spec.documents import RunSummary
from evalsvc.web.pages.runs import Group, grouped, groups_of


def run(name: str, **tags: str) -> RunSummary:
    counts: dict[str, Any] = {"checkpoints": 1, "last_step": 1, "values": 1, "created_at": ""}
    return RunSummary(name=name, tags=tags, **counts)


def names(groups: dict[str, list[RunSummary]]) -> dict[str, list[str]]:
    return {title: [run.name for run in runs] for title, runs in groups.items()}


def test_by_the_value_of_a_tag_and_across_its_values() -> None:
    runs = [run("a", seed="1", lr="high"), run("b", seed="2", lr="high"), run("c", seed="1", lr="low"), run("d")]
    assert names(grouped(runs, "by", "seed")) == {"seed=1": ["a", "c"], "seed=2": ["b"], "without the tag seed": ["d"]}
    assert names(grouped(runs, "across", "seed")) == {
        "lr=high": ["a", "b"],
        "lr=low": ["c"],
        "without the tag seed": ["d"],
    }
    assert names(grouped([run("a", seed="1")], "across", "seed")) == {"no tag but seed": ["a"]}


def groups(client: Client, *metrics: str) -> list[Group]:
    return list(groups_of(client, grouped(client.runs(), "across", "seed"), metrics))


def test_values_at_the_highest_step_that_all_have_reached(app: App, client: Client) -> None:
    """A seed that has trained longer would make its group look better than it is."""
    for seed, last in (("1", 40), ("2", 20), ("3", 30)):
        enter(app.store, submission(0, run=f"run-{seed}", tags={"seed": seed, "lr": "high"}))
        points = [Point(step, float(seed) - step / 10, None, None) for step in range(0, last + 1, 10)]
        write(app.store, {"lower/x": points}, f"run-{seed}")
    [group] = groups(client)
    spread = group.spreads["lower/x"]
    assert (group.title, spread.n, spread.first_step, spread.last_step) == ("lr=high", 3, 20, 20)
    assert (spread.mean, spread.deviation, spread.low, spread.high) == (0.0, 1.0, -1.0, 1.0)


def test_one_run_has_no_spread(app: App, client: Client) -> None:
    measure(app.store, 10, 1.5, tags={"seed": "1"})
    [group] = groups(client, "loss/text", "loss/unknown")
    assert list(group.spreads) == ["loss/text"]
    assert (group.spreads["loss/text"].mean, group.spreads["loss/text"].deviation) == (1.5, None)


def test_values_of_another_protocol_are_left_out_and_counted(app: App, client: Client) -> None:
    for seed, limit, value in (("1", 1, 1.0), ("2", 2, 9.0), ("3", 1, 2.0)):
        measure(app.store, 10, value, limit=limit, run=f"run-{seed}", tags={"seed": seed})
    spread = groups(client)[0].spreads["loss/text"]
    assert (spread.mean, spread.n, spread.other_protocols) == (1.5, 2, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_have_no_mean(app: App, client: Client, value: float) -> None:
    measure(app.store, 10, value, tags={"seed": "1"})
    [group] = groups(client)
    assert group.spreads == {}
