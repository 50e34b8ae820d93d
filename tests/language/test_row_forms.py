"""A benchmark's `data`: whose columns the file has, and what is said of a column that is not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalsvc.errors import InvalidData
from evalsvc.language.benchmarks import Benchmark, LoadOptions, load_benchmarks
from evalsvc.language.row_forms import TEXT_TASKS, foundry_columns
from evalsvc.spec.benchmark import BenchmarkSpec

FOUNDRY = [{"query": f"Question: Which {n}?\n", "choices": ["ab", "c"], "gold": n} for n in range(2)]
ARC = [
    {"question": f"Which {n}?", "choices": {"text": ["ab", "c"], "label": ["A", "B"]}, "answerKey": "AB"[n]}
    for n in range(2)
]
SCHEMA = [{"context_options": ["So Ann", "So Bob"], "continuation": "won.", "gold": n} for n in range(2)]
WINOGRANDE = [
    {"sentence": "Ann beat Bob so _ won.", "option1": "Ann", "option2": "Bob", "answer": str(n + 1)} for n in range(2)
]


def load(tmp_path: Path, name: str, rows: list[dict[str, Any]], *include_path: Path) -> Benchmark:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = BenchmarkSpec(name=name, data=str(path))
    return load_benchmarks([spec], LoadOptions(include_path)).benchmarks[0]


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
    found = load(tmp_path, name, rows)
    assert (found.name, found.form) == (name, form)
    assert found.instances[0].args[0] == context


def test_rows_of_llm_foundry_are_asked_as_by_its_definition(tmp_path: Path) -> None:
    """A folder in `include_path` goes first, and leaves no doubt."""
    found, named = load(tmp_path, "arc_easy", FOUNDRY), load(tmp_path, "arc_easy", FOUNDRY, TEXT_TASKS)
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
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, name: str, rows: list[dict[str, Any]], column: str) -> None:
    """The message once was "document 0: 'goal' is undefined", without file and columns."""
    with pytest.raises(InvalidData) as caught:
        load(tmp_path, name, rows)
    columns, known = ", ".join(map(repr, rows[0])), ", ".join(map(repr, sorted(foundry_columns()[name])))
    pattern = (
        rf"benchmark '{name}': {tmp_path}/rows.jsonl, row 1 has no column {column}, which the benchmark's template "
        rf"expects; the row has {columns}; llm-foundry's rows have {known}; rename the columns, or"
    )
    assert caught.match(pattern)
    assert "Ann" not in caught.value.message, "values are not quoted"


def test_a_benchmark_that_ships_nowhere_names_its_columns_too(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"row 1 has no column '\w+', which .*; the row has 'a'; rename the columns"):
        load(tmp_path, "sciq", [{"a": "b"}])


def test_of_many_columns_some_are_named(tmp_path: Path) -> None:
    """Whoever gives the rows chooses how many there are: a message of five megabytes was stored with the evaluation."""
    with pytest.raises(InvalidData, match=r"the row has 'c0', .*, 'c19' and 980 more; llm-foundry's rows have"):
        load(tmp_path, "arc_easy", [{f"c{number}": 1 for number in range(1000)}])


def test_a_template_that_is_wrong_for_another_reason_keeps_its_message(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="benchmark 'arc_easy', document 0"):
        load(tmp_path, "arc_easy", [{**FOUNDRY[0], "gold": 7}])


def test_too_few_rows_are_not_taken_for_a_missing_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FOUNDRY[0]) + "\n")
    spec = BenchmarkSpec(name="arc_easy", data=str(path), num_fewshot=3)
    with pytest.raises(InvalidData, match="3 solved examples are asked for"):
        load_benchmarks([spec], LoadOptions())


def test_a_template_that_is_not_valid_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "task: own\noutput_type: loglikelihood\ntest_split: test\ndoc_to_text: '{{a'\ndoc_to_target: b\n"
    )
    with pytest.raises(InvalidData, match="a template is not valid"):
        load(tmp_path, "own", [{"a": "x", "b": " y"}], tmp_path)
