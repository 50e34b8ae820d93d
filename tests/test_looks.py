"""When a task is looked at, and when it has seen enough."""

from typing import Any

import pytest

from evalsvc.looks import FEWEST_UNITS, MOST, Until, schedule


@pytest.mark.parametrize(
    ("units", "before", "looks"),
    [
        ([256] * 16, 0, ((1, 256), (2, 512), (4, 1024), (8, 2048), (16, 4096))),
        ([400, *[256] * 4], 1, ((2, 256), (3, 512), (5, 1024))),
        ([128, 128], 0, ((2, 256),)),
        ([1000], 0, ((1, 1000),)),
        ([300, 300, 300, 100], 0, ((1, 300), (2, 600), (4, 1000))),
        ([7] * 3, 1, ((3, 14),)),
        ([], 0, ()),
        ([5], 1, ()),
    ],
)
def test_each_look_has_twice_the_units_of_the_one_before(
    units: list[int], before: int, looks: tuple[tuple[int, int], ...]
) -> None:
    assert schedule(units, before) == looks


def test_there_are_few_looks_at_many_images() -> None:
    looks = schedule([256] * 117 + [48])
    assert len(looks) == MOST
    assert [units for _, units in looks] == [256, 512, 1024, 2048, 3840, 7680, 15104, 30000]
    assert looks[-1] == (118, 30000)
    assert len(schedule([FEWEST_UNITS] * 5000)) == MOST


class TestUntil:
    def metric(self, name: str, stderr: Any) -> dict[str, Any]:
        return {"name": name, "stderr": stderr}

    @pytest.mark.parametrize(
        ("errors", "enough"),
        [([0.001], True), ([0.0011], False), ([None], False), (["NaN"], False), ([], False), ([0.001, 0.002], False)],
    )
    def test_the_error_of_the_named_metric(self, errors: list[Any], enough: bool) -> None:
        """An error that is not known, or not finite, is not a small one."""
        metrics = [self.metric("coco/fid", 1e-9), *(self.metric("coco/kid", error) for error in errors)]
        reason = Until(stderr=0.001, metric="kid").reached(metrics)
        assert (reason == "the standard error of kid, 0.001, is at most 0.001") is enough
        assert (reason is None) is not enough
