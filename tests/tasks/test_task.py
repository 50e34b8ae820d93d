import types
from dataclasses import dataclass
from importlib import import_module

import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.spec import catalog
from evalsvc.tasks.task import Plan, Shard, Task, Work, cut


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_a_task_is_called_as_the_catalog_says_and_names_its_work(kind: str) -> None:
    """The service reads the parameters only: a work that cannot be imported fails on workers, after the post."""
    task = catalog.load("tasks", kind)
    module, _, name = task.work.partition(":")
    assert task.kind == kind
    assert issubclass(getattr(import_module(module), name), Work)


def test_a_plan_has_no_more_shards_than_a_queue_takes() -> None:
    words = "the task is cut into 1,000,000 shards, more than 10,000; raise `shard_size`"
    with pytest.raises(InvalidRequest, match=words):
        cut(1_000_000, 1)
    with pytest.raises(InvalidRequest, match="is cut into 10,001 shards"):
        Plan([Shard(units=1)] * 10_001, "images")
    assert list(cut(5, 2)) == [(0, 2), (2, 4), (4, 5)]


@dataclass(frozen=True)
class Left:
    """What a shard leaves."""

    count: int


def test_a_work_names_frozen_dataclasses() -> None:
    """It is said where the class is defined, not by the first shard that cannot be sent."""
    write = r"write `class …\(Work\[Parameters, Shard, Output\]\)` with the class of the parameters and two frozen data"
    with pytest.raises(TypeError, match=f"Untyped does not name its types; {write}"):
        type("Untyped", (Work,), {})
    with pytest.raises(TypeError, match=f"needs three types; {write}"):
        Work[Task]  # type: ignore[misc]
    with pytest.raises(TypeError, match="is no frozen dataclass"):
        types.new_class("Loose", (Work[Task, Shard, dict],))
    with pytest.raises(TypeError, match="Unitless has shards without `units`; derive Left from Shard"):
        types.new_class("Unitless", (Work[Task, Left, Left],))
