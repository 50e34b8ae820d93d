import pytest
from prepare.refusals import Refusal, count_reasons

from evalsvc.errors import InvalidData


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("/data/a.png is 1×5, which is too small; give at least 2×2 pixels", "it is 1×5, which is too small"),
        ("the data file /data/a.png has more than 9 bytes; give a smaller file", "it has more than 9 bytes"),
        (
            "the image /data/a.png does not exist or cannot be read; check the path",
            "it does not exist or cannot be read",
        ),
        (
            "'/data/a.png' is outside the folders (/x, and `datasets:`) or links; move it",
            "it is outside the folders or links",
        ),
    ],
)
def test_reasons_have_no_paths_and_no_advice(message: str, reason: str) -> None:
    """The same data give the same file of refusals on every machine."""
    assert Refusal.of_error("a.png", InvalidData(message), "/data/a.png") == Refusal("a.png", reason)


def test_reasons_are_counted_without_their_numbers() -> None:
    reasons = ["it is 1×5, which is too small", "it is 3×1, which is too small", "it has 2 frames", "a", "a", "a"]
    counts = count_reasons(Refusal(str(number), reason) for number, reason in enumerate(reasons))
    assert list(counts.items()) == [("a", 3), ("it is …, which is too small", 2), ("it has … frames", 1)]
