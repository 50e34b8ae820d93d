"""`evalsvc assets`, `reference` and `benchmarks`."""

from pathlib import Path

import numpy
import pytest
from benchmark_files import questions, write_benchmark, write_rows
from console import Shell

from evalsvc.assets import ASSETS, Asset, Source
from evalsvc.files.kept import KeptFolder
from evalsvc.tasks.reference_statistics import load_reference


@pytest.mark.usefixtures("wide_pipe")
def test_assets_are_listed_and_pulled_from_a_file(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = evalsvc("assets list")
    assert {row[0]: row[1] for row in result.cells if "MB" in row} == dict.fromkeys(ASSETS, "-"), result.err
    monkeypatch.setitem(ASSETS, "decoder", Asset("decoder", "kept.ckpt", 5, "decoding", (Source("https://a/b", None),)))
    (tmp_path / "mine.ckpt").write_bytes(b"weights")
    pulled = tmp_path / "home" / "evalsvc" / "assets" / "kept.ckpt"
    assert evalsvc("assets pull decoder --from mine.ckpt").out == f"decoder: {pulled}\n"
    assert pulled.read_bytes() == b"weights"
    [row] = [row for row in evalsvc("assets list").cells if row[:1] == ["decoder"]]
    assert (row[1], str(tmp_path / "mine.ckpt") in row) == ("installed", True)


def test_statistics_are_imported(evalsvc: Shell, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", mu=numpy.zeros(64), sigma=numpy.eye(64))
    saved = tmp_path / "home" / "evalsvc" / "shared" / "statistics" / "theirs.npz"
    assert evalsvc("reference import x.npz --name theirs --n 30000").out == f"theirs: {saved}\n"
    assert load_reference("theirs", KeptFolder(saved.parent)).foreign


def test_benchmarks_are_listed_with_their_origin_and_prepared(evalsvc: Shell, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.yaml").write_text("task: arc_of_ones_own\n")
    rows = {row[0]: row[1:] for row in evalsvc("benchmarks list arc_ --include-path own").cells if row}
    assert rows["arc_easy"] == ["benchmark", "arc/arc_easy.yaml"]
    assert rows["arc_of_ones_own"] == ["benchmark", "own/a.yaml"]
    write_benchmark(tmp_path, "mine", dataset_kwargs={"data_files": {"test": "datasets:rows.jsonl"}})
    write_rows(tmp_path / "home" / "evalsvc" / "datasets" / "rows.jsonl", questions(2))
    result = evalsvc("benchmarks prepare mine --include-path .")
    assert (result.code, result.out, result.err) == (0, "mine: needs no data set of the hub\n", "")
