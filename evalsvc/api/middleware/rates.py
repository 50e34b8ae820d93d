"""Rate limits as token buckets in memory, against a `stranger` who tries tokens."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable

from starlette.types import Scope

KEPT = 10_000
"""The most buckets. A further bucket drops the least recently used bucket, whose key starts with a full one again."""


class Rates:
    """A token bucket for each key, with `burst` requests and a refill of `rate` a second. A rate of 0 is no limit."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> int:
        """Take a request from a key's bucket; return 0, or the seconds until the bucket has a request, rounded up."""
        if self._rate <= 0:
            return 0
        now = self._clock()
        left, before = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - before) * self._rate)
        wait = 0 if left >= 1 else math.ceil((1 - left) / self._rate)
        # The dictionary is in the order of use.
        self._buckets[key] = (left if wait else left - 1, now)
        if len(self._buckets) > KEPT:
            del self._buckets[next(iter(self._buckets))]
        return wait


def client_key(scope: Scope) -> str:
    return address_key((scope.get("client") or ("unknown", 0))[0])


def address_key(host: str) -> str:
    """Return the key of an address: for IPv6 its network of 64 bits, whose addresses may all be of one machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
