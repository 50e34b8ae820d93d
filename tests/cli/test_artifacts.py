"""`evalsvc artifacts` and `export`; tests/web/test_site.py has what `export site` writes."""

from pathlib import Path
from typing import Any

import pytest
from console import Shell
from forgetting_reports import content
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.cli.evaluate import _write_artifact
from evalsvc.compare.text_pages import rendered
from evalsvc.files.artifacts import KeptArtifact, artifact_path, keep_content
from evalsvc.web import vega


def test_a_rule_is_given_shown_and_taken_away(evalsvc: Shell, service: Any) -> None:
    shown = "run run-a keeps last 5, every 1000, days 30.0, best coco/fid (the run's rule)\n"
    assert evalsvc("artifacts keep run-a --last 5 --every 1000 --days 30 --best coco/fid").out == shown
    assert evalsvc("artifacts keep run-a").out == shown
    assert evalsvc("artifacts keep --prune").out == "pruned 0 artifacts, freed 0 bytes\n"
    assert evalsvc("artifacts keep --prune --dry-run").out == "0 artifacts would be pruned, 0 bytes\n"
    assert evalsvc("artifacts keep run-a --default").out == "run run-a keeps all artifacts\n"


def test_a_report_is_fetched_in_its_forms(evalsvc: Shell, service: Any, tmp_path: Path) -> None:
    report = content()
    sha256 = keep_content(service.settings.artifacts_path, report)
    enter(service.store, submission(5), suite())
    kept = KeptArtifact("forgetting", "forgetting.json", "application/json", {}, sha256, len(report))
    evaluate_whole(service.store, artifacts=[kept])
    assert evalsvc("artifacts get 1 --as text").out.startswith("artifact-1.txt: text/plain; charset=utf-8, ")
    assert (tmp_path / "artifact-1.txt").read_text() == rendered("forgetting", report, "text")
    assert evalsvc("artifacts get 1 --as csv").code == 0
    assert (tmp_path / "artifact-1.csv").read_text().startswith("what,metric,scope")
    assert evalsvc("artifacts get 1 --output -").out == report.decode()


def test_a_result_on_disk_has_the_forms_of_its_reports(tmp_path: Path) -> None:
    artifact = {"kind": "forgetting", "name": "forgetting.json", "content": content()}
    assert _write_artifact(artifact, tmp_path / "kept")["path"] == str(tmp_path / "kept" / "forgetting.json")
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {"forgetting.json", "forgetting.txt", "forgetting.csv"}


@pytest.fixture
def grids(service: Any) -> None:
    """Artifact 1 is the grid of run-a@5; 2 and 3, of run-a@10, have a name that leads out of the folder."""
    for step, (grid, name) in {5: (b"one", "grid.png"), 10: (b"two", "../../.bashrc")}.items():
        enter(service.store, submission(step), suite(tasks=step // 5))
        evaluate_whole(
            service.store, artifacts=[kept_artifact(keep_content(service.settings.artifacts_path, grid), name)]
        )


def test_artifacts_are_listed(evalsvc: Shell, grids: None) -> None:
    listed = [row[:4] for row in evalsvc("artifacts list run-a").cells if row and row[0].isdigit()]
    at = {"1": ("run-a@5", "loss-0"), "2": ("run-a@10", "loss-0"), "3": ("run-a@10", "loss-1")}
    assert listed == [[number, *where, "grid"] for number, where in at.items()]
    listed = evalsvc("artifacts list run-a --step 5 --format json").json["artifacts"]
    assert [artifact["id"] for artifact in listed] == [1]


def test_a_grid_is_fetched_whole_by_its_checkpoint_or_id(
    evalsvc: Shell, service: Any, grids: None, tmp_path: Path
) -> None:
    """The name that others gave names no file."""
    for line, name, grid in (
        ("run-a@5", "run-a-5.png", b"one"),
        ("2", "artifact-2.png", b"two"),
        ("run-a@10 --task loss-1 --output two.png", "two.png", b"two"),
    ):
        assert evalsvc(f"artifacts get {line}").out == f"{name}: image/png, 3 bytes\n"
        assert (tmp_path / name).read_bytes() == grid
    assert {path.name for path in tmp_path.iterdir() if path.suffix} == {"run-a-5.png", "artifact-2.png", "two.png"}
    refused = evalsvc("artifacts get run-a@5")
    assert (refused.code, "the file run-a-5.png exists; name another file by --output" in refused.err) == (2, True)
    path = artifact_path(service.settings.artifacts_path, keep_content(tmp_path / "kept", b"one"))
    path.chmod(0o600)
    path.write_bytes(b"ONE")
    assert evalsvc("artifacts get run-a@5 --output lost.png").code == 2
    assert not (tmp_path / "lost.png").exists()


def test_pages_are_exported_once_with_their_size(evalsvc: Shell, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "is_installed", lambda: False)
    enter(service.store, submission(0), suite("loss"))
    evaluate_whole(service.store, metric(2.5))
    done = evalsvc("export site run-a run-a --output copy")
    files = {path: path.read_bytes() for path in Path("copy").rglob("*") if path.is_file()}
    assert done.out.startswith(f"copy/index.html: {len(files)} files, "), done.err
    assert "pages" in done.err
    assert "the pages have tables and no charts; for charts: pip install" in done.err
    again = evalsvc("export site run-a --output copy")
    assert (again.code, again.out) == (2, "")
    assert "the folder copy has files; give a folder that is empty or does not exist" in again.err
    assert {path: path.read_bytes() for path in Path("copy").rglob("*") if path.is_file()} == files
