"""What a checkpoint has forgotten: the bundled run, and stories260K that was trained on images."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from benchmark_files import questions, write_benchmark
from gate_documents import read_document
from miniature_run import LAYOUT, pretrained, stories
from programs import environment_without
from task_runs import artifacts, error, metrics, notes, run_stage, run_task

from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.compare.contrast import contrast_results
from evalsvc.compare.text_pages import forgetting_page
from evalsvc.files.kept import ANSWERS, KeptFolder
from evalsvc.installation import pip_install
from evalsvc.miniature import ROOT
from evalsvc.spec.documents.text_reports import ForgettingReport
from evalsvc.tasks.forgetting import work
from evalsvc.tasks.language.work import keep_answers

TEXT = str(ROOT / "heldout_text.jsonl")

FIRST, SECOND, LAST = pretrained(0), pretrained(1), pretrained(5)


@pytest.fixture
def benchmarks(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "benchmarks"
    write_benchmark(folder, "sums", questions(12), fewshot_split="test")
    write_benchmark(folder, "more", questions(7, first=20), fewshot_split="test")
    return {"benchmarks": ["sums", "more"], "include_path": [str(folder)]}


def evaluate(checkpoint: CheckpointRef, base: Any, kind: str = "forgetting", **parameters: Any) -> dict[str, Any]:
    return run_task(checkpoint, base, kind=kind, name="forgetting", **parameters)


def stage(stage: str, base: CheckpointRef, *shards: Any, of: CheckpointRef = SECOND, **parameters: Any) -> Any:
    return run_stage(stage, of, base, shards, kind="forgetting", **parameters)


def report(result: Mapping[str, Any]) -> ForgettingReport:
    [content] = artifacts(result).values()
    return ForgettingReport.model_validate_json(content)


def test_english_is_forgotten(benchmarks: dict[str, Any]) -> None:
    found = evaluate(LAST, FIRST, text=TEXT, text_limit=20, icl_positions=(5, 60), icl=True, **benchmarks)
    by_name = metrics(found)
    assert by_name["forgetting/kl"]["value"] > by_name["forgetting/kl_within"]["value"] > 1
    assert by_name["forgetting/top1_agreement"]["value"] < 0.2
    change = by_name["forgetting/loss_change"]
    assert change["value"] > max(3, 20 * change["stderr"]), "the effect that the bundled run is there to show"
    assert by_name["forgetting/loss"]["value"] > by_name["forgetting/loss_within"]["value"]
    assert (notes(found)["texts"], notes(found)["base_sha256"]) == (20, hash_files(Path(FIRST.path)))
    counted = notes(found)["text_retained"]
    assert set(counted["counted"]) == {"sums", "more"} >= set(counted["at_chance"])


def test_losses_are_those_of_the_loss_task() -> None:
    """Two tasks that disagree about the loss of the same text would both be doubted."""
    found = evaluate(SECOND, FIRST, text=TEXT, text_limit=8)
    compared, alone = metrics(found), metrics(evaluate(SECOND, None, "loss", data=TEXT, limit=8))
    assert notes(found)["icl_loss"] == "no text has predicted tokens at both places 50 and 500"
    assert found["protocols"][compared["forgetting/kl"]["protocol"]]["text_prefix"] is None
    for name, same in (("loss", "text"), ("loss_within", "text_within"), ("image_mass", "image_mass")):
        one, other = compared[f"forgetting/{name}"], alone[f"forgetting/{same}"]
        for key in ("unit", "direction", "baseline", "n"):
            assert one[key] == other[key]
        assert [one["value"], one["stderr"]] == pytest.approx([other["value"], other["stderr"]], rel=1e-6)


def test_benchmarks_are_in_the_series_of_the_language_task(benchmarks: dict[str, Any]) -> None:
    """The history of `sums/acc` must not break where a suite goes over to `forgetting`."""
    compared = metrics(evaluate(SECOND, FIRST, **benchmarks))
    alone = metrics(evaluate(SECOND, None, "language", **benchmarks))
    assert {name: metric for name, metric in compared.items() if not name.startswith("forgetting/")} == alone


def test_all_that_is_left_pairs_with_another_checkpoint(benchmarks: dict[str, Any]) -> None:
    """Metrics that compare with the base would otherwise be compared by errors that leave out what both share."""
    given = {"text": TEXT, "text_limit": 12, "icl_positions": (5, 60), "icl": True, **benchmarks}
    sides = [read_document(name, evaluate(side, FIRST, **given)) for name, side in (("a", SECOND), ("b", LAST))]
    contrasts = [contrast for contrast in contrast_results(*sides) if contrast.distance is not None]
    names = ("kl", "top1_agreement", "centred", "sums_lost", "more_gained_within", "sums_acc_change")
    assert {f"forgetting/{name}" for name in names} <= {contrast.metric.name for contrast in contrasts}
    assert {contrast.distance.basis for contrast in contrasts} == {"paired"}


def test_the_base_beside_itself_has_forgotten_nothing(benchmarks: dict[str, Any], tmp_path: Path) -> None:
    """Exactly nothing: the first point of a curve of differences is 0, not rounding. A copy is the same checkpoint."""
    run = shutil.copytree(ROOT / "runs" / "pretrained", tmp_path / "run")
    same = CheckpointRef(str(run / "checkpoints" / "epoch_0.pt"), layout=FIRST.layout, label="copy")
    by_name = metrics(evaluate(same, FIRST, text=TEXT, text_limit=4, icl_positions=(2, 9), **benchmarks))
    for name, metric in by_name.items():
        if name.endswith("_change") or "/kl" in name:
            # Answers that are all alike leave the error of a share, numbers none.
            assert (metric["value"], metric["stderr"] == 0) == (0, metric["unit"] != "fraction"), name
    assert by_name["forgetting/top1_agreement"]["value"] == 1
    plan = stage("plan", FIRST, of=same, **benchmarks)
    assert {shard["part"] for shard in plan.shards} == {"checkpoint"}


def test_what_is_left_to_be_read(benchmarks: dict[str, Any]) -> None:
    given = {"benchmarks": ["cloze"], "include_path": [str(ROOT)], "sample": 60, "flipped": 4}
    found = evaluate(LAST, FIRST, text=TEXT, text_limit=8, **given)
    by_name, left = metrics(found), report(found)
    rows = {row.key: row for row in left.rows}
    assert len(rows) == 6
    for end, scope in (("", "all"), ("_within", "text")):
        row = rows["cloze", "acc", scope]
        assert (row.n, row.verdict, row.chance) == (60, "lost", 0.25)
        for column, scale in (("retained", 1), ("lost", 60), ("gained", 60)):
            assert by_name[f"forgetting/cloze_{column}{end}"]["value"] == pytest.approx(getattr(row, column) / scale)
        bits, loss = rows["cloze", "bits_per_byte", scope], rows["text", "loss", scope]
        for name, expected in (("cloze_acc", row), ("cloze_bits_per_byte", bits), ("loss", loss)):
            change = by_name[f"forgetting/{name}{end}_change"]
            assert change["value"] == pytest.approx(expected.change)
            assert change["stderr"] == pytest.approx(expected.change_stderr, rel=1e-5)
    assert by_name["forgetting/centred"]["value"] == pytest.approx((by_name["cloze/acc"]["value"] - 0.25) / 0.75)
    [flipped] = left.flipped
    assert len(flipped.questions) == 4
    items = {item["index"]: item for item in found["items"]["forgetting"] if item["benchmark"] == "cloze"}
    for flip in flipped.questions:
        right = [answer in flip.right for answer in (flip.checkpoint, flip.checkpoint_within)]
        assert right == [items[flip.index][key] == 1 for key in ("acc", "acc_within")]
    row = rows["cloze", "acc", "all"]
    assert (flipped.lost, flipped.gained) == (row.lost, row.gained)
    page = forgetting_page(left)
    assert page.startswith("base        run 'pretrained' epoch 0\ncheckpoint  run 'pretrained' epoch 5\n")
    assert flipped.questions[0].right[0] in page


def test_questions_without_room_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of long passages would fill the disk with one report."""
    monkeypatch.setattr(work, "MAX_FLIPPED_TEXT", 1000)
    [flipped] = report(evaluate(LAST, FIRST, benchmarks=["cloze"], include_path=[str(ROOT)], sample=60)).flipped
    assert 0 < len(flipped.questions) < flipped.left_out
    assert sum(len(question.model_dump_json()) for question in flipped.questions) <= 1000


def test_shards_and_batches_move_nothing(benchmarks: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"text": TEXT, "text_limit": 9, "icl_positions": (5, 60), "icl": ["more"], **benchmarks}
    whole = evaluate(SECOND, FIRST, **given)
    monkeypatch.setenv("EVALSVC_BATCH_TOKENS", "300")
    cut = evaluate(SECOND, FIRST, **given, shard_size=5, text_shards=4)
    for name, metric in metrics(cut).items():
        same = metrics(whole)[name]
        rounded = {name: metric[name] for name in ("stderr", "low", "high")}
        assert metric == {**same, "value": pytest.approx(same["value"], abs=1e-5), **rounded}
    keys = [(name, index) for name, n in (("sums", 12), ("more", 7), ("forgetting", 12)) for index in range(n)]
    for result in (whole, cut):
        assert [(item["benchmark"], item["index"]) for item in result["items"]["forgetting"]] == keys


def test_icl_is_five_fixed_shots_less_none(benchmarks: dict[str, Any]) -> None:
    found = metrics(evaluate(FIRST, FIRST, icl=["sums"], num_fewshot=2, **benchmarks))
    alone = [evaluate(FIRST, None, "language", num_fewshot=n, fewshot="first", **benchmarks) for n in (5, 0)]
    few, zero = (metrics(result)["sums/acc"]["value"] for result in alone)
    assert found["forgetting/sums_icl"]["value"] == pytest.approx(few - zero, abs=1e-12)
    assert "forgetting/more_icl" not in found
    sampled = metrics(evaluate(FIRST, FIRST, icl=["sums"], num_fewshot=2, sample=7, **benchmarks))
    assert sampled["forgetting/sums_icl"]["n"] == 7, "at any number of shots the same documents are drawn"


def test_the_bases_answers_are_kept(benchmarks: dict[str, Any], data_dir: Path) -> None:
    """They are the same for every checkpoint of a run, and half of the work."""
    [shard] = [shard for shard in stage("plan", FIRST, **benchmarks).shards if shard["part"] == "base"]
    answers = msgpack.unpackb(stage("run", FIRST, shard, **benchmarks))["answers"]
    folder = data_dir / "shared" / "statistics"
    [file] = (folder / ANSWERS).rglob("*.json")
    content = json.loads(file.read_bytes().partition(b"\n")[2])
    assert len(content["answers"]) == len(answers)
    # Whoever finds them does not compute them: what was put there comes back, also for another checkpoint.
    kept = [["kept", "kept", False]]
    keep_answers(KeptFolder(folder), content["key"], dict.fromkeys(content["answers"], kept))
    again = msgpack.unpackb(stage("run", FIRST, shard, of=LAST, **benchmarks))
    assert again["answers"] == [kept] * len(answers)
    # Another base, or another way to run it, is another folder.
    other = stage("plan", SECOND, of=LAST, **benchmarks).shards
    stage("run", SECOND, next(shard for shard in other if shard["part"] == "base"), of=LAST, **benchmarks)
    stage("run", FIRST, shard, of=LAST, dtype="bfloat16", **benchmarks)
    assert len(list((folder / ANSWERS).iterdir())) == 3


def test_no_task_asks_again_what_another_has_asked(benchmarks: dict[str, Any]) -> None:
    """What is found is what would be computed, but for rounding, and to the last bit where the batches are the same."""
    evaluate(FIRST, None, "language", **{**benchmarks, "benchmarks": ["more"]})
    evaluate(SECOND, None, "language", **benchmarks, shard_size=5)
    first, again = (evaluate(SECOND, FIRST, icl=["sums"], **benchmarks) for _ in range(2))
    assert (again["items"], again["metrics"]) == (first["items"], first["metrics"])
    shards = [result["provenance"]["forgetting"]["shards"] for result in (first, again)]
    sums, more = 3 * 12, 3 * 7
    # The checkpoint's, the base's of one benchmark and none of five shots; then all.
    expected = [[sums + more, more, 0], [sums + more, sums + more, sums]]
    assert [[shard["answers_reused"] for shard in each] for each in shards] == expected


def test_a_run_without_a_base_is_told_how_to_get_one() -> None:
    words = r"invalid_request: task 'forgetting' compares .* step 0, .* PUT /v1/runs/\{run\}/base, or .*--base"
    assert re.match(words, error(evaluate(SECOND, None, text=TEXT)))


@pytest.mark.parametrize("part", ["text", "base"])
def test_a_base_that_became_another_is_noticed(benchmarks: dict[str, Any], part: str) -> None:
    """Half of the shards against one base and half against another would be a number of neither."""
    given = {"text": TEXT, "text_limit": 3, **benchmarks}
    shard = next(shard for shard in stage("plan", FIRST, **given).shards if shard["part"] == part)
    found = stage("run", LAST, shard, **given)
    words = "the base, run 'pretrained' epoch 5, has changed since this evaluation was planned"
    assert (found.code, words in found.message) == ("data_changed", True)


def test_a_base_with_another_tokenizer_is_refused(benchmarks: dict[str, Any], tmp_path: Path) -> None:
    """Its ids are other words: every number would be there, and nonsense."""
    given = {"text": TEXT, "text_limit": 2}
    other = tmp_path / "tokenizer.json"
    other.write_text((ROOT / "tokenizer.json").read_text() + "\n")
    message = error(evaluate(SECOND, pretrained(0, text=LAYOUT["text"] | {"tokenizer": str(other)}), **given))
    words = (
        "invalid_data: the base, run 'pretrained' epoch 0, has a tokenizer with sha256 .* the checkpoint's tokenizer"
    )
    assert re.fullmatch(words, message)
    # Of another size: padding, as far as the tokenizer says so.
    layout = {"rows": 583, "text": {"size": 500}, "image": {"offset": 512, "size": 64}}
    short, unknown = CheckpointRef(FIRST.path, layout=layout, label="y"), LAYOUT["text"] | {"tokenizer": None}
    message = error(evaluate(pretrained(1, text=unknown), short, **given))
    assert "the base, y, has 500 text rows, the checkpoint has 512; if the rest is padding" in message
    assert "the base, y, has other text: the tokenizer" in error(evaluate(SECOND, short, **given, **benchmarks))


def test_a_base_before_it_was_widened_is_compared_by_its_text(tmp_path: Path) -> None:
    """The rows behind the tokenizer's ids are padding to it, and the template's tokens are no part of its text."""
    padded = CheckpointRef(FIRST.path, layout={"text": {"size": 583}}, label="all text")
    result = evaluate(SECOND, padded, text=TEXT, text_limit=4)
    found = metrics(result)
    assert found["forgetting/kl"]["value"] > found["forgetting/kl_within"]["value"] > 0
    assert "base_layout" in result["protocols"][found["forgetting/loss"]["protocol"]]


def test_equal_texts_are_one_group(tmp_path: Path) -> None:
    lines = Path(TEXT).read_text().splitlines()[:10]
    results = []
    for times in (1, 2):
        (tmp_path / f"{times}.jsonl").write_text("\n".join(lines * times))
        results.append(evaluate(SECOND, FIRST, text=str(tmp_path / f"{times}.jsonl"), text_shards=3))
    once, twice = results
    for name, metric in metrics(once).items():
        other = metrics(twice)[name]
        assert (other["n"], other["groups"], other["grouped_by"]) == (2 * metric["n"], metric["n"], "text_group"), name
        assert [other["value"], other["stderr"]] == pytest.approx([metric["value"], metric["stderr"]], rel=1e-5), name
        assert (metric["groups"], metric["grouped_by"]) == (None, None)
        assert twice["protocols"][other["protocol"]]["groups"] == 10
        assert "groups" not in once["protocols"][metric["protocol"]]
    rows = [report(result).rows[0] for result in (twice, once)]
    row, same = ([each.change_stderr, each.change_low, each.change_high, each.p] for each in rows)
    assert row == pytest.approx(same, rel=1e-4)


WITHOUT_LM_EVAL = """
import json
import re
from miniature_run import pretrained
from task_runs import run_task
base, trained, text = pretrained(0), pretrained(1), {text!r}
found = run_task(trained, base, kind="forgetting", text=text, text_limit=5)
asked = run_task(trained, base, kind="forgetting", text=text, benchmarks=["arc_easy"])
print(json.dumps([found["errors"], [metric["name"] for metric in found["metrics"]], asked["errors"]]))
"""


@pytest.mark.usefixtures("child_process")
def test_texts_are_compared_where_lm_eval_is_not_installed(tmp_path: Path) -> None:
    environment = environment_without("lm_eval", tmp_path / "hidden", Path(__file__).parents[2] / "support")
    words = [sys.executable, "-c", WITHOUT_LM_EVAL.format(text=TEXT)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors, names, asked = json.loads(done.stdout.splitlines()[-1])
    assert (errors, asked["forgetting"]["code"], "forgetting/kl" in names) == ({}, "missing_package", True)
    assert f"a benchmark needs the package 'lm-eval'; run: {pip_install('worker')}" in asked["forgetting"]["message"]


def test_a_task_must_not_have_the_name_of_a_benchmark(benchmarks: dict[str, Any]) -> None:
    found = stage("plan", FIRST, name="sums", **benchmarks)
    assert (found.code, "has the name of a benchmark" in found.message) == ("invalid_suite", True)


# a real model that was trained on images, with and without replay of its text


STORIES = {
    "step0": (1.1693, 1.1693, 0, 1.0000, 0.0000),
    "imgonly_step25": (7.4993, 6.9397, 6.3187, 0.0449, 0.4257),
    "imgonly_step400": (13.0095, 7.9932, 11.8360, 0.0003, 0.9911),
    "replay_step25": (1.2512, 1.2512, 0.0809, 0.8734, 0.0000),
}
HELD_OUT = "golden/stories260k_openlm/forgetting/heldout_stories.jsonl"


@pytest.mark.parametrize("name", STORIES)
def test_the_table_of_the_stories(shared: Path, name: str) -> None:
    """An independent computation of the same numbers."""
    of_text = {"text": str(shared / HELD_OUT)}
    found = metrics(evaluate(stories(shared, f"t2i_260k_{name}"), stories(shared, "t2i_260k_step0"), **of_text))
    names = ("loss", "loss_within", "kl", "top1_agreement", "image_mass", "loss_change", "loss_within_change")
    changes = [STORIES[name][column] - STORIES["step0"][column] for column in (0, 1)]
    values = [found[f"forgetting/{metric}"]["value"] for metric in names]
    assert values == pytest.approx([*STORIES[name], *changes], abs=1e-3)
