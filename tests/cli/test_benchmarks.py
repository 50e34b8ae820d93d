"""`evalsvc benchmarks`."""

from pathlib import Path

from benchmark_files import questions, write_benchmark, write_rows
from console import Command


def test_list_shows_where_a_name_comes_from(command: Command, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.yaml").write_text("task: arc_of_ones_own\n")
    result = command("benchmarks", "list", "arc_", "--include-path", "own")
    assert (result.code, result.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if "arc_" in line}
    assert rows["arc_easy"] == ["benchmark", "arc/arc_easy.yaml"]
    assert rows["arc_of_ones_own"] == ["benchmark", "own/a.yaml"]


def test_prepare_of_what_is_local(command: Command, tmp_path: Path) -> None:
    rows = tmp_path / "home" / "evalsvc" / "datasets" / "rows.jsonl"
    write_benchmark(tmp_path, "mine", dataset_kwargs={"data_files": {"test": "datasets:rows.jsonl"}})
    write_rows(rows, questions(2))
    result = command("benchmarks", "prepare", "mine", "--include-path", ".")
    assert (result.code, result.out, result.err) == (0, "mine: needs no data set of the hub\n", "")
