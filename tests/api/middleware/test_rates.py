"""Token buckets."""

import pytest

from evalsvc.api.middleware import rates
from evalsvc.api.middleware.rates import Rates, address_key


def test_a_burst_and_then_the_rate() -> None:
    now = [0.0]
    buckets = Rates(2.0, 5, lambda: now[0])
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 1]
    now[0] = 1000.0
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 1], "a bucket holds no more than a burst"
    assert buckets.take("b") == 0, "others are not concerned"


def test_the_seconds_to_wait_are_enough() -> None:
    """A client that waits as it was told must not be told to wait again."""
    now = [0.0]
    buckets = Rates(0.3, 1, lambda: now[0])
    assert buckets.take("a") == 0
    for _ in range(20):
        wait = buckets.take("a")
        assert wait > 0
        now[0] += wait
        assert buckets.take("a") == 0


def test_no_rate_is_no_limit() -> None:
    buckets = Rates(0, 0)
    assert not any(buckets.take("a") for _ in range(1000))


def test_there_are_never_more_buckets_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an attacker of many addresses would fill the memory."""
    monkeypatch.setattr(rates, "KEPT", 3)
    buckets = Rates(1.0, 1, lambda: 0.0)
    assert [buckets.take(key) for key in "abc"] == [0, 0, 0]
    assert buckets.take("a") == 1
    assert buckets.take("d") == 0
    assert buckets.take("a") == 1, "it was used after b, which went"
    assert buckets.take("b") == 0
    assert len(buckets._buckets) == 3


@pytest.mark.parametrize(
    ("host", "key"),
    [("10.0.0.1", "10.0.0.1"), ("2001:db8::1", "2001:db8::/64"), ("testclient", "testclient")],
)
def test_addresses(host: str, key: str) -> None:
    assert address_key(host) == key
