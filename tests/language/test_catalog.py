"""Names of benchmarks, and what groups and tags stand for."""

import os
from pathlib import Path

import pytest
from benchmark_files import write_benchmark
from lm_eval.tasks._index import Kind as TheirKind
from lm_eval.tasks._index import TaskIndex

from evalsvc.config import Settings
from evalsvc.errors import InvalidData, UnknownName
from evalsvc.language.building import Branch, Leaf, expand
from evalsvc.language.catalog import MAX_FILE, Entry, Registry, scan, shipped, shipped_folder
from evalsvc.language.definitions import Rules
from evalsvc.spec.paths import Readable

KINDS = {TheirKind.TASK: "benchmark", TheirKind.PY_TASK: "benchmark", TheirKind.GROUP: "group", TheirKind.TAG: "tag"}


def names_in(folder: Path) -> dict[str, Entry]:
    return scan(folder, lambda path: Path(path).read_bytes())


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
    assert {entry.name: (entry.kind, entry.path, entry.members) for entry in names_in(path).values()} == theirs
    assert theirs


def test_names_of_ones_own_go_first(tmp_path: Path) -> None:
    own = tmp_path / "own" / "deep"
    own.mkdir(parents=True)
    (own / "a.yaml").write_text("task: arc_easy\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.yaml").write_text("task: arc_easy\n")
    registry = Registry([tmp_path / "own", other])
    assert registry.find("arc_easy").path == own / "a.yaml"
    assert registry.find("arc_challenge") == shipped()["arc_challenge"]
    assert Registry().find("arc_easy") == shipped()["arc_easy"]


def test_a_file_that_is_no_benchmark_disturbs_none(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: [unclosed\n")
    (tmp_path / "suite.yaml").write_text("tasks:\n  - kind: loss\n")
    (tmp_path / "itself.yaml").write_text("include: itself.yaml\n")
    (tmp_path / "good.yaml").write_text(
        'include: nowhere.yaml\n"task": "good"  # a comment\ntag:\n  - one\n\n  - two\n'
    )
    assert {entry.name: entry.kind for entry in names_in(tmp_path).values()} == {
        "good": "benchmark",
        "one": "tag",
        "two": "tag",
    }


def test_an_unknown_name_says_what_is_near() -> None:
    with pytest.raises(UnknownName, match=r"'arc_esy'; did you mean 'arc_easy'.*`evalsvc benchmarks list` shows all"):
        Registry().find("arc_esy")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"nowhere of include_path does not exist"):
        Registry([tmp_path / "nowhere"])


def test_search_tells_where_a_name_comes_from() -> None:
    found = {entry.name: entry.origin for entry in Registry().search("ai2_ARC")}
    assert found["ai2_arc"] == "2 benchmarks"
    assert Registry().find("arc_easy").origin == "arc/arc_easy.yaml"


@pytest.mark.parametrize("kind", ["pipe", "device", "large", "outside"])
def test_what_is_no_file_of_the_folder_is_passed_over(tmp_path: Path, kind: str) -> None:
    """A pipe made a worker wait for ever, and /dev/zero took all of its memory."""
    folder, outside = tmp_path / "folder", tmp_path / "outside.yaml"
    folder.mkdir()
    outside.write_text("task: secret\n")
    strange = folder / "strange.yaml"
    if kind == "pipe":
        os.mkfifo(strange)
    elif kind == "large":
        strange.write_text("task: secret\n" + "#" * MAX_FILE)
    else:
        strange.symlink_to("/dev/zero" if kind == "device" else outside)
    (folder / "good.yaml").write_text("task: good\n")
    settings = Settings(roots=str(folder), data_dir=str(tmp_path / "data"))
    registry = Registry([folder], Readable(settings))
    assert registry.get("good")
    assert registry.get("secret") is None


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
    assert sorted(leaf.name for leaf in found)[0] == first
    assert all(not leaf.closed and leaf.path and leaf.path.is_file() for leaf in found)


def test_what_a_group_says_holds_for_its_members(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_benchmark(tmp_path, name, tag="abc")
    (tmp_path / "inner.yaml").write_text("group: inner\ntask: [c]\n")
    (tmp_path / "outer.yaml").write_text(
        """\
group: outer
num_fewshot: 1
aggregate_metric_list: [{metric: acc}]
task:
  - a
  - {task: b, num_fewshot: 2}
  - {group: inner, num_fewshot: 3}
  - {group: written, task: [{task: here, dataset_path: json}, piqa]}
"""
    )
    (outer,) = expand("outer", Registry([tmp_path]), Rules())
    assert isinstance(outer, Branch)
    assert outer.config["aggregate_metric_list"] == [{"metric": "acc"}]
    found = {leaf.name: leaf.overrides["num_fewshot"] for leaf in outer.leaves()}
    assert found == {"a": 1, "b": 2, "c": 3, "outer::written::here": 1, "piqa": 1}
    assert {leaf.name for leaf in outer.leaves() if leaf.closed} == {"outer::written::here"}


def test_members_of_a_group_in_a_group_keep_their_names(tmp_path: Path) -> None:
    """lm-eval 0.4.13 calls all of MMLU's benchmarks `mmlu` within the group `openllm`."""
    assert "mmlu_anatomy" in {leaf.name for leaf in leaves("openllm")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group: g\ntask: [gone]\n", "the group 'g' has the member 'gone', which no YAML file defines"),
        ("group: g\ntask: [g]\n", "the group 'g' is a member of itself, or a member twice"),
        ("group: g\ntask: [[x]]\n", r"g\.yaml: `task.0`: input should be"),
        ("group: g\n", "the group 'g' lists None"),
        ("group: g\ntask: []\n", "'g' stands for no benchmark"),
    ],
)
def test_a_group_that_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "g.yaml").write_text(content)
    with pytest.raises(InvalidData, match=message):
        leaves("g", tmp_path)


def test_groups_do_not_multiply(tmp_path: Path) -> None:
    """Twenty groups that each list the one before twice stand for a million benchmarks."""
    write_benchmark(tmp_path, "a")
    (tmp_path / "g0.yaml").write_text("group: g0\ntask: [a, a]\n")
    for number in range(1, 19):
        (tmp_path / f"g{number}.yaml").write_text(f"group: g{number}\ntask: [g{number - 1}, g{number - 1}]\n")
    with pytest.raises(InvalidData, match="the group 'g0' is a member of itself, or a member twice; list it once"):
        leaves("g18", tmp_path)
