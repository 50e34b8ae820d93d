"""A service's two writers at once, at random: whatever meets whatever, all that is asked for ends, and once.

The soak does so with real processes, and has hundreds of such meetings in an hour; here are thousands in seconds.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import SystemRandom

import pytest
import sqlalchemy as sa
from history_reference import Point, imported
from posts_and_results import act, ask, metric, plan, ran, result, submission, submit_due, suite
from queue_steps import next_shard
from sqlalchemy import event, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import Conflict, RunBehind, UnknownName, WrongState
from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.history.imports import import_values
from evalsvc.store.lookup import current_checkpoint, get_or_create_run
from evalsvc.store.queue import transitions
from evalsvc.store.queue.attempts import Assignment, finish, give_up, is_queued, requeue_running, unwanted
from evalsvc.store.queue.stages import cancel_evaluation, fail_checkpoint, retry_evaluation
from evalsvc.store.runs.deletion import delete_checkpoint, delete_run, rename_run
from evalsvc.store.runs.posting import evaluate, submit
from evalsvc.store.runs.virtual import resolve_expression
from evalsvc.store.session import Store
from evalsvc.store.tables import OVER, Attempt, Checkpoint, Evaluation, MetricValue, Run, Shard, Task

SECONDS = 60.0 if os.environ.get("TESTS_LONG") else 4.0
RUNS, STEPS, SUITES, AT_WORK, ATTEMPTS = ("run-a", "run-b", "run-c", "run-d"), 4, ("quick", "other"), 4, 3
STUCK_AFTER = 20.0


@pytest.fixture(autouse=True)
def _slow_statements_and_no_back_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes between two statements is what is looked for."""
    monkeypatch.setattr(transitions, "FIRST_BACK_OFF", 0.0)
    dice = random.Random(1)

    @event.listens_for(store.engine, "before_cursor_execute")
    def _dawdle(*_: object) -> None:
        if dice.random() < 0.1:
            time.sleep(dice.random() * 0.003)


class Client:
    """Requests, one after the other as the service lets them write: none may fail but for its meaning."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.dice = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._contents = count(1)

    def act(self) -> None:
        acts: dict[Callable[[Session], object], float] = {
            self.post: 6,
            self.plan: 2,
            self.post_mean: 2,
            self.cancel: 4,
            self.retry: 6,
            self.measure_again: 2,
            self.fail_copy: 1,
            self.import_history: 2,
            self.rename: 1,
            self.delete: 0.3,
            self.delete_one: 1,
        }
        [act] = self.dice.choices(list(acts), list(acts.values()))
        try:
            with self.store.transaction() as session:
                act(session)
            self.done[act.__name__] += 1
        except (Conflict, RunBehind, UnknownName, WrongState):
            self.done[f"{act.__name__} refused"] += 1

    def post(self, session: Session) -> None:
        replace = self.dice.random() < 0.6
        identity = Identity(100, next(self._contents) if replace else 0)
        step = self.dice.randrange(STEPS)
        posted = submission(step, run=self.dice.choice(RUNS), identity=identity, replace=replace)
        if self.dice.random() < 0.3:
            submit_due(session, posted)
        else:
            submit(session, posted, [suite(name, limit=index) for index, name in enumerate(SUITES)])

    def plan(self, session: Session) -> None:
        """A request of its own: it writes to the run, which a post does after it has held the evaluations."""
        plan = {"suites": [{"suite": "quick", "every": 1}], "when_behind": self.dice.choice(["newest", "refuse"])}
        get_or_create_run(session, self.dice.choice(RUNS)).plan = plan

    def post_mean(self, session: Session) -> None:
        first, second = (f"{self.dice.choice(RUNS[:2])}@{self.dice.randrange(STEPS)}" for _ in range(2))
        text = f"avg({first}, {second})"
        parents = [parent.id for parent in resolve_expression(session, text).parents]
        fields = {"uri": text, "path": text, "identity": Identity(0, 0), "parents": parents, "variant": "mean"}
        posted = submission(self.dice.randrange(STEPS), run=RUNS[2], replace=True, **fields)
        submit(session, posted, [suite(SUITES[0], limit=0)])

    def cancel(self, session: Session) -> None:
        cancel_evaluation(session, self._any(session, Evaluation.id))

    def retry(self, session: Session) -> None:
        retry_evaluation(session, self._any(session, Evaluation.id))

    def measure_again(self, session: Session) -> None:
        run = session.scalar(select(Run).where(Run.name == self.dice.choice(RUNS)))
        checkpoint = run and current_checkpoint(session, run.id, self.dice.randrange(STEPS), "raw")
        if checkpoint:
            evaluate(session, checkpoint, suite(SUITES[0], limit=0), priority=0)

    def fail_copy(self, session: Session) -> None:
        fail_checkpoint(session, self._any(session, Checkpoint.id), ShardError("checkpoint_gone", "not copied"))

    def import_history(self, session: Session) -> None:
        points = [Point(self.dice.randrange(STEPS), self.dice.random(), None, None)]
        import_values(session, self.dice.choice(RUNS), "old.csv", [imported("fid", points)], replace=True)

    def rename(self, session: Session) -> None:
        rename_run(session, self.dice.choice(RUNS), self.dice.choice(RUNS))

    def delete(self, session: Session) -> None:
        delete_run(session, self.dice.choice(RUNS[2:]), cancel=True)

    def delete_one(self, session: Session) -> None:
        delete_checkpoint(session, self._any(session, Checkpoint.id), cancel=True)

    def _any(self, session: Session, ids: InstrumentedAttribute[int]) -> int:
        """Of the newest, mostly: what is old is over."""
        found = session.scalars(select(ids).order_by(ids.desc()).limit(12)).all()
        return self.dice.choice(found) if found else 0


class Hands:
    """What the coordinator does, with shards that it only seems to run."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.dice = random.Random(seed)
        self.held: list[Assignment] = []
        self.ended: Counter[str] = Counter()
        self.calm = False

    def act(self) -> None:
        if len(self.held) < AT_WORK and (assignment := next_shard(self.store)):
            self.held.append(assignment)
            return
        if self.dice.random() < 0.02 and not self.calm:
            self.held.clear()  # the service was killed, and starts
        if self.dice.random() < 0.05:
            self.requeue()
        if self.held:
            self.end(self.held.pop(self.dice.randrange(len(self.held))))

    def requeue(self) -> None:
        act(self.store, requeue_running, {item.shard_id: item.attempt for item in self.held})

    def end(self, assignment: Assignment) -> None:
        stopped = bool(ask(self.store, unwanted, [assignment.shard_id])) and self.dice.random() < 0.7
        kind = "cancelled" if stopped else "succeeded"
        if not stopped and not self.calm:
            [kind] = self.dice.choices(["succeeded", "failed", "worker_died", "lost"], [20, 1, 1, 1])
        with self.store.transaction() as session:
            if kind in ("worker_died", "lost"):
                error = ShardError(kind, "it died") if kind == "worker_died" else None
                stored = give_up(session, assignment, kind, error, ATTEMPTS)
            else:
                stored = finish(session, assignment, self.outcome(assignment, kind), ATTEMPTS)
        self.ended[kind if stored else "too late"] += 1

    def outcome(self, assignment: Assignment, kind: str) -> ShardResult:
        if kind == "cancelled":
            return ShardResult(error=ShardError("cancelled", "stopped"))
        if kind == "failed":
            return ShardResult(error=ShardError(self.dice.choice(["non_finite", "out_of_memory"]), "it failed"))
        if assignment.request.stage == "plan":
            return plan(self.dice.randrange(1, 4))
        if assignment.request.stage == "run":
            return ran(sum=1)
        return result(metric(float(assignment.evaluation_id), limit=int(assignment.request.task.parameters["limit"])))


@pytest.mark.usefixtures("many_cases")
def test_all_ends_whatever_meets_whatever(store: Store) -> None:
    seed = SystemRandom().randrange(1 << 31)
    print(f"seed {seed}")
    client, hands = Client(store, seed), Hands(store, seed + 1)
    problems: list[BaseException] = []
    until = time.monotonic() + SECONDS

    def has_met() -> bool:
        """On a busy machine some seconds are few."""
        return client.done["retry"] > 0 and hands.ended["succeeded"] > 0

    def repeat(act: Callable[[], None]) -> None:
        try:
            while not problems and (time.monotonic() < until or not has_met()):
                act()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=repeat, args=(each.act,)) for each in (client, hands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    finish_all(hands)
    print(f"{dict(client.done)}; {dict(hands.ended)}")
    judge(store)


def finish_all(hands: Hands) -> None:
    hands.calm = True
    hands.requeue()  # a service that was killed last starts once more, also where all that it ran was cancelled
    stuck_at = time.monotonic() + STUCK_AFTER
    while True:
        if not ask(hands.store, is_queued) and not hands.held:
            return
        assert time.monotonic() < stuck_at, "some evaluation never ends"
        before = hands.ended.total()
        hands.act()
        if hands.ended.total() > before:
            stuck_at = time.monotonic() + STUCK_AFTER


def judge(store: Store) -> None:
    with store.reading() as session:
        assert session.scalars(select(Task.id).where(Task.state.not_in(OVER))).all() == []
        assert session.scalars(select(Shard.id).where(Shard.state == "running")).all() == []
        assert session.scalars(select(Attempt.shard_id).where(Attempt.finished_at.is_(None))).all() == []
        twice = select(Attempt.shard_id).where(Attempt.outcome == "succeeded").group_by(Attempt.shard_id)
        assert session.scalars(twice.having(sa.func.count() > 1)).all() == [], "none that is finished runs again"
        for evaluation in session.scalars(select(Evaluation)):
            states = {task.state for task in evaluation.tasks}
            expected = states.pop() if len(states) == 1 else "partly_failed"
            assert evaluation.state == expected, f"evaluation {evaluation.id}"
            stages = {shard.state for task in evaluation.tasks for shard in task.shards}
            assert evaluation.state != "succeeded" or stages == {"succeeded"}
        measured = select(MetricValue.evaluation_id).join(Evaluation, Evaluation.id == MetricValue.evaluation_id)
        replaced = measured.join(Checkpoint).where(Checkpoint.replaced_at.is_not(None))
        assert session.scalars(replaced).all() == [], "no value is of a file that was replaced"
        newest = (
            select(sa.func.max(Evaluation.id))
            .join(Checkpoint)
            .where(Evaluation.state == "succeeded", Checkpoint.replaced_at.is_(None))
            .group_by(Evaluation.checkpoint_id, Evaluation.suite_digest)
        )
        measured = select(MetricValue.evaluation_id, MetricValue.value).where(MetricValue.import_id.is_(None))
        values = {row.evaluation_id: row.value for row in session.execute(measured)}
        assert values == {number: float(number) for number in session.scalars(newest)}, "every result is in the history"
