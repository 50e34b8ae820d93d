"""Cursors: what a list gave is read back, and everything else is refused before the database sees a value."""

import base64
import json

import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.store.pages import MAX_CURSOR, PageRequest, page_of_names, read_cursor, write_cursor

QUESTION = ["checkpoints", {"run": "run-a"}]
KINDS = [int, str]
GIVEN = write_cursor(QUESTION, [25, "raw"])


def packed(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def test_a_cursor_is_read_back() -> None:
    for key in ([0, "raw"], [2**63 - 1, "ema_0.9999"], [7, "größe % _ ' \""], [7, "n" * 255]):
        cursor = write_cursor(QUESTION, key)
        assert read_cursor(cursor, QUESTION, KINDS) == key
        assert len(cursor) <= MAX_CURSOR
        assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


CHECKSUM = json.loads(base64.urlsafe_b64decode(GIVEN + "=="))[0]

FORGED = {
    "empty": "",
    "no base64": "é%_'; DROP TABLE runs",
    "unicode digits": "１２３",
    "no JSON": packed("x")[:-2],
    "a text": packed("run-a"),
    "an object": packed({"0": CHECKSUM}),
    "an empty list": packed([]),
    "truncated": GIVEN[:-3],
    "a letter changed": GIVEN[:20] + ("A" if GIVEN[20] != "A" else "B") + GIVEN[21:],
    "another key with its checksum": packed([CHECKSUM, 26, "raw"]),
    "more parts": packed([CHECKSUM, 25, "raw", 1]),
    "of another list": write_cursor(["evaluations", {"run": "run-a"}], [25, "raw"]),
    "of another run": write_cursor(["checkpoints", {"run": "run-b"}], [25, "raw"]),
    "a true number": write_cursor(QUESTION, [True, "raw"]),
    "a negative number": write_cursor(QUESTION, [-1, "raw"]),
    "65 bits": write_cursor(QUESTION, [2**64, "raw"]),
    "a text for a number": write_cursor(QUESTION, ["25", "raw"]),
    "a number for a text": write_cursor(QUESTION, [25, 0]),
    "NUL": write_cursor(QUESTION, [25, "ra\0w"]),
    "half a character": packed([CHECKSUM, 25, "\ud800"]),
    "nested": base64.urlsafe_b64encode(b"[" * 300).decode(),
    "digits": base64.urlsafe_b64encode(b"[" + b"9" * 300 + b"]").decode(),
    "long": "A" * 1_000_000,
}
"""Cursors that no list gave. The format has no secret, so some are what a client that knows the code could make."""


@pytest.mark.parametrize("cursor", FORGED.values(), ids=FORGED)
def test_a_forged_cursor_is_refused_and_says_what_to_do(cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="start again without `cursor`") as refusal:
        read_cursor(cursor, QUESTION, KINDS)
    assert len(refusal.value.message) < 400


def test_names_of_several_places_have_pages_too() -> None:
    names = {f"suite {number:02} größe" for number in range(25)}
    listed: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page, cursor = page_of_names(names, ["suites"], PageRequest(10, cursor))
        listed += page
    assert listed == sorted(names)
    assert cursor is None
