"""A coordinator whose workers are elsewhere, and of which one hangs."""

import time

import psutil
from laboratory import Laboratory, begun_on_two, just_begun
from machines import BUSY, GIVEN_UP_WITHIN, TTL, Machines


def test_a_stopped_worker_is_given_up_and_what_it_sends_late_is_not_stored(
    laboratory: Laboratory, machines: Machines
) -> None:
    """Stopped with its command, as a machine that hangs: nobody can kill it, and it goes on later."""
    coordinator = laboratory.start(worker_ttl=TTL, **machines.settings())
    workers = [machines.start_worker(), machines.start_worker()]
    [worker], command = workers[0].workers(), psutil.Process(workers[0].process.pid)
    evaluation = laboratory.post(shards=8, steps=8, seconds=0.25)
    begun_on_two(laboratory, shards=3)
    shard = just_begun(laboratory, worker.pid)
    stopped = time.monotonic()
    for process in (command, worker):
        process.suspend()
    try:
        laboratory.wait_until(lambda _: [index for index, *_ in laboratory.attempts()].count(shard) == 2)
        seconds = time.monotonic() - stopped
        print(f"a stopped worker was given up after {seconds:.1f} s")
        assert seconds < GIVEN_UP_WITHIN + BUSY
        assert coordinator.workers() == 1, "its slot does not count"
    finally:
        for process in (command, worker):
            if process.is_running():
                process.resume()
    assert laboratory.succeeds(evaluation)
    assert laboratory.outcomes() == {"succeeded": 8, "worker_died": 1}
    assert laboratory.history()[0].value == [64]
    laboratory.wait_until(lambda _: coordinator.workers() == 2)
