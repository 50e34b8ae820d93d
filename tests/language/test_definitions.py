from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import write_benchmark

from evalsvc.config import Settings
from evalsvc.data_path import local_data
from evalsvc.errors import InvalidData
from evalsvc.language.definitions import Rules, check_metrics, read_definition
from evalsvc.language.registry import shipped_folder

CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\ndef f(doc):\n    return doc\n"


@pytest.mark.parametrize(
    ("addition", "line", "found"),
    [
        ("process_docs: !function code.f", 2, "`!function`"),
        ("metric_list:\n  - metric: !function code.f", 3, "`!function`"),
        ("metadata: !!python/object/apply:os.system [x]", 2, r"`tag:yaml.org,2002:python/object/apply:os.system`"),
        ("class: code.Task", 2, "`class`"),
        ("unsafe_code: true", 2, "`unsafe_code`"),
        ("dataset_kwargs:\n  data_files: x\n  trust_remote_code: true", 4, "`trust_remote_code`"),
        ("dataset_path: pandas", 2, "`dataset_path: pandas`"),
        ("dataset_path: /data/script.py", 2, r"`dataset_path: /data/script\.py`"),
    ],
)
def test_code_is_refused_unless_the_operator_allows_it(tmp_path: Path, addition: str, line: int, found: str) -> None:
    """Who may post a suite may name any YAML file: it must not be a way to run a program on the worker."""
    (tmp_path / "code.py").write_text(CODE)
    path = tmp_path / "a.yaml"
    path.write_text(f"task: a\n{addition}\n")
    with pytest.raises(InvalidData, match=rf"a\.yaml, line {line}: {found} runs code.*EVALSVC_ALLOW_BENCHMARK_CODE=1"):
        read_definition(path, Rules(), functions=True)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "b.yaml").write_text("include: a.yaml\ntask: b\n")
    with pytest.raises(InvalidData, match=rf"a\.yaml, line {line}"):
        read_definition(tmp_path / "b.yaml", Rules(), functions=True)


def test_code_in_a_groups_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("group: g\ntask:\n  - group: inner\n    task:\n      - {task: x, unsafe_code: true}\n")
    with pytest.raises(InvalidData, match=r"g\.yaml, line 5: `unsafe_code`"):
        read_definition(path, Rules(), functions=True)


def test_allowed_code_runs(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "a.yaml").write_text("task: a\nprocess_docs: !function code.f\n")
    assert read_definition(tmp_path / "a.yaml", Rules(allow_code=True), functions=False).config["process_docs"]
    assert not (tmp_path / "ran").exists()
    definition = read_definition(tmp_path / "a.yaml", Rules(allow_code=True), functions=True)
    assert definition.config["process_docs"]("x") == "x"


def test_what_is_off_is_no_code(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "task: a\nunsafe_code: false\ndataset_kwargs: {trust_remote_code: False}\n"
        "fewshot_config: {samples: [{class: a, unsafe_code: b}]}\n"
    )
    assert read_definition(path, Rules(), functions=True).config["task"] == "a"


def test_functions_of_lm_eval_are_trusted(tmp_path: Path) -> None:
    """A file of one's own may build on one of lm-eval's, with its functions."""
    theirs = shipped_folder() / "hellaswag" / "hellaswag.yaml"
    (tmp_path / "a.yaml").write_text(f"include: {theirs}\ntask: mine\n")
    definition = read_definition(tmp_path / "a.yaml", Rules(), functions=True)
    assert callable(definition.config["process_docs"])
    assert definition.config["task"] == "mine"
    assert definition.files == ((tmp_path / "a.yaml").resolve(), theirs)
    assert not definition.trusted
    assert read_definition(theirs, Rules(), functions=False).trusted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: [unclosed\n", r"a\.yaml is not valid YAML: .*line 2"),
        ("- task\n", r"a\.yaml holds no mapping; it needs the key `task` or `group`"),
        ("include: gone.yaml\n", r"the benchmark file .*gone\.yaml does not exist"),
        ("include: a.yaml\n", r"a\.yaml is included twice"),
        ("include: .\n", r"is a folder; give a file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InvalidData, match=message):
        read_definition(tmp_path / "a.yaml", Rules(), functions=True)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("rows.jsonl", "{folder}/rows.jsonl"),
        ("/data/rows.jsonl", "/data/rows.jsonl"),
        ("datasets:text/rows.jsonl", "/sets/text/rows.jsonl"),
        ("https://x/rows.jsonl", "https://x/rows.jsonl"),
        (["a.jsonl", "b*.jsonl"], ["{folder}/a.jsonl", "{folder}/b*.jsonl"]),
        ({"test": "a.jsonl"}, {"test": "{folder}/a.jsonl"}),
    ],
)
def test_data_files_start_at_the_yaml_that_names_them(tmp_path: Path, given: Any, found: Any) -> None:
    """lm-eval takes them from the folder that the process was started in."""
    write_benchmark(tmp_path / "inner", "base", dataset_kwargs={"data_files": given})
    (tmp_path / "a.yaml").write_text("include: inner/base.yaml\ntask: a\n")
    rules = Rules(resolve=lambda path: path.replace("datasets:", "/sets/"))
    definition = read_definition(tmp_path / "a.yaml", rules, functions=True)
    expected = eval(repr(found).replace("{folder}", str(tmp_path / "inner")))
    assert definition.config["dataset_kwargs"]["data_files"] == expected


def test_files_of_a_dataset_on_the_hub_stay_its_own(tmp_path: Path) -> None:
    path = write_benchmark(tmp_path, "a", dataset_path="u/d", dataset_kwargs={"data_files": {"test": "a.csv"}})
    assert read_definition(path, Rules(), functions=True).config["dataset_kwargs"]["data_files"] == {"test": "a.csv"}


def test_a_dataset_in_a_folder_beside_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "data" / "set").mkdir(parents=True)
    path = write_benchmark(tmp_path, "a", dataset_path="data/set")
    assert read_definition(path, Rules(), functions=True).config["dataset_path"] == str(tmp_path / "data" / "set")


@pytest.mark.parametrize("metric", [{"metric": "f1", "hf_evaluate": True}, {"metric": "./program.py"}, {}])
def test_metrics_from_elsewhere_are_programs(metric: dict[str, Any]) -> None:
    """The library evaluate runs the script that a metric's name points at."""
    with pytest.raises(InvalidData, match=r"here: the metric .* is none of lm-eval's own.*acc_norm"):
        check_metrics("here", {"metric_list": [{"metric": "acc"}, metric]}, Rules())
    check_metrics("here", {"metric_list": [metric]}, Rules(allow_code=True))
    check_metrics("here", {"metric_list": [{"metric": "acc"}]}, Rules())


def guarded(root: Path) -> Rules:
    return Rules(resolve=partial(local_data, Settings(roots=str(root), data_dir=str(root / "data"))))


@pytest.mark.parametrize(
    "addition",
    [
        "dataset_path: json\ndataset_kwargs: {data_files: /etc/shadow}",
        "dataset_path: text\ndataset_kwargs: {data_files: {test: [a.json, ../../../../../etc/shadow]}}",
        "dataset_path: csv\ndataset_kwargs: {data_files: 'datasets:../../../../../../etc/shadow'}",
        "dataset_path: parquet\ndataset_kwargs: {data_files: '/etc/*'}",
        "dataset_path: json\ndataset_kwargs: {data_files: link/shadow}",
        "dataset_path: /etc",
        "include: /etc/hosts",
        "include: link/hosts",
    ],
)
def test_files_outside_the_roots_are_not_read(tmp_path: Path, addition: str) -> None:
    """A folder that a suite may name by include_path must not lead to files that it may not name itself."""
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "a.yaml").write_text(f"task: a\n{addition}\n")
    with pytest.raises(InvalidData, match=r"outside the folders that suites may read .*EVALSVC_ROOTS"):
        read_definition(tmp_path / "a.yaml", guarded(tmp_path), functions=False)


def test_files_under_the_roots_are(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "task: a\ndataset_path: json\ndataset_kwargs: {data_files: [a.json, 'datasets:b']}\n"
    )
    config = read_definition(tmp_path / "a.yaml", guarded(tmp_path), functions=False).config
    assert config["dataset_kwargs"]["data_files"] == [str(tmp_path / "a.json"), str(tmp_path / "data/datasets/b")]


@pytest.mark.parametrize(
    "uri", ["file:///etc/shadow", "local:///etc/shadow", "zip://*::/etc/x.zip", "https://a::/etc/x"]
)
def test_ways_to_local_files_that_are_no_paths(tmp_path: Path, uri: str) -> None:
    (tmp_path / "a.yaml").write_text(f"task: a\ndataset_path: json\ndataset_kwargs: {{data_files: '{uri}'}}\n")
    with pytest.raises(InvalidData, match="give a path, datasets:NAME or a uri https://, http://, hf://"):
        read_definition(tmp_path / "a.yaml", guarded(tmp_path), functions=False)
