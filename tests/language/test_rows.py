"""Rows of benchmarks from any file or from the hub are JSON, and what is wrong with them is told as a user's error."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from benchmark_files import KINDS, questions, write_benchmark, write_rows
from http_pages import fake_hub
from loaded_benchmarks import load_one

from evalsvc.errors import AssetMissing, InvalidData
from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.hub import Source, cached, fetch, offline, quiet
from evalsvc.language.rows import TEXT_TASKS, foundry_columns, plain_rows, read_rows

Rows = list[dict[str, Any]]
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
        ("a.jsonl", b'{"a": 1}\n{"a": hunter2\n', r"a\.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[2]\n', r"a\.jsonl, line 2 is list; it must be an object"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "hunter2"}\n', r"line 3: `a` is a string, but in an earlier row"),
        ("a.jsonl", b'{"a": 1}\n{"a": true}\n', r"line 2: `a` is true or false, but in an earlier row it is a number"),
        ("a.jsonl", b'{"a": 1}\n{"hunter2: x": 1}\n', r"line 2 has `…`, which line 1 has not|line 2 has no `a`"),
        ("a.jsonl", b'{"a": {"hunter2!": 1}}\n{"a": {"hunter2!": "x"}}\n', r"line 2: `a\.…` is a string"),
        ("a.jsonl", b'{"a": ["x"]}\n{"a": ["y", 3]}\n', r"line 2: `a\[\]` is a number, but in an earlier row"),
        ("a.jsonl", b'{"a": {"b": 1}}\n{"a": {"b": []}}\n', r"line 2: `a\.b` is a list, but in an earlier row"),
        ("a.jsonl", b'{"a": 1, "b": 2}\n{"a": 1}\n', r"line 2 has no `b`, which line 1 has; give all rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "b": 2}\n', r"line 2 has `b`, which line 1 has not"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', r"line 1: `a` holds half of a surrogate pair"),
        ("a.jsonl", b'{"a": 99999999999999999999}\n', r"a\.jsonl does not fit into columns"),
        ("a.jsonl", b"\n", r"a\.jsonl holds no rows"),
        ("a.json", b'[{"a": 1}, 2]', r"row 2 is a number; it must be an object"),
        ("a.json", b"[hunter2]", r"a\.json is not valid JSON"),
        ("a.csv", b"a,b\n1,2\nhunter2,2,3\n", r"a\.csv is not a table.*line 3"),
        ("a.csv", b'a\n"hunter2\n', r"a\.csv is not a table"),
        ("a.csv", b"", r"a\.csv is not a table"),
        ("a.csv", b"a\n\xff\n", r"a\.csv is not UTF-8"),
        ("a.parquet", b"hunter2", r"a\.parquet is not a parquet file"),
        ("a.txt", b"x", r"ends in '\.txt'; give a file that ends in"),
        ("missing.jsonl", None, r"does not exist|is a folder"),
        (".", None, r"does not exist|is a folder"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """Arrow's own errors name neither line nor key; and the file may be somebody else's password, named to see it."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=message) as error:
        read_rows([tmp_path / name])
    assert "hunter2" not in error.value.message


def test_files_of_other_columns_are_no_one_table(tmp_path: Path) -> None:
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


def test_a_parquet_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def load_rows(tmp_path: Path, name: str, rows: Rows, **fields: Any) -> Benchmark:
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
def test_columns_say_whose_rows_they_are(tmp_path: Path, name: str, rows: Rows, form: str, context: str) -> None:
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
def test_a_column_that_is_not_there(tmp_path: Path, name: str, rows: Rows, column: str) -> None:
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
            "'quary', which `fewshot_config",
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
def test_other_errors_keep_their_message(
    tmp_path: Path, name: str, rows: Rows, fields: dict[str, Any], message: str
) -> None:
    write_benchmark(tmp_path, "own", **KINDS["word"] | {"doc_to_text": "{{a", "doc_to_target": "b"})
    with pytest.raises(InvalidData, match=message):
        load_rows(tmp_path, name, rows, **fields)


PREPARE = ["from evalsvc.cli import main; main()", "benchmarks", "prepare", "whole", "by_file", "--include-path"]
EVALUATE = """
import sys
from pathlib import Path
from evalsvc.spec.benchmark import BenchmarkSpec
from evalsvc.errors import AssetMissing
from evalsvc.language.benchmarks import LoadOptions, load_benchmarks
for name in ("whole", "by_file", "other"):
    try:
        (benchmark,) = load_benchmarks([BenchmarkSpec(name=name)], LoadOptions((Path(sys.argv[1]),))).benchmarks
        print(name, benchmark.instances[0].arguments)
    except AssetMissing as error:
        print(name, error.message)
"""


@pytest.mark.usefixtures("child_process")
def test_what_was_prepared_is_evaluated_without_the_hub(tmp_path: Path) -> None:
    """The cache of `datasets` does not find again what was asked for by file, and the hub must not be asked meanwhile.

    Real processes, and a hub: the packages read their settings when they are imported.
    """
    own = tmp_path / "own"
    hub: dict[str, Any] = {"dataset_path": "someone/questions", "dataset_kwargs": None}
    write_benchmark(own, "whole", **hub)
    write_benchmark(own, "by_file", **{**hub, "dataset_kwargs": {"data_files": {"test": "test.jsonl"}}})
    write_benchmark(own, "other", **{**hub, "dataset_path": "someone/other"})

    def run(program: list[str], offline: str) -> str:
        settings = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": offline}
        done = subprocess.run(
            [sys.executable, "-c", *program, str(own)],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout

    rows = "".join(json.dumps(row) + "\n" for row in questions(3)).encode()
    with fake_hub("datasets/someone/questions", {"test.jsonl": rows}) as (url, asked):
        prepared = run(PREPARE, offline="1")
        assert prepared == (
            "whole: the dataset 'someone/questions' (splits 'test'), 3 rows of 'test'\n"
            "by_file: the dataset 'someone/questions' (files {'test': 'test.jsonl'}, splits 'test'), "
            "3 rows of 'test'\n"
        )
        assert asked
        asked.clear()
        evaluated = run([EVALUATE], offline="0").splitlines()
        assert asked == []
    assert evaluated[:2] == [f"{name} ('Question: what is 0?\\nAnswer:', ' 0')" for name in ("whole", "by_file")]
    assert evaluated[2].startswith("other benchmark 'other': the dataset 'someone/other' (splits 'test') is not in the")


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client tries for half a minute, and then names neither the address nor a way out."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    message = rf"hub {address} cannot be reached \(.*refused\); try again on a machine with a network"
    with pytest.raises(AssetMissing, match=message):
        fetch(Source("someone/questions", None, {}, ("test",)))


def test_local_data_that_are_broken_are_no_matter_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.json").write_text("{")
    for name in ("a.json", "gone.json"):
        options = {"data_files": {"test": str(tmp_path / name)}, "field": "rows"}
        with quiet(), pytest.raises(InvalidData, match="cannot be read"):
            cached(Source("json", None, options, ("test",)))


def test_offline_holds_for_all_code_of_this_thread_and_no_other() -> None:
    """Benchmarks bring code along that downloads by other ways than the hub's client; a worker talks to its cluster."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = server.getsockname()
        reached: list[bool] = []

        def connect() -> None:
            with closing(socket.create_connection(address, timeout=5)):
                reached.append(True)

        with offline():
            with pytest.raises(ConnectionRefusedError, match="the network is not used in an evaluation"):
                connect()
            with pytest.raises(ConnectionRefusedError):
                socket.getaddrinfo("localhost", 80)
            other = threading.Thread(target=connect)
            other.start()
            other.join()
        connect()
    assert reached == [True, True]
