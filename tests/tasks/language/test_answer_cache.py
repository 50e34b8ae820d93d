import logging
import os
from pathlib import Path

import pytest

from evalsvc.files import kept
from evalsvc.files.kept import ANSWERS as FOLDER
from evalsvc.files.kept import KeptFolder
from evalsvc.tasks.language.answer_cache import Answers, find_answers, keep_answers

KEY = {"checkpoint": "ab" * 32, "encoding": {"bos": 1}}
ANSWERS: Answers = {
    "question": [(-1.25, True, float("-inf"), False, 0.1, 3, False, False)],
    "other": [("text", "text", False)],
}


def files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)


def test_answers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    keep_answers(KeptFolder(tmp_path), KEY, ANSWERS)
    assert find_answers(KeptFolder(tmp_path), KEY) == ANSWERS
    assert find_answers(KeptFolder(tmp_path), {**KEY, "checkpoint": "cd" * 32}) == {}
    [file] = (tmp_path / FOLDER).rglob("*.*")
    assert file.suffix == ".json"


def test_what_shards_kept_apart_is_found_together(tmp_path: Path) -> None:
    """Another suite cuts its documents elsewhere."""
    for name, answer in ANSWERS.items():
        keep_answers(KeptFolder(tmp_path), KEY, {name: answer})
    assert find_answers(KeptFolder(tmp_path), KEY) == ANSWERS
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "folder", "another's"])
def test_a_damaged_file_is_none_and_is_written_anew(tmp_path: Path, damage: str) -> None:
    """A machine that went down in the middle of a write must not move a curve for ever."""
    keep_answers(KeptFolder(tmp_path), KEY, ANSWERS)
    [file] = files(tmp_path)
    content = file.read_bytes()
    keep_answers(KeptFolder(tmp_path / "elsewhere"), {"checkpoint": ""}, ANSWERS)
    [other] = files(tmp_path / "elsewhere")
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        damaged = {"cut": content[:-9], "changed": content.replace(b"-1.25", b"-1.26"), "empty": b""}
        file.write_bytes((damaged | {"another's": other.read_bytes()})[damage])
    assert find_answers(KeptFolder(tmp_path), KEY) == {}
    if damage != "folder":
        keep_answers(KeptFolder(tmp_path), KEY, ANSWERS)
        assert find_answers(KeptFolder(tmp_path), KEY) == ANSWERS


def test_answers_of_another_shape_are_none(tmp_path: Path) -> None:
    """The checksum is right, and yet nothing could be made of them."""
    keep_answers(KeptFolder(tmp_path), KEY, {"question": [(-1.25, True)]})  # type: ignore[list-item]
    assert find_answers(KeptFolder(tmp_path), KEY) == {}


def test_those_that_were_not_used_for_longest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a thousand checkpoints must not fill the disk, and its base, which each of them needs, must stay."""
    keys = [{"checkpoint": str(number)} for number in range(4)]
    for age, key in enumerate(keys[:3]):
        keep_answers(KeptFolder(tmp_path), key, ANSWERS)
        newest = max(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1_000 + age, 1_000 + age))
    size = files(tmp_path)[0].stat().st_size
    assert find_answers(KeptFolder(tmp_path), keys[0]) == ANSWERS  # the base's, the oldest that was written
    monkeypatch.setattr(kept, "ANSWER_BYTES", 3 * size + 5)
    keep_answers(KeptFolder(tmp_path), keys[3], ANSWERS)
    assert [find_answers(KeptFolder(tmp_path), key) == ANSWERS for key in keys] == [True, False, True, True]
    assert len(list((tmp_path / FOLDER).iterdir())) == 3, "an empty folder goes with its last file"


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with caplog.at_level(logging.WARNING):
        keep_answers(KeptFolder(tmp_path), KEY, ANSWERS)
    assert "answers are not kept" in caplog.text
    assert find_answers(KeptFolder(tmp_path), KEY) == {}
