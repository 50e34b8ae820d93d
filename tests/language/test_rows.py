from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from benchmark_files import KINDS, write_benchmark, write_rows
from loaded_benchmarks import load_one

from evalsvc.errors import InvalidData
from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.rows import TEXT_TASKS, foundry_columns, plain_rows, read_rows

ROWS = [{"text": "a", "gold": 1}, {"text": "b", "gold": 2}]
COLUMNS = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}

FOUNDRY = [{"query": f"Question: Which {n}?\n", "choices": ["ab", "c"], "gold": n} for n in range(2)]
ARC = [
    {"question": f"Which {n}?", "choices": {"text": ["ab", "c"], "label": ["A", "B"]}, "answerKey": "AB"[n]}
    for n in range(2)
]
SCHEMA = [{"context_options": ["So Ann", "So Bob"], "continuation": "won.", "gold": n} for n in range(2)]
WINOGRANDE = [
    {"sentence": "Ann beat Bob so _ won.", "option1": "Ann", "option2": "Bob", "answer": str(n + 1)} for n in range(2)
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "a", "gold": 1}\n\n{"text": "b", "gold": 2}\n'),
        ("a.json", '[{"text": "a", "gold": 1}, {"text": "b", "gold": 2}]'),
        ("a.json", '{"text": "a", "gold": 1}\n{"text": "b", "gold": 2}'),
        ("a.csv", "text,gold\na,1\nb,2\n"),
        ("a.tsv", "text\tgold\na\t1\nb\t2\n"),
        ("a.parquet", ""),
    ],
)
def test_all_formats_give_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    if not content:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    rows = read_rows([path])
    assert rows.to_list() == ROWS
    assert rows.cache_files == []  # in memory: no copy of it lies around to become stale
    assert read_rows([path, path]).to_list() == ROWS + ROWS


def test_missing_values_and_empty_lists_fit_anything(tmp_path: Path) -> None:
    """A file that is written anew is read anew. Words that pandas takes for missing values are words."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    assert len(read_rows([path])) == 1
    path.write_text('{"a": null, "b": []}\n{"a": 1, "b": ["x"]}\n{"a": 2.5, "b": []}\n')
    assert read_rows([path]).to_list() == [{"a": None, "b": []}, {"a": 1.0, "b": ["x"]}, {"a": 2.5, "b": []}]
    (tmp_path / "a.csv").write_text("text,other\nNA,\nNone,x\n")
    assert read_rows([tmp_path / "a.csv"]).to_list() == [{"text": "NA", "other": None}, {"text": "None", "other": "x"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 2\n', r"a\.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[2]\n', r"a\.jsonl, line 2 is list; it must be an object"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "2"}\n', r"line 3: `a` is a string, but in an earlier row it is a number"),
        ("a.jsonl", b'{"a": 1}\n{"a": true}\n', r"line 2: `a` is true or false, but in an earlier row it is a number"),
        ("a.jsonl", b'{"a": ["x"]}\n{"a": ["y", 3]}\n', r"line 2: `a\[\]` is a number, but in an earlier row"),
        ("a.jsonl", b'{"a": {"b": 1}}\n{"a": {"b": []}}\n', r"line 2: `a\.b` is a list, but in an earlier row"),
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
        ("missing.jsonl", None, r"does not exist|is a folder"),
        (".", None, r"does not exist|is a folder"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """Arrow's own errors name neither line nor key."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=message):
        read_rows([tmp_path / name])
    for file, text in (("b.jsonl", '{"a": 1}\n'), ("c.jsonl", '{"a": "x"}\n')):
        (tmp_path / file).write_text(text)
    with pytest.raises(InvalidData, match=r"b\.jsonl and the files after it differ in their columns"):
        read_rows([tmp_path / "b.jsonl", tmp_path / "c.jsonl"])


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
    message = r"a\.parquet(, column 'a' holds neither text| does not fit into columns of text)"
    with pytest.raises(InvalidData, match=message):
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
    text, numbers = datasets.Value("string"), datasets.List(datasets.Value("int32"))
    plain = {"text": text, "label": datasets.ClassLabel(names=["no", "yes"])}
    plain |= {"answers": {"text": datasets.List(text), "start": numbers}}
    others = {"image": datasets.Image(), "pages": datasets.List(datasets.Image())}
    others |= {"sound": {"a": datasets.Value("binary")}, "day": datasets.Value("timestamp[s]")}
    features = datasets.Features(plain | others)
    rows = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    assert plain_rows(rows).column_names == [*plain]


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


def load_rows(tmp_path: Path, name: str, rows: list[dict[str, Any]], **fields: Any) -> Benchmark:
    return load_one(tmp_path, name, data=str(write_rows(tmp_path / "rows.jsonl", rows)), **fields)


@pytest.mark.parametrize(
    ("name", "rows", "form", "context"),
    [
        ("arc_easy", FOUNDRY, "llm-foundry", "Question: Which 0?\nAnswer:"),
        ("arc_easy", ARC, "lm-eval", "Question: Which 0?\nAnswer:"),
        ("winogrande", SCHEMA, "llm-foundry", "So Ann"),
        ("winogrande", WINOGRANDE, "lm-eval", "Ann beat Bob so Ann"),
        ("mmlu", FOUNDRY, "llm-foundry", "Question: Which 0?\nAnswer:"),
        ("winograd_wsc", SCHEMA, "llm-foundry", "So Ann"),
    ],
)
def test_the_columns_say_whose_rows_they_are(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], form: str, context: str
) -> None:
    found = load_rows(tmp_path, name, rows)
    assert (found.name, found.form) == (name, form)
    assert found.instances[0].args[0] == context


def test_rows_of_llm_foundry_are_asked_as_by_its_definition(tmp_path: Path) -> None:
    """A folder in `include_path` goes first, and leaves no doubt."""
    found = load_rows(tmp_path, "arc_easy", FOUNDRY)
    named = load_one(TEXT_TASKS, "arc_easy", data=str(tmp_path / "rows.jsonl"))
    assert found.digest == named.digest
    assert (found.form, named.form) == ("llm-foundry", None)


def test_every_benchmark_that_ships_has_its_columns() -> None:
    assert foundry_columns()["arc_easy"] == {"query", "choices", "gold"}
    assert foundry_columns()["lambada_openai"] == foundry_columns()["jeopardy_all"] == {"context", "continuation"}
    assert foundry_columns()["winogrande"] == {"context_options", "continuation", "gold"}
    assert len(foundry_columns()) == len(list(TEXT_TASKS.glob("[!_]*.yaml")))


@pytest.mark.parametrize(
    ("name", "rows", "column"),
    [
        ("arc_easy", [{"qury": "Which?", "choices": ["ab", "c"], "gold": 0}], "'question'"),
        ("winogrande", [{"text": "Ann won.", "gold": 0}], "'(answer|sentence|option1)'"),
        ("winograd_wsc", [{"context": "So Ann", "gold": 0}], "'(context_options|continuation)'"),
        ("sciq", [{"a": "b"}], r"'\w+'"),
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, name: str, rows: list[dict[str, Any]], column: str) -> None:
    """The message once was "document 0: 'goal' is undefined", without file and columns."""
    with pytest.raises(InvalidData) as caught:
        load_rows(tmp_path, name, rows)
    known = ", ".join(map(repr, sorted(foundry_columns().get(name, ()))))
    pattern = (
        rf"benchmark '{name}': {tmp_path}/rows.jsonl, row 1 has no column {column}, which .*; the row has "
        rf"{', '.join(map(repr, rows[0]))}; {f'llm-foundry.s rows have {known}; ' if known else ''}rename the columns"
    )
    assert caught.match(pattern)
    assert "Ann" not in caught.value.message, "values are not quoted"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"doc_to_text": "quary"}, "'quary', which `doc_to_text` names; did you mean 'query'"),
        ({"doc_to_choice": "chioces"}, "'chioces', which `doc_to_choice` names; did you mean 'choices'"),
        ({"doc_to_target": "glod"}, "'glod', which `doc_to_target` names; did you mean 'gold'"),
        ({**KINDS["free"], "doc_to_target": "answer"}, "'answer', which `doc_to_target` names; the row has"),
        (
            {"fewshot_config": {"doc_to_text": "quary"}, "num_fewshot": 1, "fewshot_split": "test"},
            "'quary', which `fewshot_config.doc_to_text` names",
        ),
    ],
)
def test_a_word_that_is_no_column_is_not_asked_as_a_text(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    """lm-eval takes it literally: every question was the word "quary", and the accuracy 0.2."""
    write_benchmark(tmp_path, "code", FOUNDRY, **(COLUMNS | changes))
    with pytest.raises(InvalidData) as caught:
        load_one(tmp_path, "code")
    assert caught.value.message.startswith(f"benchmark 'code': {tmp_path}/code.jsonl, row 1 has no column {named}")
    assert "the row has 'query', 'choices', 'gold'" in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {**KINDS["word"], "doc_to_text": "", "doc_to_target": "query"},
        {**KINDS["text"], "doc_to_text": "", "doc_to_target": "query"},
        {"doc_to_choice": ["yes", "no"], "doc_to_target": "yes"},
        {"doc_to_choice": {"a": "yes", "b": "no"}, "doc_to_target": "no"},
        {"doc_to_text": "", "description": "Which of these is true?"},
        {**KINDS["free"], "doc_to_target": "{{'yes'}}"},
    ],
)
def test_texts_that_lm_evals_files_write_out_are_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_benchmark(tmp_path, "code", FOUNDRY, **(COLUMNS | changes))
    assert len(load_one(tmp_path, "code").documents) == 2


@pytest.mark.parametrize("text", ["the query:", "{{'query'}}", "{{ quary | default('x') }}", "language"])
def test_questions_that_are_all_the_same_are_refused(tmp_path: Path, text: str) -> None:
    write_benchmark(tmp_path, "code", [row | {"language": "English"} for row in FOUNDRY], doc_to_text=text)
    with pytest.raises(InvalidData, match=r"benchmark 'code': the question is the same text in 2 documents; .*"):
        load_one(tmp_path, "code", limit=1)


@pytest.mark.parametrize(
    ("name", "rows", "fields", "message"),
    [
        # Whoever gives the rows chooses how many columns there are: a message of five megabytes was stored.
        ("arc_easy", [{f"c{n}": 1 for n in range(1000)}], {}, "has 'c0', .*, 'c19' and 980 more; llm-foundry's rows"),
        ("arc_easy", [{**FOUNDRY[0], "gold": 7}], {}, "benchmark 'arc_easy', document 0"),
        ("arc_easy", FOUNDRY[:1], {"num_fewshot": 3}, "3 solved examples are requested"),
        ("own", [{"a": "x", "b": " y"}], {}, "a template is not valid"),
    ],
)
def test_what_is_no_missing_column_keeps_its_message(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], fields: dict[str, Any], message: str
) -> None:
    write_benchmark(tmp_path, "own", **KINDS["word"] | {"doc_to_text": "{{a", "doc_to_target": "b"})
    with pytest.raises(InvalidData, match=message):
        load_rows(tmp_path, name, rows, **fields)
