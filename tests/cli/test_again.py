"""Which checkpoints are evaluated again."""

import pytest

from evalsvc.cli.again import Selection, parse_selection
from evalsvc.errors import InvalidRequest


@pytest.mark.parametrize(
    ("name", "selection"),
    [
        ("run-a", Selection("run-a", "raw", None, None, 1)),
        ("run-a:ema", Selection("run-a", "ema", None, None, 1)),
        ("run-a@7", Selection("run-a", "raw", 7, 7, 1)),
        ("run-a@7..9", Selection("run-a", "raw", 7, 9, 1)),
        ("run-a@0..900/100:ema_0.9", Selection("run-a", "ema_0.9", 0, 900, 100)),
    ],
)
def test_names_of_checkpoints(name: str, selection: Selection) -> None:
    assert parse_selection(name) == selection


@pytest.mark.parametrize(
    "name", ["", "@5", "run-a@", "run-a@5..", "run-a@-1..5", "run-a@5/2", "run a", "run-a@1..2..3", "$(id)"]
)
def test_other_forms_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="names no checkpoints"):
        parse_selection(name)
