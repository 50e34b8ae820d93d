"""A coordinator whose workers are elsewhere: killed, stopped, drained, out of memory, and without their scheduler."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from laboratory import BUSY, GIVEN_UP_WITHIN, TTL, Laboratory, begun_on_two, just_begun
from machines import Machines, term, wait_for

pytestmark = pytest.mark.usefixtures("child_process")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path / "machines", EVALSVC_WORKER_TTL=str(TTL), EVALSVC_GRACE="20")
    yield machines
    machines.stop()


@pytest.fixture
def laboratory(tmp_path: Path, machines: Machines) -> Iterator[Callable[..., Laboratory]]:
    started: list[Laboratory] = []

    def start(**settings: Any) -> Laboratory:
        started.append(Laboratory(tmp_path, machines, **settings))
        return started[-1]

    yield start
    for laboratory in started:
        laboratory.close()


@pytest.mark.parametrize("who", ["worker", pytest.param("nanny", marks=pytest.mark.long)])
def test_a_killed_worker_s_shard_starts_again_at_once_and_finished_ones_never(
    laboratory: Callable[..., Laboratory], machines: Machines, who: str
) -> None:
    world = laboratory()
    workers = [machines.start_worker(), machines.start_worker()]
    evaluation = world.post("killed", shards=8, steps=6, seconds=0.3)
    begun_on_two(world, "killed", shards=3)
    [victim], [nanny] = workers[0].workers(), workers[0].nannies()
    shard = just_begun(world, "killed", victim.pid)
    killed_at = datetime.now(UTC)
    (victim if who == "worker" else nanny).kill()
    assert world.wait(evaluation).state == "succeeded"
    attempts = world.attempts("killed")
    again = [start for index, _, start in attempts if index == shard]
    assert len(again) == 2
    seconds = (again[1] - killed_at).total_seconds()
    print(f"a killed {who}'s shard started again after {seconds:.2f} s")
    assert seconds < 2 + BUSY
    assert Counter(outcome for _, outcome, _ in attempts) == {"succeeded": 8, "worker_died": 1}
    assert {index for index, outcome, _ in attempts if outcome == "worker_died"} == {shard}
    assert world.value("killed") == [48]
    wait_for(lambda: world.coordinator.workers() == 2, "it has come back", 120)


def test_a_stopped_worker_is_given_up_and_what_it_sends_late_is_not_stored(
    laboratory: Callable[..., Laboratory], machines: Machines
) -> None:
    """Stopped with its nanny, as a machine that hangs: nobody can kill it, and it goes on later."""
    world = laboratory()
    workers = [machines.start_worker(), machines.start_worker()]
    evaluation = world.post("stopped", shards=8, steps=8, seconds=0.25)
    begun_on_two(world, "stopped", shards=3)
    [worker], [nanny] = workers[0].workers(), workers[0].nannies()
    shard = just_begun(world, "stopped", worker.pid)
    stopped = time.monotonic()
    for process in (nanny, worker):
        process.suspend()
    try:
        wait_for(lambda: len([i for i, _, _ in world.attempts("stopped") if i == shard]) == 2, "given up", 90)
        seconds = time.monotonic() - stopped
        print(f"a stopped worker was given up after {seconds:.1f} s")
        assert seconds < GIVEN_UP_WITHIN + BUSY
        assert world.coordinator.workers() == 1, "its slot does not count"
    finally:
        for process in (nanny, worker):
            if process.is_running():
                process.resume()
    assert world.wait(evaluation).state == "succeeded"
    attempts = world.attempts("stopped")
    assert Counter(outcome for _, outcome, _ in attempts) == {"succeeded": 8, "worker_died": 1}
    assert world.value("stopped") == [64]
    wait_for(lambda: world.coordinator.workers() == 2, "it serves again", 120)


@pytest.mark.long
def test_a_preempted_worker_costs_its_shard_nothing(laboratory: Callable[..., Laboratory], machines: Machines) -> None:
    world = laboratory()
    workers = [machines.start_worker(), machines.start_worker()]
    evaluation = world.post("drained", shards=6, steps=8, seconds=0.25)
    begun_on_two(world, "drained")
    [worker] = workers[0].workers()
    shard = just_begun(world, "drained", worker.pid)
    term(workers[0])
    assert workers[0].process.wait(timeout=120) == 0
    before = [index for index, _, process in world.log("drained") if process == worker.pid]
    assert world.wait(evaluation).state == "succeeded"
    attempts = world.attempts("drained")
    assert [outcome for index, outcome, _ in attempts if index == shard] == ["succeeded"]
    assert {outcome for _, outcome, _ in attempts} <= {"succeeded", "lost"}
    assert before == [index for index, _, process in world.log("drained") if process == worker.pid], "it got no other"
    assert world.failed_attempts() == 0
    assert set(Counter((index, step) for index, step, _ in world.log("drained")).values()) == {1}
    assert world.value("drained") == [48]


@pytest.mark.long
def test_a_killed_scheduler_is_replaced_in_mid_evaluation(
    laboratory: Callable[..., Laboratory], machines: Machines
) -> None:
    world = laboratory()
    machines.start_worker("--devices", "cpu,cpu", "--threads", "1")
    evaluation = world.post("scheduler", shards=6, steps=6, seconds=0.25)
    begun_on_two(world, "scheduler")
    machines.scheduler.process.kill()
    machines.scheduler.process.wait(timeout=20)
    wait_for(lambda: world.coordinator.workers() == 0, "it is noticed")
    machines.start_scheduler()
    assert world.wait(evaluation, 180).state == "succeeded"
    attempts = world.attempts("scheduler")
    assert {outcome for _, outcome, _ in attempts} == {"succeeded", "lost"}
    assert Counter(outcome for _, outcome, _ in attempts)["succeeded"] == 6
    assert world.failed_attempts() == 0
    assert world.value("scheduler") == [36]
    assert world.coordinator.alive()


@pytest.mark.long
def test_a_poisonous_shard_fails_with_the_cause_and_takes_nobody_along(
    laboratory: Callable[..., Laboratory], machines: Machines
) -> None:
    world = laboratory()
    machines.start_worker("--devices", "cpu,cpu", "--threads", "1")
    poisoned = world.post("poisoned", shards=3, steps=1, poison=1)
    innocent = world.post("innocent", shards=6, steps=4, seconds=0.25)
    assert world.wait(innocent, 240).state == "succeeded"
    failed = world.wait(poisoned, 240)
    assert failed.error is not None
    assert failed.error["code"] == "worker_died"
    message = failed.error["message"]
    how = "the last time, it was killed by signal 9 (SIGKILL)"
    assert message.startswith(
        f"the worker process died while it ran this shard, 3 times ({how}); look at the machine's"
    )
    assert {outcome for _, outcome, _ in world.attempts("innocent")} == {"succeeded"}
    assert [outcome for index, outcome, _ in world.attempts("poisoned") if index == 1] == ["worker_died"] * 3


def test_a_worker_out_of_memory_says_so_and_goes_on(laboratory: Callable[..., Laboratory], machines: Machines) -> None:
    world = laboratory(max_attempts=1)
    limit = 12_000_000_000
    worker = machines.start_worker(prefix=["prlimit", f"--as={limit}"])
    hungry = world.post("hungry", shards=1, steps=1, hoard=limit)
    modest = world.post("modest", shards=1, steps=1)
    failed = world.wait(hungry)
    assert failed.error is not None
    assert failed.error["code"] == "out_of_memory"
    assert failed.error["message"].startswith("the worker ran out of memory; lower EVALSVC_BATCH_TOKENS")
    assert world.wait(modest).state == "succeeded"
    [process] = worker.workers()
    assert psutil.pid_exists(process.pid)
    assert "was lost" not in worker.log.read_text()


@pytest.mark.long
def test_checkpoints_stay_on_the_workers_that_have_them(
    laboratory: Callable[..., Laboratory], machines: Machines
) -> None:
    """Two runs on two workers: by turns, each worker loaded both checkpoints again and again."""
    world = laboratory()
    machines.start_worker("--devices", "cpu,cpu", "--threads", "1")
    wait_for(lambda: world.coordinator.workers() == 2, "two workers")
    evaluations = [world.post(name, shards=6, steps=2, seconds=0.2) for name in ("left", "right")]
    assert [world.wait(evaluation).state for evaluation in evaluations] == ["succeeded"] * 2
    first_to_end = min(len(world.log("left")), len(world.log("right")))
    for name in ("left", "right"):
        places = Counter(process for _, _, process in world.log(name)[: first_to_end - 4])
        assert max(places.values()) >= 0.6 * places.total(), (world.log("left"), world.log("right"))


@pytest.mark.long
def test_two_services_with_a_scheduler_each_do_not_disturb_each_other(
    laboratory: Callable[..., Laboratory], machines: Machines, tmp_path: Path
) -> None:
    other_machines = Machines(tmp_path / "other-machines")
    other = None
    try:
        world, other = laboratory(), Laboratory(tmp_path / "other", other_machines)
        for cluster in (machines, other_machines):
            cluster.start_worker()
        shaken = world.post("shaken", shards=3, steps=4, seconds=0.25)
        calm = other.post("calm", shards=3, steps=8, seconds=0.25)
        wait_for(lambda: world.log("shaken") and other.log("calm"), "both work", 120)
        machines.scheduler.process.kill()
        machines.scheduler.process.wait(timeout=20)
        assert other.wait(calm).state == "succeeded"
        assert {outcome for _, outcome, _ in other.attempts("calm")} == {"succeeded"}
        machines.start_scheduler()
        assert world.wait(shaken, 180).state == "succeeded"
    finally:
        if other is not None:
            other.close()
        other_machines.stop()
