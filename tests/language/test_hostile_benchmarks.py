"""Attacks on the worker by way of benchmarks: YAML, rows and templates of somebody who may post a suite."""

import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_files import CHOICE, questions, write_benchmark, write_rows
from loaded_benchmarks import load, load_one, rules_of

from evalsvc.errors import InvalidData, InvalidSuite
from evalsvc.language import benchmarks
from evalsvc.language.catalog import shipped, shipped_folder
from evalsvc.language.definitions import Rules, read_definition


def refused(root: Path, name: str, match: str, rules: Rules | None = None, **fields: Any) -> str:
    """A worker whose roots are `root` loads a benchmark."""
    with pytest.raises((InvalidData, InvalidSuite), match=match) as error:  # told to the submitter, not tried again
        load_one(root, name, rules or rules_of(root), **fields)
    return error.value.message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.txt").write_text("hunter2\n")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("group", "message"),
    [
        *(
            ({"task": [member]}, r"runs code that the model writes|not YAML as a benchmark file may be: .*'!function'")
            for member in (
                {"task": "longproc_countdown_0.5k", "unsafe_code": False},
                {"task": "longproc_countdown_0.5k", "num_fewshot": 0},
                {"group": "inner", "task": [{"task": "longproc_countdown_0.5k", "unsafe_code": False}]},
                {"group": "inner", "unsafe_code": False, "task": ["mbpp"]},
            )
        ),
        ({"doc_to_text": "{{ctx}}", "task": ["hellaswag"]}, r"hellaswag\.yaml is not YAML as a .*'!function'"),
    ],
)
def test_a_group_hides_no_code(root: Path, group: dict[str, Any], message: str) -> None:
    (root / "g.yaml").write_text(yaml.safe_dump({"group": "g", **group}))
    refused(root, "g", message)


@pytest.mark.usefixtures("many_cases")
def test_no_benchmark_of_lm_eval_runs_code_without_saying_so() -> None:
    """Whoever gives the rows, or the checkpoint, would choose the code. SymPy's parser is `eval` by another name."""
    files = [
        file
        for file in shipped_folder().glob("*/**/*")
        if file.is_file() and file.suffix not in (".pyc", ".md", ".json", ".jsonl")
    ]
    named = {file: {*_named(file)} for file in files}
    reaching: set[Path] = set()
    found = {file for file in files if file.suffix == ".py" and RUNS.search(file.read_text())}
    while found:
        reaching |= found
        found = {file for file in files if file not in reaching and named[file] & reaching}
    folders = {file.relative_to(shipped_folder()).parts[0] for file in reaching}
    assert {"cruxeval", "longproc", "score"} <= folders, "code is not found any more where there is some"
    paths = [entry.path for entry in shipped().values() if entry.kind == "benchmark" and entry.path in reaching]
    assert [path for path in paths if path and not read_definition(path, Rules(), functions=False).unsafe] == []


def _named(file: Path) -> Iterator[Path]:
    """The files that one of lm-eval's imports, includes, or takes functions from."""
    text = file.read_text(errors="replace")
    modules = re.findall(r"!function\s+([\w.]+)\.\w+", text)
    for module, names in re.findall(r"^\s*from ([\w.]+) import ([\w, ]+)", text, re.MULTILINE):
        modules += [module, *(f"{module}.{name.strip()}" for name in names.split(","))]
    for module in modules:
        folder = shipped_folder() if module.startswith("lm_eval.tasks.") else file.parent
        yield folder.joinpath(*module.removeprefix("lm_eval.tasks.").strip(".").split(".")).with_suffix(".py")
    for include in re.findall(r"^include:\s*(\S+)", text, re.MULTILINE):
        yield (file.parent / include).resolve()


RUNS = re.compile(
    r"(?<![\w.])(eval|exec|compile|__import__|system|popen)\(|\b(parse_expr|sympify)\b|\.(system|popen)\("
    r"|^\s*(import|from) (subprocess|pickle|dill|marshal|runpy)\b",
    re.MULTILINE,
)


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        ({"question": "hunter2"}, "{{ choices[question] }}", "a name in a template is undefined"),
        ({"question": "hunter2"}, "{{ choices.index(question) }}", "does not fit what lm-eval makes of it"),
        ({"question": "hunter2"}, "{% include question %}", "does not fit what lm-eval makes of it"),
        ({"question": "hunter2"}, "{{ question.__class__ }}", "uses an unsafe attribute"),
        ({"question": "hunter2"}, "{{ question.format_map({}) }}{{ '{0.__class__}'.format(question) }}", ""),
        ({"gold": "hunter2"}, "{{question}}", ""),
        ({"choices": "hunter2"}, "{{question}}", ""),
        ({"choices": ["hunter2", ""]}, "{{question}}", ""),
    ],
)
def test_no_error_quotes_a_row(root: Path, row: dict[str, Any], template: str, message: str) -> None:
    """The rows may be a file that the submitter cannot read."""
    write_benchmark(root, "a", [{**questions(1)[0], **row}], doc_to_text=template)
    assert "hunter2" not in refused(root, "a", f"benchmark 'a', document 0.*{message}")


OUTSIDE = "outside the allowed folders"
UNKNOWN = "neither a dataset of the hub"
ELSEWHERE = "relative paths within it"


@pytest.mark.parametrize(
    ("dataset", "data_files", "message"),
    [
        ("json", "{out}/secret.txt", OUTSIDE),
        ("csv", "../secret.txt", OUTSIDE),
        ("json", "link.jsonl", OUTSIDE),
        ("json", "datasets:../../secret.txt", OUTSIDE),
        ("json", "/proc/self/environ", OUTSIDE),
        ("json", "file://{out}/secret.txt", "has an address"),
        ("json", None, "without `data_files`"),
        ("text", "{out}/secret.txt", UNKNOWN),
        ("pandas", "x.pkl", UNKNOWN),
        ("{out}", None, UNKNOWN),
        ("../root", None, UNKNOWN),
        ("here", None, UNKNOWN),
        ("u/d", "{out}/secret.txt", ELSEWHERE),
        ("u/d", "zip://*::/x", ELSEWHERE),
        ("u/d", "a/../../b", ELSEWHERE),
        ("u/d ../../../x", None, ELSEWHERE),  # with the name of a configuration
    ],
)
def test_rows_lie_below_the_roots_or_on_the_hub(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, data_files: str | None, message: str
) -> None:
    """`datasets` reads and writes wherever it is told to, and takes a name for a folder where there is one."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "here" / "a.json", [{"question": "hunter2"}])
    (root / "link.jsonl").symlink_to(tmp_path / "secret.txt")
    given = None if data_files is None else {"data_files": data_files.format(out=tmp_path)}
    path, _, name = dataset.format(out=tmp_path).partition(" ")
    write_benchmark(root, "a", dataset_path=path, dataset_name=name or None, dataset_kwargs=given)
    assert "hunter2" not in refused(root, "a", message)


def test_a_benchmark_of_two_files_does_not_mix_their_data(root: Path, tmp_path: Path) -> None:
    """A path that is harmless for a dataset of the hub is none for a local loader, and the other way round."""
    write_benchmark(root, "hub", dataset_path="u/d", dataset_kwargs={"data_files": {"test": "../secret.txt"}})
    write_benchmark(root, "local", dataset_kwargs={"data_files": {"test": "a.jsonl"}})
    (root / "a.yaml").write_text("include: hub.yaml\ntask: a\ndataset_path: json\n")
    (root / "b.yaml").write_text("include: local.yaml\ntask: b\ndataset_path: u/d\n")
    refused(root, "a", OUTSIDE)
    refused(root, "b", ELSEWHERE)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("by_suite", [False, True])
def test_rows_are_checked_when_they_are_open(root: Path, tmp_path: Path, ending: str, by_suite: bool) -> None:
    """A program that swaps a link in and out won at its first try: the path was checked, and opened later."""
    link = root / f"a.{ending}"
    link.symlink_to(tmp_path / "secret.txt")
    write_benchmark(root, "a", dataset_kwargs={"data_files": {"test": link.name}})
    too_late = replace(rules_of(root), resolve=str)
    refused(root, "a", OUTSIDE, too_late, **({"data": str(link)} if by_suite else {}))


GROWING = [
    "{{ 'a' * 10**9 }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '1'.zfill(10**9) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a\\nb' | indent(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%.1000000000f' | format(1.0) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a'.replace('a', 'b' * 10**9) }}",
    "{{ ([0] * 10**9) | length }}",
    "{{ ('a ' * 10**8).split() | length }}",
    "{{ [1] | batch(10**9, 'x') | list | length }}",
    "{{ range(100000) | map('string') | join('x' * 10**5) }}",
    "{{ dict(a='b' * 10**9)['a'] | upper }}",
    "{% set a = 'a' * 10**6 %}{% for _ in range(100000) %}{{ a }}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for _ in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
]
"""Templates of few characters that make a text of a gigabyte or more."""


@pytest.mark.parametrize(
    ("key", "template"),
    [*(("doc_to_text", each) for each in GROWING), ("doc_to_target", GROWING[0]), ("doc_to_choice", GROWING[0])],
)
def test_a_template_has_a_limit_of_memory(root: Path, monkeypatch: pytest.MonkeyPatch, key: str, template: str) -> None:
    """The worker that ran out of memory took its shard, and others of the machine, with it."""
    monkeypatch.setattr(benchmarks, "MEMORY", 100_000_000)
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    write_benchmark(root, "grows", questions(3), **{key: template})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refused(root, "grows", "^benchmark 'grows', with its rows and its templates' texts, takes more than ")
    assert "100,000,000 bytes of memory; make it smaller" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "in kB"
    assert resource.getrlimit(resource.RLIMIT_DATA) == unlimited


def test_rows_and_requests_that_are_kept_are_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites of somebody who posts one after the other would add up."""
    benchmarks._build.cache_clear()
    monkeypatch.setattr(benchmarks, "KEPT_MEMORY", 20_000_000)
    for number in range(5):
        write_benchmark(root, f"many{number}", questions(10), doc_to_text="{{ question * 10**5 }}")
        load_one(root, f"many{number}", rules_of(root))
    assert benchmarks._build.cache_info().currsize < 5


ROWS: dict[str, dict[str, Any]] = {
    "arc_easy": {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "copa": {"premise": "It rained.", "question": "effect", "choice1": "A wet road.", "choice2": "Sun.", "label": 0},
    "mmlu_anatomy": {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 3},
    "wikitext": {"page": " = A = \n a page . \n"},
    "gsm8k": {"question": "1 + 1?", "answer": "It is two. #### 2"},
    "blimp_causative": {"sentence_good": "a b", "sentence_bad": "b a"},
}
"""With functions of lm-eval's own and without, of every output type, and built on a file that others share."""


@pytest.mark.parametrize("name", ROWS)
def test_benchmarks_of_lm_eval_run_by_name_on_local_rows(root: Path, name: str) -> None:
    rows = write_rows(root / "rows.jsonl", [ROWS[name]] * 2)
    benchmark = load_one(root, name, rules_of(root), data=str(rows), num_fewshot=0)
    assert len(benchmark.documents) == 2
    assert benchmark.task.aggregation()


def test_groups_of_ones_own_and_of_lm_eval(root: Path) -> None:
    write_benchmark(root, "a", questions(2))
    write_rows(root / "arc.jsonl", [ROWS["arc_easy"]])

    def read_from(file: str) -> dict[str, Any]:
        return {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}}

    mean = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}]}
    members = [
        {"group": "inner", "task": ["a"], **mean},
        {"task": "b", **CHOICE, **read_from("a.jsonl")},
        {"task": "arc_easy", "dataset_name": None, "description": "d", **read_from("arc.jsonl")},
    ]
    (root / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": members, **mean}))
    loaded = load(root, "g", rules=rules_of(root))
    assert [benchmark.name for benchmark in loaded.benchmarks] == ["a", "g::b", "arc_easy"]
    assert loaded.benchmarks[2].instances[0].arguments == ("dQuestion: q\nAnswer:", " a")
    assert [group.name for group in loaded.groups] == ["g", "g::inner"]
    values: Any = {name: {"acc,none": float(name == "a"), "sample_len": 3} for name in ("a", "g::b", "arc_easy")}
    assert loaded.groups[0].aggregate(values)["acc,none"] == pytest.approx(1 / 3)
