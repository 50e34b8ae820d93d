"""The coordinator with real worker processes; what needs none of them is in `test_coordinator`."""

from pathlib import Path

import pytest
from laboratory import Laboratory


@pytest.mark.usefixtures("child_process")
def test_evaluations_on_workers_of_its_own(tmp_path: Path) -> None:
    """One runs on all workers, with progress, and another one kills them."""
    laboratory = Laboratory(tmp_path)
    try:
        coordinator = laboratory.start(max_attempts=2)
        seen: list[int] = []
        poisoned = laboratory.post("poisoned", shards=3, poison=1)
        evaluation = laboratory.post(shards=8, seconds=0.1)

        def ends(_: object) -> bool:
            seen.extend(live.done for live in coordinator.live().values() if live.per_second)
            return laboratory.is_over(evaluation)

        laboratory.wait_until(ends)
        assert laboratory.succeeds(evaluation)
        code, message = laboratory.failure(poisoned)
        assert code == "worker_died"
        assert "2 times (the last time, it was killed by signal 9 (SIGKILL))" in message
        assert laboratory.outcomes("poisoned")["worker_died"] == 2
        assert laboratory.outcomes() == {"succeeded": 8}
        assert set(laboratory.steps().values()) == {1}
        assert len({worker for *_, worker in laboratory.log()}) >= 2
        assert max(seen) > 0
        laboratory.wait_until(lambda _: coordinator.workers() == 2)
    finally:
        laboratory.close()


@pytest.mark.usefixtures("child_process")
def test_planning_that_never_ends_costs_its_worker_the_deadline_once(tmp_path: Path) -> None:
    """No thread of the worker gets a turn: it neither reports nor hears that it is cancelled."""
    laboratory = Laboratory(tmp_path)
    try:
        laboratory.start(devices="cpu", shard_deadline=240)
        stuck = laboratory.post("stuck", stuck=True)
        code, message = laboratory.failure(stuck)
        assert code == "deadline_exceeded"
        assert "EVALSVC_SHARD_DEADLINE" in message
        assert laboratory.succeeds(laboratory.post(shards=1))
    finally:
        laboratory.close()
