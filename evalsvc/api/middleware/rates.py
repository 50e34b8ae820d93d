"""How often somebody may ask: token buckets, in memory."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable

KEPT = 10_000
"""Buckets that are kept. One more, and the one that was used longest ago begins full again."""


class Rates:
    """A bucket per key, which holds `burst` requests and gets `rate` a second back. A rate of 0 is no limit."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> int:
        """Take one request out of the key's bucket: 0, or the seconds until there will be one, rounded up."""
        if self._rate <= 0:
            return 0
        now = self._clock()
        left, before = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - before) * self._rate)
        wait = 0 if left >= 1 else math.ceil((1 - left) / self._rate)
        # Put at the end, so the dictionary is in the order of use.
        self._buckets[key] = (left if wait else left - 1, now)
        if len(self._buckets) > KEPT:
            del self._buckets[next(iter(self._buckets))]
        return wait


def address_key(host: str) -> str:
    """An address as a bucket has it: of IPv6 the network, since one machine has all of its addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
