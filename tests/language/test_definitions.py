"""Files that define benchmarks: what they may say, the index of their names, and what groups and tags stand for."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_files import write_benchmark
from lm_eval.api.registry import AGGREGATION_REGISTRY, filter_registry, metric_registry
from lm_eval.tasks._index import Kind as TheirKind
from lm_eval.tasks._index import TaskIndex
from loaded_benchmarks import rules_of

from evalsvc.errors import InvalidData, UnknownName
from evalsvc.language.building import Branch, Leaf, expand
from evalsvc.language.catalog import MAX_FILE, Registry, scan, shipped, shipped_folder
from evalsvc.language.definitions import RUNS_CODE, Rules, local_files, named_files, read_definition
from evalsvc.language.schema import Aggregation, Filter, Metric

CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\ndef f(doc):\n    return doc\n"


def read(path: Path, rules: Rules | None = None, *, functions: bool = True, closed: bool = False) -> dict[str, Any]:
    return read_definition(path, rules or Rules(), functions=functions, closed=closed).config


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("process_docs: !function code.f", r"not YAML as a benchmark file may be: .*'!function' in line 2"),
        ("metric_list:\n  - metric: !function code.f", r"'!function' in line 3"),
        ("fewshot_config: {samples: !function code.f}", r"'!function' in line 2"),
        ("metadata: !!python/object/apply:os.system [x]", r"could not determine a constructor for the tag"),
        ("class: code.Task", r"`class` runs code, which a benchmark file may not; remove it, .*ALLOW_BENCHMARK_CODE=1"),
        *((f"{key}: code.f", rf"`{key}` runs code") for key in ("custom_dataset", "process_docs", "process_results")),
        ("unsafe_code: true", r"`unsafe_code` runs code"),
        ("dataset_kwargs: {trust_remote_code: true}", r"`dataset_kwargs.trust_remote_code` runs code"),
        ("fewshot_config: {process_docs: code.f}", r"`fewshot_config.process_docs` runs code"),
        ("metric_list: [{metric: ./program.py}]", r"`metric_list.0.metric`: input should be 'acc', .*BENCHMARK_CODE=1"),
        ("metric_list: [{metric: f1, hf_evaluate: true}]", r"`metric_list.0.hf_evaluate` runs code"),
        ("metric_list: [{metric: acc, aggregation: code.f}]", r"`metric_list.0.aggregation`: input should be"),
        ("filter_list: [{name: x, filter: [{function: custom, filter_fn: f}]}]", r"`filter_list.0.filter.0.function`"),
        ("use_prompt: promptsource:*", r"`use_prompt`: no key is named 'use_prompt'"),
        ("dataset_kwargs: {cache_dir: /tmp/x}", r"`dataset_kwargs.cache_dir`: no key is named 'cache_dir'"),
        ("doc_to_txt: x", r"`doc_to_txt`: no key is named 'doc_to_txt'; did you mean 'doc_to_text'"),
        ("num_fewshot: 100000000", r"`num_fewshot`: input should be less than or equal to 1024; correct it$"),
        ("task: [x, {task: y, unsafe_code: true}]", r"`task.1.unsafe_code` runs code"),
        ("task: [{group: y, task: [{task: z, class: c}]}]", r"`task.0.task.0.class` runs code"),
        ("filter_list: [{name: x, filter: [{function: regex, regex_pattern: (}]}]", r"pattern`: it is no regular"),
        ("doc_to_choice: [[a]]", r"`doc_to_choice.0`: input should be a valid string; correct it$"),
        ("1: x", r"`1`: keys should be strings"),
    ],
)
def test_what_is_not_listed_is_refused(tmp_path: Path, addition: str, message: str) -> None:
    """Who may post a suite may name any YAML file: it must not be a way to run a program on the worker."""
    (tmp_path / "code.py").write_text(CODE)
    path = tmp_path / "a.yaml"
    path.write_text(f"{'' if addition.startswith('task') else 'task: a'}\n{addition}\n")
    with pytest.raises(InvalidData, match=rf"a\.yaml.*{message}"):
        read(path)
    (tmp_path / "b.yaml").write_text("include: a.yaml\ntask: b\nunsafe_code: false\nmetric_list: [{metric: acc}]\n")
    with pytest.raises(InvalidData, match=r"a\.yaml"):
        read(tmp_path / "b.yaml")
    assert not (tmp_path / "ran").exists()


def test_allowed_code_runs(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    path = tmp_path / "a.yaml"
    path.write_text("task: a\nprocess_docs: !function code.f\n")
    allowed = Rules(allow_code=True)
    assert read(path, allowed, functions=False)["process_docs"]
    assert not (tmp_path / "ran").exists()
    assert read(path, allowed)["process_docs"]("x") == "x"
    path.write_text(
        "task: a\nunsafe_code: false\ndataset_kwargs: {trust_remote_code: False}\n"
        "fewshot_config: {samples: [{class: a, unsafe_code: b}]}\n"
    )
    assert read(path)["fewshot_config"] == {"samples": [{"class": "a", "unsafe_code": "b"}]}, "what is off is no code"


def test_the_lists_are_those_of_lm_eval() -> None:
    """A name that lm-eval does not have is looked up elsewhere; one that is missing here is refused for nothing."""
    assert set(Metric.__args__) == set(metric_registry)  # type: ignore[attr-defined]
    assert set(Aggregation.__args__) == set(AGGREGATION_REGISTRY)  # type: ignore[attr-defined]
    assert {*Filter.__args__, "custom"} == set(filter_registry)  # type: ignore[attr-defined]


def test_a_swapped_file_is_not_read_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked was once read again to be used, and a function that came in between ran after 44 tries."""
    (tmp_path / "code.py").write_text(CODE)
    path = tmp_path / "a.yaml"
    path.write_text("task: a\ndescription: harmless\n")
    opened: list[str] = []
    real_open = os.open

    def swapping(name: Any, *arguments: Any, **options: Any) -> int:
        descriptor = real_open(name, *arguments, **options)
        if str(name) == str(path):
            opened.append(str(name))
            path.unlink()
            path.write_text("task: a\nprocess_docs: !function code.f\n")
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    assert read(path) == {"task": "a", "description": "harmless"}
    assert opened == [str(path)]
    assert not (tmp_path / "ran").exists()


def test_files_of_lm_eval_are_trusted_by_name_and_held_to_the_list_by_include(tmp_path: Path) -> None:
    theirs = shipped_folder() / "hellaswag" / "hellaswag.yaml"
    definition = read_definition(theirs, Rules(), functions=True)
    assert definition.trusted
    assert callable(definition.config["process_docs"])
    with pytest.raises(InvalidData, match="'!function'"):
        read(theirs, closed=True)
    plain = shipped_folder() / "arc" / "arc_challenge.yaml"
    (tmp_path / "a.yaml").write_text(f"include: {plain}\ntask: mine\ntest_split: validation\n")
    definition = read_definition(tmp_path / "a.yaml", Rules(), functions=True)
    assert not definition.trusted
    assert (definition.config["dataset_name"], definition.config["test_split"]) == ("ARC-Challenge", "validation")
    # `unsafe_code: false` in the file that includes it was all that was looked at.
    for name in ("hellaswag/hellaswag.yaml", "longproc/countdown_0.5k.yaml"):
        for own in ("", "unsafe_code: false\n", "unsafe_code: false\nprocess_results: null\n"):
            (tmp_path / "a.yaml").write_text(f"include: {shipped_folder() / name}\ntask: mine\n{own}")
            message = r"(is not YAML as .*'!function'|`process_results` runs code).*BENCHMARK_CODE=1"
            with pytest.raises(InvalidData, match=message):
                read(tmp_path / "a.yaml")


PLAIN = ("arc", "piqa", "sciq", "blimp", "mmlu/default", "lambada", "glue/rte", "openbookqa")


@pytest.mark.parametrize("folder", PLAIN)
def test_the_list_has_what_plain_files_of_lm_eval_say(folder: str) -> None:
    """5,387 of the 13,986 files of 0.4.13 call no function; all but 6 of them keep to the list."""
    count = 0
    for path in sorted((shipped_folder() / folder).rglob("*.yaml")):
        if "!function" not in path.read_text():
            assert read(path, closed=True)["task"]
            count += 1
    assert count


def test_unsafe_code_counts_wherever_it_is_said() -> None:
    """Ten files of five folders say so, some of them included by one that does not, or without the ending .yaml."""
    files = [file for file in shipped_folder().rglob("*") if file.suffix in ("", ".yaml", ".5k") and file.is_file()]
    folders = {file.parent for file in files if b"\nunsafe_code: true" in b"\n" + file.read_bytes()}
    folders |= {shipped_folder() / name for name in RUNS_CODE}
    assert {folder.name for folder in folders} >= {"cruxeval", "humaneval", "longproc", "mbpp", "math"}
    paths = [entry.path for entry in shipped().values() if entry.kind == "benchmark" and entry.path is not None]
    for path in (*(path for path in paths if path.parent in folders), piqa := shipped_folder() / "piqa" / "piqa.yaml"):
        assert read_definition(path, Rules(), functions=False).unsafe == (path != piqa)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: [unclosed\n", r"a\.yaml is not YAML .*line 2"),
        ("- task\n", r"a\.yaml holds no mapping; it needs the key `task` or `group`"),
        ("include: gone.yaml\n", r"gone\.yaml does not exist or cannot be read"),
        ("include: a.yaml\n", r"a\.yaml is included twice"),
        ("include: .\n", r"is a folder; give a file"),
        ("include: many0.yaml\n", r"includes more than 100 files; merge them"),
        ("include: pipe\n", r"is not a regular file; give a file on a disk"),
        ("include: /dev/zero\n", r"is not a regular file; give a file on a disk"),
        ("include: large\n", rf"large has more than {MAX_FILE:,} bytes"),
        (
            "task: a\nmetadata: &a {x: &b [1, 1, 1, 1, 1, 1, 1, 1]}\n"
            + "\n".join(f"z{n}: &n{n} [{', '.join([f'*n{n - 1}' if n else '*b'] * 8)}]" for n in range(9)),
            r"it has more than 50,000 values",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    for number in range(102):
        (tmp_path / f"many{number}.yaml").write_text(f"include: many{number + 1}.yaml\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("#" * (MAX_FILE + 1))
    with pytest.raises(InvalidData, match=message):
        read(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "content",
    [
        *("aws_secret: hunter2", "hunter2 is the password: x", "task: {hunter2: hunter2}", "num_fewshot: hunter2"),
        *("metric_list: [hunter2]", "output_type: hunter2", "hunter2"),
    ],
)
def test_no_error_quotes_what_another_file_holds(tmp_path: Path, content: str) -> None:
    """`include` names any file below the roots, the secrets of other people among them."""
    (tmp_path / "secrets").write_text(content + "\n")
    (tmp_path / "a.yaml").write_text("include: secrets\ntask: a\n")
    with pytest.raises(InvalidData) as error:
        read(tmp_path / "a.yaml")
    assert "hunter2" not in error.value.message


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("rows.jsonl", {"train": ["{folder}/rows.jsonl"]}),
        ("/data/rows.jsonl", {"train": ["/data/rows.jsonl"]}),
        ("datasets:text/rows.jsonl", {"train": ["datasets:text/rows.jsonl"]}),
        (["a.jsonl", "b.jsonl"], {"train": ["{folder}/a.jsonl", "{folder}/b.jsonl"]}),
        ({"test": "a.jsonl", "dev": ["b.jsonl"]}, {"test": ["{folder}/a.jsonl"], "dev": ["{folder}/b.jsonl"]}),
    ],
)
@pytest.mark.parametrize("allow_code", [False, True])
def test_data_files_start_at_their_yaml(
    tmp_path: Path, given: Any, found: dict[str, list[str]], allow_code: bool
) -> None:
    """lm-eval takes them from the folder that the process was started in."""
    write_benchmark(tmp_path / "inner", "base", dataset_kwargs={"data_files": given})
    (tmp_path / "a.yaml").write_text("include: inner/base.yaml\ntask: a\n")
    config = read(tmp_path / "a.yaml", Rules(allow_code=allow_code))
    folder = str(tmp_path / "inner")
    expected = {split: [name.replace("{folder}", folder) for name in names] for split, names in found.items()}
    assert local_files(config) == expected


def test_files_of_a_dataset_on_the_hub_stay_its_own(tmp_path: Path) -> None:
    path = write_benchmark(tmp_path, "a", dataset_path="u/d", dataset_kwargs={"data_files": {"test": "a.csv"}})
    assert read(path)["dataset_kwargs"]["data_files"] == {"test": "a.csv"}
    assert local_files(read(path)) is None
    write_benchmark(tmp_path, "a", dataset_kwargs={"data_files": "https://x/a.jsonl"})
    with pytest.raises(InvalidData, match=r"`data_files` has an address; download the file and give its path"):
        read(path)


@pytest.mark.parametrize("include", ["/etc/hosts", "link/hosts", "../outside.yaml"])
def test_files_outside_the_roots_are_not_included(tmp_path: Path, include: str) -> None:
    """A folder that a suite may name by include_path must not lead to files that it may not name itself."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    (tmp_path / "outside.yaml").write_text("task: hunter2\n")
    (root / "a.yaml").write_text(f"task: a\ninclude: {include}\n")
    with pytest.raises(InvalidData, match=r"outside the allowed folders .*EVALSVC_ROOTS"):
        read(root / "a.yaml", rules_of(root))
    # A program that swaps a link in between check and opening won this race at its first try.
    (root / "b.yaml").symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(InvalidData, match=r"outside the allowed folders"):
        read(root / "b.yaml", replace(rules_of(root), resolve=str))


def test_named_files_are_those_of_ones_own_benchmarks(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "a", dataset_kwargs={"data_files": {"test": "datasets:a.jsonl"}}, tag="both")
    write_benchmark(tmp_path, "b", dataset_kwargs={"data_files": {"test": "b.jsonl"}}, tag="both")
    write_benchmark(tmp_path, "broken", unsafe_code=True)
    (tmp_path / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": ["a"]}))
    rules = Rules(resolve=lambda name: name.replace("datasets:", "/sets/"))
    names = ["both", "broken", "g", "piqa", "gone"]
    assert list(named_files(names, [tmp_path], rules)) == [Path("/sets/a.jsonl"), tmp_path / "b.jsonl"]


KINDS = {TheirKind.TASK: "benchmark", TheirKind.PY_TASK: "benchmark", TheirKind.GROUP: "group", TheirKind.TAG: "tag"}


@pytest.mark.parametrize("folder", ["arc", "glue", "lambada", "squadv2", "mmlu/continuation", "leaderboard"])
def test_names_are_those_of_lm_eval(folder: str) -> None:
    """Its own index takes 12 s for all of them; this one reads a few keys by a pattern, quoted, included or inherited.

    Here they are held to each other by some folders; all 14,683 names of 0.4.13 agreed.
    """
    path = shipped_folder() / folder
    theirs = {
        name: (KINDS[entry.kind], entry.yaml_path, tuple(sorted(entry.tags)) if entry.kind is TheirKind.TAG else ())
        for name, entry in TaskIndex.build([path]).items()
    }
    entries = scan(path, lambda file: Path(file).read_bytes()).values()
    assert {entry.name: (entry.kind, entry.path, entry.members) for entry in entries} == theirs
    assert theirs


def test_names_of_ones_own_go_first_and_an_unknown_one_is_told_what_is_near(tmp_path: Path) -> None:
    for folder in (tmp_path / "own" / "deep", tmp_path / "other"):
        write_benchmark(folder, "arc_easy")
    registry = Registry([tmp_path / "own", tmp_path / "other"])
    assert registry.find("arc_easy").path == tmp_path / "own" / "deep" / "arc_easy.yaml"
    assert registry.find("arc_challenge") == shipped()["arc_challenge"]
    assert {entry.name: entry.origin for entry in Registry().search("ai2_ARC")}["ai2_arc"] == "2 benchmarks"
    assert Registry().find("arc_easy") == shipped()["arc_easy"]
    assert Registry().find("arc_easy").origin == "arc/arc_easy.yaml"
    with pytest.raises(UnknownName, match=r"'arc_esy'; did you mean 'arc_easy'.*`evalsvc benchmarks list` shows all"):
        Registry().find("arc_esy")
    with pytest.raises(InvalidData, match=r"nowhere of include_path does not exist"):
        Registry([tmp_path / "nowhere"])


def test_a_file_that_is_no_benchmark_disturbs_none(tmp_path: Path) -> None:
    """A pipe made a worker wait for ever, and /dev/zero took all of its memory."""
    folder, outside = tmp_path / "folder", tmp_path / "outside.yaml"
    good = 'include: nowhere.yaml\n"task": "good"  # a comment\ntag:\n  - one\n\n  - two\n'
    folder.mkdir()
    for name, content in (
        ("broken", "task: [unclosed\n"),
        ("suite", "tasks:\n  - kind: loss\n"),
        ("itself", "include: itself.yaml\n"),
        ("large", "task: secret\n" + "#" * MAX_FILE),
        ("good", good),
    ):
        (folder / f"{name}.yaml").write_text(content)
    outside.write_text("task: secret\n")
    (folder / "device.yaml").symlink_to("/dev/zero")
    (folder / "link.yaml").symlink_to(outside)
    os.mkfifo(folder / "pipe.yaml")
    registry = Registry([folder], rules_of(folder).allow)
    assert {entry.name: entry.kind for entry in registry.search("") if registry.is_local(entry.name)} == {
        "good": "benchmark",
        "one": "tag",
        "two": "tag",
    }


def leaves(name: str, *folders: Path) -> list[Leaf]:
    return [leaf for item in expand(name, Registry(folders), Rules()) for leaf in item.leaves()]


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [("mmlu", 57, "mmlu_abstract_algebra"), ("ai2_arc", 2, "arc_challenge"), ("glue", 9, "cola"), ("piqa", 1, "piqa")],
)
def test_groups_and_tags_of_lm_eval_have_their_members(name: str, count: int, first: str) -> None:
    """Members lie in other folders and other groups; nothing of their data is needed."""
    found = leaves(name)
    assert len(found) == count
    assert min(leaf.name for leaf in found) == first
    assert all(not leaf.closed and leaf.path and leaf.path.is_file() for leaf in found)
    # lm-eval 0.4.13 calls all of MMLU's benchmarks `mmlu` within the group `openllm`.
    assert name != "mmlu" or {leaf.name for leaf in found} <= {leaf.name for leaf in leaves("openllm")}


def test_what_a_group_says_holds_for_its_members(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_benchmark(tmp_path, name, tag="abc")
    written = {"group": "written", "task": [{"task": "here", "dataset_path": "json"}, "piqa"]}
    members = ["a", {"task": "b", "num_fewshot": 2}, {"group": "inner", "num_fewshot": 3}, written]
    group = {"group": "outer", "num_fewshot": 1, "aggregate_metric_list": [{"metric": "acc"}], "task": members}
    for content in (group, {"group": "inner", "task": ["c"]}):
        (tmp_path / f"{content['group']}.yaml").write_text(yaml.safe_dump(content))
    (outer,) = expand("outer", Registry([tmp_path]), Rules())
    assert isinstance(outer, Branch)
    assert outer.config["aggregate_metric_list"] == [{"metric": "acc"}]
    found = {leaf.name: leaf.overrides["num_fewshot"] for leaf in outer.leaves()}
    assert found == {"a": 1, "b": 2, "c": 3, "outer::written::here": 1, "piqa": 1}
    assert {leaf.name for leaf in outer.leaves() if leaf.closed} == {"outer::written::here"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group: g\ntask: [gone]\n", "the group 'g' has the member 'gone', which no YAML file defines"),
        ("group: g\ntask: [g]\n", "the group 'g' is a member of itself, or a member twice"),
        ("group: g\ntask: [[x]]\n", r"g\.yaml: `task.0`: input should be"),
        ("group: g\n", "the group 'g' lists None"),
        ("group: g\ntask: []\n", "'g' stands for no benchmark"),
        # Twenty groups that each list the one before twice stand for a million benchmarks.
        ("group: g\ntask: [g18]\n", "the group 'g0' is a member of itself, or a member twice; list it once"),
    ],
)
def test_a_group_that_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    write_benchmark(tmp_path, "a")
    for number in range(19):
        member = f"g{number - 1}" if number else "a"
        (tmp_path / f"g{number}.yaml").write_text(f"group: g{number}\ntask: [{member}, {member}]\n")
    (tmp_path / "g.yaml").write_text(content)
    with pytest.raises(InvalidData, match=message):
        leaves("g", tmp_path)
