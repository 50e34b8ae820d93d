"""What `evalsvc suites check` finds, all of it at the first try."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from evalsvc.assets import ASSETS
from evalsvc.config import Settings
from evalsvc.doctor.suite_checks import SuiteReport, check_suite_file
from evalsvc.errors import InvalidSuite
from evalsvc.installation import pip_install
from evalsvc.miniature import ROOT
from evalsvc.spec.images import PROGRAMS

PAIRS = str(ROOT / "heldout_pairs.jsonl")


def report(tmp_path: Path, *tasks: dict[str, Any], **settings: Any) -> SuiteReport:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"tasks": tasks}))
    folders = {"data_dir": str(tmp_path / "data"), "assets": str(tmp_path / "assets")}
    return check_suite_file(path, Settings(**{**folders, **settings}))


def problems(tmp_path: Path, *tasks: dict[str, Any], **settings: Any) -> str:
    return "\n".join(report(tmp_path, *tasks, **settings).problems)


def test_nothing_is_wrong_with_a_suite_that_can_run(tmp_path: Path) -> None:
    found = report(tmp_path, {"kind": "loss", "data": PAIRS}, {"kind": "completions"})
    assert (len(found.tasks), found.problems) == (2, [])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidSuite, match="cannot be read"):
        check_suite_file(tmp_path / "nowhere.yaml", Settings())


def test_every_task_is_looked_at_whatever_is_wrong_with_another(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        {"kind": "loss", "dat": PAIRS, "limt": 3, "limit": 0},
        {"kind": "los"},
        {"kind": "alignment", "data": "/path/to/pairs.jsonl", "tokenizer": "/nowhere.json"},
        {"kind": "loss", "data": "datasets:pairs.jsonl"},
        {"kind": "loss", "data": PAIRS},
    )
    expected = (
        "suite 'mine', task 1 (loss): no key is named 'dat'; did you mean 'data'",
        "suite 'mine', task 1 (loss): no key is named 'limt'; did you mean 'limit'",
        "suite 'mine', task 1 (loss): data: field required; limit: input should be greater",
        "suite 'mine', task 2: no task is named 'los'; did you mean 'loss'",
        "suite 'mine' has two tasks named 'loss'",
        "task 'alignment': data: /path/to/pairs.jsonl is a placeholder; replace it with your own path",
        "task 'alignment': tokenizer: /nowhere.json does not exist; correct the path",
        f"task 'loss': data: {tmp_path}/data/datasets/pairs.jsonl does not exist; add the file",
    )
    assert len(found.problems) == len(expected)
    for problem, words in zip(found.problems, expected, strict=True):
        assert words in problem


def test_what_lies_outside_the_roots(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "pairs.jsonl").touch()
    found = problems(tmp_path, {"kind": "loss", "data": str(tmp_path / "pairs.jsonl")}, roots=str(tmp_path / "open"))
    assert "outside the folders that suites may read" in found
    assert "EVALSVC_ROOTS" in found


def test_assets_and_statistics_that_are_not_there(tmp_path: Path) -> None:
    task = {"kind": "text_to_image", "samples": 4, "decoder": "movqgan-67", "reference": "coco"}
    found = problems(tmp_path, task)
    assert "decoder: no asset is named 'movqgan-67'; did you mean 'movqgan-67M'" in found
    assert "run: evalsvc assets pull inception" in found
    assert "reference: there are no statistics named 'coco'" in found
    (tmp_path / "data" / "statistics").mkdir(parents=True)
    (tmp_path / "data" / "statistics" / "coco.npz").touch()
    assert "reference" not in problems(tmp_path, task).replace("reference import", "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_published_program_as_extractor(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's name is that of no asset; any of the assets that can hold the network's weights will do."""
    task = {"kind": "text_to_image", "samples": 4, "decoder": PAIRS, "extractor": name}
    assert problems(tmp_path, task).startswith("task 'text_to_image': extractor: the asset inception (feature")
    for asset in PROGRAMS[name].assets:
        folder = tmp_path / asset
        folder.mkdir()
        (folder / ASSETS[asset].file).write_bytes(b"weights")
        record = {"name": asset, "source": "", "source_sha256": "", "sha256": "", "size": 7}
        (folder / f"{ASSETS[asset].file}.json").write_text(json.dumps(record))
        assert problems(tmp_path, task, assets=str(folder)) == ""
    there = importlib.util.find_spec
    lacking = PROGRAMS[name].modules[0]
    monkeypatch.setattr(
        "evalsvc.doctor.suite_checks.find_spec", lambda module: None if module == lacking else there(module)
    )
    found = problems(tmp_path, task, assets=str(folder))
    assert found == f"the extractor {name!r} needs the package {lacking!r}; run: {pip_install('reference')}"


def test_packages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's workers have an installation of their own."""
    for module in ("evalsvc.doctor.suite_checks",):
        monkeypatch.setattr(sys.modules[module], "find_spec", lambda name: None)
    task = {"kind": "text_to_image", "samples": 4, "decoder": PAIRS, "clip": "clip-vit-b-32"}
    found = problems(tmp_path, task)
    assert f"a task needs the package 'torch'; run: {pip_install('worker')}" in found
    assert f"the parameter 'clip' needs the package 'transformers'; run: {pip_install('features')}" in found
    assert "pip install" not in problems(tmp_path, task, scheduler="tls://10.0.0.1:8786")


def test_benchmarks_that_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"wrong": 1}\n')
    names = ["arc_esy", "cloze", {"name": "piqa", "data": str(tmp_path / "rows.jsonl")}]
    found = report(tmp_path, {"kind": "language", "benchmarks": names, "include_path": [str(ROOT)]}).problems
    assert len(found) == 2
    assert "no benchmark is named 'arc_esy'; did you mean 'arc_easy'" in found[0]
    assert "task 'language': benchmarks: benchmark 'piqa'" in found[1]
