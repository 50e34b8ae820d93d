"""The history by commit: one entry for a commit and suite, and a file that is whole or unchanged."""

from pathlib import Path

import pytest
from example_documents import example
from harness import history
from harness.document import Ratio
from harness.history import Entry, Value, append, of_suite, read_history

from evalsvc.errors import InvalidData


def entry(commit: str, ratio: float = 1.0, suite: str = "quick", against: str = "base") -> Entry:
    value = Value(value=1.75, stderr=0.02, n=300, unit="nats/token", direction="lower", protocol="p")
    return Entry(
        commit=commit,
        time="2026-11-28T04:31:00+00:00",
        suite=suite,
        baseline_code=against,
        processor="processor",
        ratios={"speed-loss": Ratio(median=ratio, mean=ratio, low=ratio - 0.1, high=ratio + 0.1, level=0.95, turns=12)},
        values={"pairs/image": value},
    )


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    append(path, entry("a"))
    assert append(path, entry("b", 1.1)) == read_history(path) == [entry("a"), entry("b", 1.1)]
    assert len(path.read_text().splitlines()) == 2


def test_a_commit_that_is_measured_again_replaces_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for each in (entry("a"), entry("a", suite="full"), entry("a", 1.2)):
        append(path, each)
    assert read_history(path) == [entry("a", suite="full"), entry("a", 1.2)]


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST", 2)
    for commit in "abc":
        append(tmp_path / "history.jsonl", entry(commit))
    assert [each.commit for each in read_history(tmp_path / "history.jsonl")] == ["b", "c"]


@pytest.mark.parametrize("line", ["[]", "{}", "{", "[" * 10_000, '{"commit": 3}', "\x00"])
def test_a_broken_line_is_named_and_nothing_is_written(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    append(path, entry("a"))
    path.write_text(f"{path.read_text()}{line}\n")
    before = path.read_bytes()
    with pytest.raises(InvalidData, match="line 2 is no entry"):
        append(path, entry("b"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 10)
    (tmp_path / "history.jsonl").write_text("{}" * 10)
    with pytest.raises(InvalidData, match="more than 10 bytes"):
        read_history(tmp_path / "history.jsonl")


def test_ratios_against_other_code_are_not_drawn_with_the_newest() -> None:
    entries = [entry("a", against="old"), entry("b"), entry("c", suite="full"), entry("d")]
    chosen = of_suite(entries, "quick")
    assert [each.commit for each in chosen] == ["a", "b", "d"]
    assert [bool(each.ratios) for each in chosen] == [False, True, True]
    assert all(each.values for each in chosen)


def test_every_field_of_an_entry_has_an_example() -> None:
    example(Entry)
