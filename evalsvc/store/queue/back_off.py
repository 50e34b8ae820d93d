"""How long a shard waits that failed by what may pass, and when that wait is over."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import uniform

from sqlalchemy import ColumnElement, or_

from evalsvc.store.tables import Shard, now

FIRST, FACTOR, LONGEST = 2.0, 4.0, 300.0
"""Seconds after the first failure, how many times longer each further wait is, and seconds at most."""

JITTER = 0.25
"""Up to this share longer, so that what failed together is not tried together again."""


def wait_until(failures: int) -> datetime:
    """When to try again after so many failures in a row."""
    seconds = min(FIRST * FACTOR ** min(failures - 1, 10), LONGEST)
    return now() + timedelta(seconds=seconds * uniform(1, 1 + JITTER))


def is_due() -> ColumnElement[bool]:
    """The condition that a shard need not wait now. A clock that was set back makes none wait longer than LONGEST."""
    time = now()
    longest_wait_from_now = time + timedelta(seconds=LONGEST * (1 + JITTER))
    return or_(Shard.not_before.is_(None), Shard.not_before <= time, Shard.not_before > longest_wait_from_now)
