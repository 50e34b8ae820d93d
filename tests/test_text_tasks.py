"""The benchmarks that come with evalsvc: what they ask, of rows as llm-foundry writes them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_files import write_rows
from loaded_benchmarks import load_one

from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.definitions import Rules
from evalsvc.spec.suite import SHIPPED_SUITES, load_suite, suite_files

FOLDER = SHIPPED_SUITES.parent / "text_tasks"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))

ARC = [{"query": f"Question: Which {n}?\n", "choices": ["ab", "c"], "gold": n} for n in range(2)]
BOOLQ = [{"query": f"Passage: P.\nQuestion: is {n}?", "choices": ["no", "yes"], "gold": n} for n in range(2)]
COPA = [{"query": f"The man {n}, therefore", "choices": ["a b.", "c."], "gold": n} for n in range(2)]
MMLU = [{"query": f"Question: Find {n}.\nA. 0\nB. 1\n", "choices": ["A", "B"], "gold": n} for n in range(2)]
SCHEMA = [{"context_options": [f"{n} so Ann", f"{n} so Bob"], "continuation": "won.", "gold": n} for n in range(2)]
LAMBADA = [{"context": f"I saw {n}", "continuation": "signs"} for n in range(2)]
JEOPARDY = [{"context": f"HISTORY: He {n}\n", "continuation": "Byrd", "category": "history"} for n in range(2)]

QUESTIONS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]]]] = {
    **dict.fromkeys(
        ("arc_easy", "arc_challenge", "piqa"),
        (ARC, [("Question: Which 0?\nAnswer:", " ab"), ("Question: Which 0?\nAnswer:", " c")]),
    ),
    "boolq": (BOOLQ, [("Passage: P.\nQuestion: is 0?\nAnswer:", f" {word}") for word in ("no", "yes")]),
    "mmlu": (MMLU, [("Question: Find 0.\nA. 0\nB. 1\nAnswer:", f" {letter}") for letter in "AB"]),
    **dict.fromkeys(("copa", "hellaswag"), (COPA, [("The man 0, therefore", f" {end}") for end in ("a b.", "c.")])),
    **dict.fromkeys(("winograd_wsc", "winogrande"), (SCHEMA, [("0 so Ann", " won."), ("0 so Bob", " won.")])),
    "lambada_openai": (LAMBADA, [("I saw 0", " signs")]),
    "jeopardy_all": (JEOPARDY, [("HISTORY: He 0\nAnswer:", " Byrd")]),
}
"""Rows, and what of the first of them is asked: context and continuation."""

SOLVED = {
    "arc_easy": "Question: Which 1?\nAnswer: c\n",
    "boolq": "Passage: P.\nQuestion: is 1?\nAnswer: yes\n",
    "copa": "The man 1, therefore c.\n",
    "winograd_wsc": "1 so Bob won.\n",
    "lambada_openai": "I saw 1 signs\n",
    "jeopardy_all": "HISTORY: He 1\nAnswer: Byrd\n",
}


def load(name: str, datasets: Path, **fields: int) -> Benchmark:
    rules = Rules(resolve=lambda path: str(datasets / path.removeprefix("datasets:")))
    return load_one(FOLDER, name, rules, **fields)


def written(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    write_rows(tmp_path / "text" / f"{name}.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_asked_alone_and_after_a_solved_example(tmp_path: Path, name: str) -> None:
    """lm-eval puts its delimiter before an answer that begins with a space already, and the space came twice."""
    rows, expected = QUESTIONS[name]
    folder = written(tmp_path, name, rows)
    found = load(name, folder)
    assert [instance.args for instance in found.instances[: len(expected)]] == expected
    assert (len(found.documents), found.num_fewshot) == (2, 0)
    if name in SOLVED:
        asked = load(name, folder, num_fewshot=1).instances[0].args
        assert asked == (SOLVED[name] + expected[0][0], expected[0][1])


def test_a_newline_at_the_end_of_a_question_moves_nothing(tmp_path: Path) -> None:
    """There are files with and without; one of them would read `Question: …Answer:`, or with an empty line between."""
    bare = [{**row, "query": row["query"].rstrip()} for row in ARC]
    with_lines, without = (written(tmp_path / str(place), "arc_easy", rows) for place, rows in enumerate((ARC, bare)))
    assert load("arc_easy", with_lines).digest == load("arc_easy", without).digest


def test_every_benchmark_is_here_and_has_the_file_of_its_name() -> None:
    assert {*NAMES} == {*QUESTIONS, "hellaswag_zeroshot"}
    for name in NAMES:
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        assert content["task"] == name
        assert name in (FOLDER / "README.md").read_text()
        if name != "hellaswag_zeroshot":
            assert content["dataset_kwargs"] == {"data_files": {"test": f"datasets:text/{name}.jsonl"}}


SIZES = {
    "arc_easy": (2376, 0.25),
    "copa": (100, 0.5),
    "lambada_openai": (5153, 0),
    "piqa": (1838, 0.5),
    "winograd_wsc": (273, 0.5),
    "winogrande": (1267, 0.5),
}


def test_public_rows_load(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "text").symlink_to(shared / "golden" / "text_tasks")
    found = {name: load(name, tmp_path, limit=1) for name in SIZES}
    assert {name: (item.total, item.chance) for name, item in found.items()} == SIZES


def test_suites_name_benchmarks_that_are_here() -> None:
    chosen = {}
    for name, path in suite_files(None).items():
        for task in load_suite(path).tasks:
            if str(FOLDER) in task.parameters.get("include_path", ()):
                chosen[name] = {item["name"]: item["num_fewshot"] for item in task.parameters["benchmarks"]}
    assert chosen.keys() == {"text-quick", "text-core", "text-core-dclm", "forgetting"}
    assert all({*benchmarks} <= {*NAMES} for benchmarks in chosen.values())
    assert {*chosen["text-core"]} == {*QUESTIONS}
    ten = {"arc_easy", "arc_challenge", "boolq", "hellaswag", "jeopardy_all", "piqa"}
    none = {"copa", "hellaswag_zeroshot", "lambada_openai", "winograd_wsc", "winogrande"}
    assert chosen["text-core-dclm"] == dict.fromkeys(ten, 10) | dict.fromkeys(none, 0)
