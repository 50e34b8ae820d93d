"""`evalsvc evaluations`, `cancel`, `retry`, `items`, `completions`, `artifacts` and `export`."""

from pathlib import Path
from typing import Any

import pytest
from console import Shell
from example_documents import example
from forgetting_reports import content
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.cli.evaluate import _write_artifact
from evalsvc.cli.items import print_completions
from evalsvc.compare.text_pages import rendered
from evalsvc.files.artifacts import KeptArtifact, artifact_path, keep_content
from evalsvc.messages import ShardError
from evalsvc.spec.documents.results import Completion, StepCompletions
from evalsvc.web import vega


@pytest.fixture
def failed(evalsvc: Shell, service: Any, weights: Path) -> None:
    service.coordinator.working = True
    service.coordinator.error = ShardError("checkpoint_changed", "the file has another size; post it with replace=true")
    assert evalsvc(f"submit run-a 25 {weights} --suite loss").code == 0
    service.coordinator.working = False
    assert evalsvc(f"submit run-a 50 {weights} --suite loss").code == 0


@pytest.mark.usefixtures("failed")
def test_evaluations_are_listed(evalsvc: Shell) -> None:
    assert [row[:4] for row in evalsvc("evaluations").cells if row[:1] in (["1"], ["2"])] == [
        ["2", "run-a@50", "loss", "queued"],
        ["1", "run-a@25", "loss", "failed"],
    ]
    assert "checkpoint_changed" in evalsvc("evaluations run-a --state failed").out
    found = evalsvc("evaluations --from 50 --format json").json
    assert [evaluation["id"] for evaluation in found["evaluations"]] == [2]
    assert "no evaluation matches" in evalsvc("evaluations --state cancelled").out


@pytest.mark.usefixtures("failed")
def test_a_failure_is_shown_whole_with_its_cure(evalsvc: Shell) -> None:
    shown = evalsvc("evaluations 1").out
    assert "evaluation 1 of run-a@25 by suite loss: failed" in shown
    assert "failed: the file has another size; post it with --replace [checkpoint_changed]" in shown
    assert "  checkpoint_changed: " in shown, "the meaning of the code"
    assert "after the cause is removed: evalsvc retry 1" in shown
    assert evalsvc("evaluations 1 --format json").json["state"] == "failed"


@pytest.mark.usefixtures("failed")
def test_cancelling_retrying_and_waiting(evalsvc: Shell, service: Any) -> None:
    waited = evalsvc("evaluations 1 --wait")
    assert (waited.code, "post it with --replace [checkpoint_changed]" in waited.err) == (1, True)
    assert evalsvc("cancel 2").out == "evaluation 2: cancelled\n"
    assert evalsvc("retry 1 2").out == "evaluation 1: queued\nevaluation 2: queued\n"
    service.coordinator.error = None
    service.coordinator.work()
    assert "loss/text" in evalsvc("evaluations 1 2 --wait").out


def test_the_suite_of_an_evaluation_outlives_the_suite(evalsvc: Shell, service: Any) -> None:
    enter(service.store, submission(5), suite())
    shown = evalsvc("evaluations 1 --tasks").out
    assert shown.startswith("suite quick of evaluation 1, deleted since; digest ")
    assert '  data: "/data.jsonl"' in shown


def test_again_says_what_it_costs_and_asks(evalsvc: Shell, service: Any, weights: Path) -> None:
    for step in (10, 20, 30, 40):
        evalsvc(f"submit run-a {step} {weights}")
    evalsvc(f"submit run-a 10 {weights} --suite loss")
    evaluate_whole(service.store, metric(2.0))
    evalsvc(f"submit run-a 20 {weights} --suite loss")
    asked = evalsvc("retry run-a@10..30 --suite loss")
    first, second = asked.out.splitlines()
    assert first == (
        "3 checkpoints in the selection: 1 evaluated by the present version of suite loss, 0 only by an earlier "
        "version; 1 queued or running, which are left out"
    )
    assert second.startswith("2 evaluations in about ")
    question = "the command would queue 2 evaluations, and standard input is no terminal"
    assert (asked.code, question in asked.err) == (2, True)
    for line, last in (
        ("retry run-a@10..30 --suite loss --missing --yes", "evaluation 3 of run-a@30: queued"),
        ("retry run-a@10..40/20 --suite loss --yes", "evaluation 4 of run-a@10: queued"),
        ("retry run-a@20..30 --suite loss", "no checkpoint is left to evaluate"),
    ):
        done = evalsvc(line)
        assert (done.code, done.out.splitlines()[-1]) == (0, last)


def test_items_are_shown_in_part_and_written_whole(evalsvc: Shell, service: Any, tmp_path: Path) -> None:
    items = [{"index": index, "nll": 1.5 * index, "text": "a" * 100, "ids": [index]} for index in range(30)]
    enter(service.store, submission(5), suite())
    evaluate_whole(service.store, metric(2.0), items=items)
    enter(service.store, submission(10), suite())
    shown = evalsvc("items 1 --limit 3")
    assert "loss-0: 30 items" in shown.out
    assert ["index", "nll", "text", "ids"] in shown.cells
    assert "the first 3 are shown; --format csv --output FILE writes all" in shown.out
    assert "a" * 61 not in shown.out, "a long text would hide the other columns"
    written = evalsvc("items 1 --format csv --output items.csv")
    assert (written.code, written.out) == (0, ""), written.err
    rows = evalsvc("items 1 --format csv").rows
    assert (len(rows), rows[2]["task"], rows[2]["nll"], rows[2]["ids"]) == (30, "loss-0", "3.0", "[2]")
    assert len((tmp_path / "items.csv").read_text().splitlines()) == 31
    assert evalsvc("items 1 --column nll --format json").json["items"]["loss-0"][1] == {"nll": 1.5}
    assert evalsvc("items 2").out == "evaluation 2 has no results per item; its state is queued\n"


def test_a_completion_keeps_to_the_width_and_counts_image_tokens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line was 300 characters of `‹image 29›`."""
    monkeypatch.setattr("evalsvc.cli.items.terminal_width", lambda: 60)
    text = "".join(["a word of many " * 8, *(f"‹image {code}›" for code in range(31)), " and ‹image 7›"])
    found = [example(Completion, prompt="cheese =>", way="greedy", text=text, base=None)]
    print_completions([example(StepCompletions, step=10, variant="raw", completions=found)], everything=False)
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 60
    assert all("│" in line for line in shown[1:-1])
    assert "‹31 image tokens› and ‹image 7›" in " ".join(line.partition("│ ")[2] for line in shown)


@pytest.fixture
def completed(service: Any) -> None:
    for step, text in ((0, " fromage"), (400, " I love\ncheese\x1b[2J")):
        enter(service.store, submission(step), suite(kind="completions"))
        items = [
            {"prompt": prompt, "way": way, "text": text + mark, "base": " fromage" + mark}
            for prompt in ("one\ntwo", "cheese =>")
            for way, mark in (("greedy", ""), ("seed 0", "!"))
        ]
        evaluate_whole(service.store, items=items)


def test_completions_are_shown_prompt_by_prompt_with_the_base_first(
    evalsvc: Shell, service: Any, completed: None
) -> None:
    assert evalsvc("completions run-a --prompt cheese").out.splitlines() == [
        "cheese =>",
        "  base     │  fromage",
        "  step 0   │  fromage",
        "  step 400 │  I love⏎cheese\\x1b[2J",
        "",
    ]
    assert evalsvc("completions run-a").out.startswith("one\ntwo\n  base     │")
    lines = evalsvc("completions run-a --prompt cheese --all").out.splitlines()
    assert [line.split("│")[0].strip() for line in lines[1:-1]] == [
        f"{what}{way}" for what in ("base", "step 0", "step 400") for way in ("", " seed 0")
    ]
    refused = evalsvc("completions run-a --prompt cheese>")
    assert (refused.code, "did you mean 'cheese =>'" in refused.err) == (2, True)
    enter(service.store, submission(0, run="run-b"))
    assert "run run-b has no completions yet; evaluate a suite" in evalsvc("completions run-b").out
    rows = evalsvc("completions run-a --prompt cheese --format csv").rows
    assert [(row["step"], row["way"]) for row in rows[:2]] == [("0", "greedy"), ("0", "seed 0")]


def test_the_numbers_of_each_completion(evalsvc: Shell, service: Any) -> None:
    """A base has no repetition of its own, a first step no step before it, and an image no loss of the base."""
    judged = {"base_own_nll": 1.5, "base_own_scored": 2}
    for step, ids, more in (
        (0, [1, 2], {"image_ids": 0, "seq_rep_4": None, "base_nll": 1.5, "base_scored": 2}),
        (400, [1, 900, 900, 900, 900], {"image_ids": 4, "seq_rep_4": 0.5, "base_nll": 0.0, "base_scored": 0}),
    ):
        enter(service.store, submission(step), suite(kind="completions"))
        item = {"prompt": "one", "way": "greedy", "text": f"at {step}", "base": "two", "base_ids": [1, 2]}
        evaluate_whole(service.store, items=[item | judged | more | {"ids": ids, "drawn": len(ids)}])
    assert evalsvc("completions run-a").out.splitlines() == [
        "one",
        "            ids  image  seq-rep-4  base loss  of ids  kept  edits │",
        "  base        2                         0.75       2              │ two",
        "  step 0      2      0                  0.75       2              │ at 0",
        "  step 400    5      4       0.50                  0     1      4 │ at 400",
        "",
    ]


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
