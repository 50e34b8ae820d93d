import logging
from pathlib import Path

import pytest

from evalsvc.tasks.kept_answers import FOLDER, find_answers, keep_answers

KEY = {"base": "ab" * 32, "asked": {"start": 0, "stop": 2}}
ANSWERS = {"answers": [[[-1.25, True, float("-inf"), False, 0.1, 3, False]], [["text", "text", False]]]}


def test_answers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    keep_answers(tmp_path, KEY, ANSWERS)
    assert find_answers(tmp_path, KEY) == ANSWERS
    assert find_answers(tmp_path, {**KEY, "base": "cd" * 32}) is None
    [file] = (tmp_path / FOLDER).iterdir()
    assert file.suffix == ".json"


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "folder"])
def test_a_damaged_file_is_none_and_is_written_anew(tmp_path: Path, damage: str) -> None:
    """A machine that went down in the middle of a write must not move the base's curve for ever."""
    keep_answers(tmp_path, KEY, ANSWERS)
    [file] = (tmp_path / FOLDER).iterdir()
    content = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"cut": content[:-9], "changed": content.replace(b"-1.25", b"-1.26"), "empty": b""}[damage])
    assert find_answers(tmp_path, KEY) is None
    if damage != "folder":
        keep_answers(tmp_path, KEY, ANSWERS)
        assert find_answers(tmp_path, KEY) == ANSWERS


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with caplog.at_level(logging.WARNING):
        keep_answers(tmp_path, KEY, ANSWERS)
    assert "the base's answers are not kept" in caplog.text
    assert find_answers(tmp_path, KEY) is None
