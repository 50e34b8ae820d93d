"""Outputs in files: whole or not at all, the same when they are read, and gone when nothing names them."""

import os
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from evalsvc.files.atomic import FileLost
from evalsvc.files.outputs import (
    LARGE,
    OutputFile,
    drop_output,
    drop_outputs,
    from_column,
    keep_output,
    read_output,
    sweep_outputs,
    to_column,
)

OUTPUT: bytes = msgpack.packb({"features": bytes(range(256)) * 1000, "n": [1, 2.5, None]})


def keep(folder: Path, output: bytes = OUTPUT, shard: int = 7, attempt: int = 2) -> OutputFile:
    file = keep_output(folder, output, task=3, shard=shard, attempt=attempt)
    assert isinstance(file, OutputFile)
    return file


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_large_output_is_a_file_of_its_attempt(tmp_path: Path) -> None:
    file = keep(tmp_path)
    assert files(tmp_path) == ["3/7-2"]
    assert read_output(tmp_path, file) == OUTPUT
    assert from_column(to_column(file)) == file
    keep(tmp_path, attempt=3)
    assert files(tmp_path) == ["3/7-2", "3/7-3"]


@pytest.mark.parametrize(
    "value", [None, {}, {"sum": 1.5}, dict.fromkeys("abcdefghijklmnopq"), {"bytes": bytes(60_000)}]
)
def test_a_small_one_stays_in_its_row(tmp_path: Path, value: object) -> None:
    """Its bytes are those that the task packed, and none of them is taken for the name of a file."""
    output: bytes = msgpack.packb(value)
    assert len(output) < LARGE
    assert keep_output(tmp_path, output, task=3, shard=7, attempt=2) is output
    assert to_column(output) is output
    assert from_column(output) is output
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "put",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(OUTPUT[:-1] + b"\0"),
        lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
        lambda path: path.symlink_to(path.parents[1] / "elsewhere"),
        os.mkfifo,
        os.mkdir,
    ],
)
def test_what_is_gone_or_changed_is_lost(tmp_path: Path, put: Callable[[Path], object]) -> None:
    """A pipe held a merge up for ever, and a sparse file of a terabyte took the worker's memory."""
    (tmp_path / "elsewhere").write_bytes(OUTPUT)
    file = keep(tmp_path)
    file.path(tmp_path).unlink()
    put(file.path(tmp_path))
    with pytest.raises(FileLost, match="3/7-2: "):
        read_output(tmp_path, file)


@pytest.mark.parametrize(
    "content", [b"\xc7", b"\xd4\x01\x01", msgpack.packb(msgpack.ExtType(1, msgpack.packb([1, 2])))]
)
def test_a_row_that_names_no_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="names no file of an output"):
        from_column(content)


def test_what_nothing_names_is_removed(tmp_path: Path) -> None:
    kept, other = keep(tmp_path), keep(tmp_path, shard=8)
    for orphan in ("3/9-1", "3/x.partial", "4/1-1"):
        (tmp_path / orphan).parent.mkdir(exist_ok=True)
        (tmp_path / orphan).touch()
    (tmp_path / "3" / "notes.txt").touch()
    assert sweep_outputs(tmp_path, {kept, other}) == 3
    assert files(tmp_path) == ["3/7-2", "3/8-2", "3/notes.txt"]
    drop_output(tmp_path, 3, 7, 2)
    drop_output(tmp_path, 3, 7, 99)
    assert files(tmp_path) == ["3/8-2", "3/notes.txt"]
    drop_outputs(tmp_path, 3)
    drop_outputs(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []
    assert sweep_outputs(tmp_path / "nowhere", ()) == 0
