"""Which artifacts rules keep."""

import math
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from posts_and_results import kept_artifact, metric, submission, suite
from queue_steps import act, enter, evaluate_whole

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.artifact_policy import Retention
from evalsvc.spec.protocol import Direction
from evalsvc.store.artifacts import find_prunable, mark_pruned, require_metric, retention_view
from evalsvc.store.data_folder import named_artifacts
from evalsvc.store.lookup import find_run
from evalsvc.store.session import Store
from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, Series, Task, now


def evaluate(store: Store, step: int, value: float = 1.0, content: str = "", **fields: Any) -> None:
    """A checkpoint that leaves an artifact, of its own content unless one is given."""
    enter(store, submission(step, **fields), suite())
    evaluate_whole(store, metric(value), artifacts=[kept_artifact(content or f"{step:064d}")])


def pruned_steps(store: Store, run: str | None = None, **rule: Any) -> list[int]:
    with store.reading() as session:
        ids = find_prunable(session, Retention(**rule) if rule else None, run).ids
        steps = (
            sa.select(Checkpoint.step)
            .join(Evaluation)
            .join(Task)
            .join(Artifact, Artifact.task_id == Task.id)
            .where(Artifact.id.in_(ids))
        )
        return sorted(session.scalars(steps))


def finished_before(store: Store, step: int, days: float) -> None:
    with store.transaction() as session:
        of_step = sa.select(Checkpoint.id).where(Checkpoint.step == step)
        when = now() - timedelta(days=days)
        session.execute(sa.update(Evaluation).where(Evaluation.checkpoint_id.in_(of_step)).values(finished_at=when))


def test_every_part_of_a_rule_keeps_what_it_says(store: Store) -> None:
    for step, value in ((0, 5.0), (50, 4.0), (100, 1.0), (150, 3.0), (200, 2.0)):
        evaluate(store, step, value)
    assert pruned_steps(store) == []
    assert pruned_steps(store, last=2) == [0, 50, 100]
    assert pruned_steps(store, every=100) == [50, 150]
    assert pruned_steps(store, best="loss/text") == [0, 50, 150, 200]
    finished_before(store, 50, days=3)
    assert pruned_steps(store, days=2) == [50]
    assert pruned_steps(store, last=1, every=150) == [50, 100]


def test_as_long_as_the_best_is_not_known_all_is_kept(store: Store) -> None:
    """A metric that is spelt wrongly, or that the slow suite has not measured yet."""
    evaluate(store, 50)
    evaluate(store, 100)
    assert pruned_steps(store, last=1, best="coco/fid") == []


@pytest.mark.parametrize(("value", "direction"), [(math.nan, "lower"), (math.inf, "lower"), (1.0, "none")])
def test_where_no_value_is_the_best_all_is_kept(store: Store, value: float, direction: Direction) -> None:
    """All of it was pruned: the best were no steps."""
    evaluate(store, 50, value)
    evaluate(store, 100, value)
    with store.transaction() as session:
        session.execute(sa.update(Series).values(direction=direction))
    assert pruned_steps(store, last=1, best="loss/text") == []


def test_a_metric_that_nobody_has_is_not_kept_by(store: Store) -> None:
    act(store, require_metric, "coco/fid")
    evaluate(store, 50)
    with store.transaction() as session:
        for name in ("loss/text", "loss/*"):
            require_metric(session, name)
        with pytest.raises(UnknownName, match=r"no metric is named 'loss/txt'; did you mean 'loss/text'\?.*once a run"):
            require_metric(session, "loss/txt")
        session.execute(sa.update(Series).values(direction="none"))
        with pytest.raises(
            InvalidRequest, match=r"best is 'loss/text', a metric without a better direction.*; name a metric"
        ):
            require_metric(session, "loss/text")


def test_a_run_may_have_its_own_rule(store: Store) -> None:
    for run in ("run-a", "run-b"):
        for step in (50, 100):
            evaluate(store, step, run=run)
    with store.transaction() as session:
        find_run(session, "run-a").retention = {"every": 50}
    with store.reading() as session:
        found = find_prunable(session, Retention(last=1))
        assert found.by_run == {"run-b": 1}
        default = Retention(last=1)
        assert retention_view(find_run(session, "run-a"), default).from_ == "run"
        assert retention_view(find_run(session, "run-b"), default).model_dump() == {
            "run": "run-b",
            "keep": {"last": 1},
            "from": "service",
        }
        assert retention_view(find_run(session, "run-b"), None).keep is None
        with pytest.raises(UnknownName):
            find_prunable(session, None, "run-x")


def test_replaced_checkpoints_do_not_count_as_steps(store: Store) -> None:
    evaluate(store, 50)
    evaluate(store, 100)
    evaluate(store, 100, content="f" * 64, identity=Identity(7, 7), replace=True)
    assert pruned_steps(store, last=2) == [100]
    assert pruned_steps(store, days=1) == []


def test_a_shared_content_stays_named_until_the_last_artifact_is_pruned(store: Store) -> None:
    for step in (50, 100, 150):
        evaluate(store, step, content="c" * 64)
    for keep, named in ((2, {"c" * 64}), (1, {"c" * 64})):
        with store.transaction() as session:
            found = find_prunable(session, Retention(last=keep))
            assert len(found.ids) == 1
            mark_pruned(session, found)
        with store.reading() as session:
            assert named_artifacts(session, ["c" * 64]) == named
            assert find_prunable(session, Retention(last=keep)).ids == []


def test_what_is_not_over_is_left_alone(store: Store) -> None:
    evaluate(store, 50)
    evaluate(store, 100)
    with store.transaction() as session:
        session.execute(sa.update(Evaluation).values(state="running"))
    assert pruned_steps(store, last=1) == []
