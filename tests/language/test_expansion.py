from pathlib import Path

import pytest
from benchmark_files import write_benchmark

from evalsvc.errors import InvalidData
from evalsvc.language.catalog import Registry
from evalsvc.language.definitions import Rules
from evalsvc.language.expansion import Branch, Leaf, expand


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
