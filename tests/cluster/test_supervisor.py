"""When what has ended is started again."""

import pytest

from evalsvc.cluster.supervisor import LONGEST_WAIT, STEADY, Backoff


def test_what_keeps_ending_is_started_less_often_and_what_was_steady_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("evalsvc.cluster.supervisor.time.monotonic", lambda: now)
    backoff = Backoff()
    waits = []
    for _ in range(7):
        backoff.started()
        now += 1
        waits.append(backoff.wait())
    assert waits == [0.5, 1, 2, 4, 8, LONGEST_WAIT, LONGEST_WAIT]
    backoff.started()
    now += STEADY + 1
    assert backoff.wait() == 0.5
