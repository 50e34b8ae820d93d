"""The back-off of shards that failed with a transient error."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import uniform

from sqlalchemy import ColumnElement, or_

from evalsvc.store.tables import Shard, now

FIRST, FACTOR, LONGEST = 2.0, 4.0, 300.0
"""Seconds of the first back-off, the growth factor of further back-offs, and the most seconds."""

JITTER = 0.25
"""The largest random extension of a back-off, as a share. Shards that failed together are not retried together."""


def wait_until(failures: int) -> datetime:
    """Return the time of the next attempt after this number of consecutive failures."""
    seconds = min(FIRST * FACTOR ** min(failures - 1, 10), LONGEST)
    return now() + timedelta(seconds=seconds * uniform(1, 1 + JITTER))


def is_due() -> ColumnElement[bool]:
    """Return the condition that a shard's back-off is over, or longer than possible after the clock was set back."""
    time = now()
    longest_wait_from_now = time + timedelta(seconds=LONGEST * (1 + JITTER))
    return or_(Shard.not_before.is_(None), Shard.not_before <= time, Shard.not_before > longest_wait_from_now)
