from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from evalsvc.errors import InvalidData
from evalsvc.language.rows import plain_rows, read_rows

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
        ("a.csv", b"a\n\xff\n", r"a\.csv is not UTF-8"),
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


def test_a_parquet_file_does_not_say_that_its_column_is_a_picture(tmp_path: Path) -> None:
    """`datasets` believes it, and a template that gets a picture can save it to any path."""
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict(
        {"image": [{"path": "/etc/hosts", "bytes": None}], "text": ["x"]}, features=features
    )
    rows.to_parquet(tmp_path / "a.parquet")
    assert b"huggingface" in pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata
    with pytest.raises(InvalidData, match=r"column 'image' holds neither text, numbers"):
        read_rows([tmp_path / "a.parquet"])
    strings = pyarrow.table({"image": ["/etc/hosts"]}).replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'}
    )
    pyarrow.parquet.write_table(strings, tmp_path / "b.parquet")
    assert read_rows([tmp_path / "b.parquet"]).to_list() == [{"image": "/etc/hosts"}]


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([b"x"]),
        pyarrow.array([0], pyarrow.timestamp("s")),
        pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        pyarrow.array([{"a": [b"x"]}]),
        pyarrow.array([1], pyarrow.decimal128(5)),
    ],
)
def test_columns_of_parquet_are_plain_json(tmp_path: Path, column: pyarrow.Array) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": column}), tmp_path / "a.parquet")
    with pytest.raises(
        InvalidData, match=r"a\.parquet(, column 'a' holds neither text| does not fit into columns of text)"
    ):
        read_rows([tmp_path / "a.parquet"])


def test_a_parquet_file_that_unpacks_to_more_than_fits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of one value takes a few bytes a million rows."""
    monkeypatch.setattr("evalsvc.language.rows.MAX_BYTES", 100_000)
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.nulls(1_000_000)}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    with pytest.raises(InvalidData, match=r"a\.parquet unpacks to more than 100,000 bytes"):
        read_rows([tmp_path / "a.parquet"])


def test_columns_of_a_dataset_that_are_no_json_are_left_out() -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "answers": {
                "text": datasets.List(datasets.Value("string")),
                "start": datasets.List(datasets.Value("int32")),
            },
            "image": datasets.Image(),
            "pages": datasets.List(datasets.Image()),
            "sound": {"a": datasets.Value("binary")},
            "day": datasets.Value("timestamp[s]"),
        }
    )
    rows = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    assert plain_rows(rows).column_names == ["text", "label", "answers"]


SECRET = "hunter2-of-somebody-else"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f'{{"a": 1}}\n{{"{SECRET}: x": 1}}\n'),
        ("a.jsonl", f'{{"a": 1}}\n{{"a": "{SECRET}"}}\n'),
        ("a.jsonl", f'{{"a": 1}}\n{SECRET}\n'),
        ("a.jsonl", f'{{"a": ["{SECRET}", 99999999999999999999]}}\n'),
        ("a.jsonl", f'{{"a": {{"{SECRET}!": 1}}}}\n{{"a": {{"{SECRET}!": "x"}}}}\n'),
        ("a.json", f"[{SECRET}]"),
        ("a.csv", f"a,b\n1,2\n{SECRET},3,4,5\n"),
        ("a.csv", f'a\n"{SECRET}\n'),
        ("a.parquet", SECRET),
    ],
)
def test_no_error_quotes_what_a_file_holds(tmp_path: Path, name: str, content: str) -> None:
    """The file may be somebody else's password, named in a suite to see what the error says."""
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidData) as error:
        read_rows([tmp_path / name])
    assert SECRET not in error.value.message
