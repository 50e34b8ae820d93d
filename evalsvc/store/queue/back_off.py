"""The back-off of shards that failed by a transient error."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import uniform

from sqlalchemy import ColumnElement, or_

from evalsvc.store.tables import Shard, now

FIRST, FACTOR, LONGEST = 2.0, 4.0, 300.0
"""Seconds of the first back-off, the factor of each further one, and seconds at most."""

JITTER = 0.25
"""The random share by which a back-off is longer, so that shards that failed together are not retried together."""


def wait_until(failures: int) -> datetime:
    """Return the time of the next attempt after a number of failures in a row."""
    seconds = min(FIRST * FACTOR ** min(failures - 1, 10), LONGEST)
    return now() + timedelta(seconds=seconds * uniform(1, 1 + JITTER))


def is_due() -> ColumnElement[bool]:
    """Return the condition that a shard's back-off is over. A clock that was set back delays no shard by more than
    LONGEST."""
    time = now()
    longest_wait_from_now = time + timedelta(seconds=LONGEST * (1 + JITTER))
    return or_(Shard.not_before.is_(None), Shard.not_before <= time, Shard.not_before > longest_wait_from_now)
