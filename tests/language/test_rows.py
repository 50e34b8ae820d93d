from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from evalsvc.errors import InvalidData
from evalsvc.language.rows import local_files, local_sources, read_rows

ROWS = [{"text": "a", "gold": 1}, {"text": "b", "gold": 2}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "a", "gold": 1}\n\n{"text": "b", "gold": 2}\n'),
        ("a.json", '[{"text": "a", "gold": 1}, {"text": "b", "gold": 2}]'),
        ("a.json", '{"text": "a", "gold": 1}\n{"text": "b", "gold": 2}'),
        ("a.csv", "text,gold\na,1\nb,2\n"),
        ("a.tsv", "text\tgold\na\t1\nb\t2\n"),
    ],
)
def test_all_formats_give_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    rows = read_rows([tmp_path / name])
    assert rows.to_list() == ROWS
    assert rows.cache_files == []  # in memory: no copy of it lies around to become stale


def test_parquet_and_several_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_rows([path, path]).to_list() == ROWS + ROWS


def test_missing_values_and_empty_lists_fit_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": null, "b": []}\n{"a": 1, "b": ["x"]}\n{"a": 2.5, "b": []}\n')
    assert read_rows([path]).to_list() == [{"a": None, "b": []}, {"a": 1.0, "b": ["x"]}, {"a": 2.5, "b": []}]


def test_words_that_pandas_takes_for_missing_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,other\nNA,\nNone,x\n")
    assert read_rows([tmp_path / "a.csv"]).to_list() == [{"text": "NA", "other": None}, {"text": "None", "other": "x"}]


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    assert len(read_rows([path])) == 1
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert len(read_rows([path])) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 2\n', r"a\.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[2]\n', r"a\.jsonl, line 2 is list; it must be an object"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "2"}\n', r"line 3: `a` is a string, in a row before it is a number"),
        ("a.jsonl", b'{"a": 1}\n{"a": true}\n', r"line 2: `a` is true or false, in a row before it is a number"),
        ("a.jsonl", b'{"a": ["x"]}\n{"a": ["y", 3]}\n', r"line 2: `a\[\]` is a number, in a row before it is a string"),
        ("a.jsonl", b'{"a": {"b": 1}}\n{"a": {"b": []}}\n', r"line 2: `a\.b` is a list, in a row before"),
        ("a.jsonl", b'{"a": 1, "b": 2}\n{"a": 1}\n', r"line 2 has no `b`, which line 1 has; give all rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "b": 2}\n', r"line 2 has `b`, which line 1 has not"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', r"line 1: `a` holds half of a surrogate pair"),
        ("a.jsonl", b'{"a": 99999999999999999999}\n', r"a\.jsonl does not fit into columns"),
        ("a.jsonl", b"\n", r"a\.jsonl holds no rows"),
        ("a.json", b'[{"a": 1}, 2]', r"row 2 is a number; it must be an object"),
        ("a.json", b'[{"a": 1}', r"a\.json is not valid JSON"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv is not a table.*line 3"),
        ("a.csv", b"", r"a\.csv is not a table"),
        ("a.csv", b"a\n\xff\n", r"a\.csv is not a table.*decode"),
        ("a.parquet", b"nothing", r"a\.parquet is not a parquet file"),
        ("a.txt", b"x", r"ends in '\.txt'; give a file that ends in"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Arrow's own errors name neither line nor key."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=message):
        read_rows([tmp_path / name])


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidData, match=r"does not exist|is a folder"):
        read_rows([tmp_path / name])


def test_files_with_other_columns_are_not_put_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"a": "x"}\n')
    with pytest.raises(InvalidData, match=r"a\.jsonl and the files after it differ in their columns"):
        read_rows([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])


@pytest.mark.parametrize(
    ("dataset", "options", "files"),
    [
        ("json", {"data_files": {"test": "/a", "train": ["/b", "/c"]}}, {"test": ["/a"], "train": ["/b", "/c"]}),
        ("csv", {"data_files": "/a", "trust_remote_code": True}, {"train": ["/a"]}),
        ("json", {"data_files": {"test": "/a*"}}, None),
        ("json", {"data_files": {"test": "https://x/a"}}, None),
        ("json", {"data_files": {"test": "/a"}, "field": "data"}, None),
        ("text", {"data_files": {"test": "/a"}}, None),
        ("someone/dataset", {"data_files": {"test": "/a"}}, None),
        ("json", {}, None),
    ],
)
def test_only_plain_local_files_are_read_here(dataset: str, options: dict[str, Any], files: Any) -> None:
    found = local_files(dataset, options)
    assert found == (files and {split: [Path(name) for name in names] for split, names in files.items()})


def test_sources_are_found_whoever_reads_them(tmp_path: Path) -> None:
    """What was loaded is kept in the process until one of them changes."""
    for name in ("a1", "a2"):
        (tmp_path / name).write_text("x")
    options = {"data_files": {"test": f"{tmp_path}/a*", "train": "/gone", "dev": "https://x/a"}, "field": "data"}
    assert local_sources("json", options) == [tmp_path / "a1", tmp_path / "a2", Path("/gone")]
    assert local_sources(str(tmp_path), {}) == [tmp_path]
