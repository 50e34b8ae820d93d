"""A part of the round that fails: how often it is tried, and what the log says."""

import logging
from asyncio import CancelledError
from itertools import pairwise

import pytest

from evalsvc.errors import DatabaseUnusable
from evalsvc.service import coordinator
from evalsvc.service.coordinator import RetriedCall


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(coordinator.time, "monotonic", lambda: self.now)


def test_what_fails_is_tried_again_later_each_time_and_at_once_when_it_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that was away for a second must not cost half a minute, nor one that is away a thousand tries."""
    clock, tries, broken = Clock(monkeypatch), [], True

    def do() -> None:
        tries.append(clock.now)
        if broken:
            raise RuntimeError

    call = RetriedCall("test", do, longest_wait=5)
    for _ in range(200):
        call.attempt()
        clock.now += 0.25
    assert [later - sooner for sooner, later in pairwise(tries)][:5] == [0.5, 1, 2, 4, 5]
    assert len(tries) < 15
    clock.now, broken = clock.now + 5, False
    assert call.attempt()
    assert call.attempt()
    broken = True
    assert not call.attempt()
    clock.now += 0.5
    assert not call.attempt()
    assert tries[-1] == clock.now


def test_a_cancelled_wait_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is no Exception, and a client whose loop ends raises it in the thread that waits for an answer."""

    def fail() -> None:
        raise CancelledError

    assert not RetriedCall("reach the cluster", fail, 5).attempt()
    assert "could not reach the cluster" in caplog.text


def test_what_is_expected_has_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("gone")

    RetriedCall("store", fail, 5, lambda error: DatabaseUnusable(f"the database is {error}")).attempt()
    RetriedCall("store", fail, 5).attempt()
    expected, surprise = caplog.records
    assert expected.getMessage() == "could not store: the database is gone; retrying in 0.5 s"
    assert (expected.levelno, expected.exc_info) == (logging.WARNING, None)
    assert surprise.exc_info is not None
