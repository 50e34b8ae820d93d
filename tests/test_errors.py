"""What errors say of names, which come from requests."""

import difflib
import random
import string
import time
from collections.abc import Sequence
from typing import Any

import pytest

from evalsvc.errors import MAX_CLOSELY, MAX_COMPARED, DataChanged, UnknownName, near_misses, os_reason


def drawn_names(number: int, length: int) -> list[str]:
    own = random.Random(length)
    return ["".join(own.choices(string.ascii_lowercase, k=length)) for _ in range(number)]


@pytest.mark.parametrize("length", [4, 12, 40, 100])
def test_a_misspelt_name_is_found_among_many(length: int) -> None:
    names = drawn_names(400, length)
    for name in (names[7], names[399]):
        misspelt = name[: length // 2] + name[length // 2 + 1 :]
        assert near_misses(misspelt, names)[0] == name


def test_a_search_for_near_misses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """45 requests for a metric that was not there, beside 200 long names, held up the service for seconds."""
    compared: list[str] = []
    close = difflib.get_close_matches

    def note(name: str, known: Sequence[str], **options: Any) -> list[str]:
        compared.extend((name, *known))
        return close(name, known, **options)

    monkeypatch.setattr(difflib, "get_close_matches", note)
    names = [f"{'ab' * 40}{number}" for number in range(50_000)] + drawn_names(10, 256)
    begun = time.monotonic()
    UnknownName.among("metric", "ab" * 40, names)
    assert len(compared) == 1 + MAX_CLOSELY
    assert max(map(len, compared)) <= MAX_COMPARED
    compared.clear()
    UnknownName.among("metric", "x" * 60_000, names)
    assert compared == []
    assert time.monotonic() - begun < 5


def test_a_long_name_leaves_room_for_what_to_do() -> None:
    message = UnknownName.among("metric", "x" * 60_000, ["y" * 250] * 30, "measure it first").message
    assert len(message) < 4000
    assert message.startswith("no metric is named 'xxx")
    assert message.endswith("and 10 more; measure it first")


def test_the_reason_of_the_operating_system_is_shown_without_number_and_path() -> None:
    assert os_reason(FileNotFoundError(2, "No such file or directory", "/runs/a.pt")) == "no such file or directory"
    assert os_reason(OSError("Timed out")) == "timed out"


def test_what_has_changed_since_the_plan_is_evaluated_again() -> None:
    end = "has changed since this evaluation was planned"
    assert DataChanged.since_planned("a.jsonl").message == f"a.jsonl {end}; evaluate again"
    assert DataChanged.since_planned("it", "YAML or data").message == f"it {end} (YAML or data); evaluate again"


def test_a_long_list_does_not_bury_the_similar_names() -> None:
    names = [f"pairs/metric_{number}" for number in range(30)]
    message = UnknownName.among("metric", "pairs/metrik_7", names, "measure it").message
    assert message.startswith("no metric is named 'pairs/metrik_7'; did you mean 'pairs/metric_7' or ")
    assert message.endswith("'? measure it")
    assert len(message) < 160
    assert UnknownName.among("metric", "x", []).message == "no metric is named 'x'; there is no metric yet"
    assert UnknownName.among("run", "pretraned", ["pretrained"]).message.endswith("'pretrained'? available: pretrained")
