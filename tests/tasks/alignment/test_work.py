"""Image tokens against text tokens: the bundled runs as they are, trained to align, and begun anew from that."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import task_runs
import torch
from doc_blocks import DOCS, find_block
from metric_items import value_of_items
from miniature_run import LAYOUT, pretrained
from task_runs import artifacts, error, notes, run_stage, run_task

from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.miniature import ROOT
from evalsvc.models import load_model
from evalsvc.models.image_rows import read_image_rows
from evalsvc.spec.layout import parse_layout
from evalsvc.tasks.alignment import learned as learned_alignment

HELD_OUT, TRAINING = str(ROOT / "heldout_pairs.jsonl"), str(ROOT / "training_pairs.jsonl")
SHORT = {"steps": 40, "batch": 128, "rate": 0.1}
PAGE = DOCS / "how-to" / "write-a-suite.md"


def evaluate(checkpoint: CheckpointRef, **parameters: Any) -> dict[str, Any]:
    parameters = {"data": HELD_OUT, "permutations": 99, **parameters}
    return run_task(checkpoint, kind="alignment", **parameters)


def metrics(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name.removeprefix("alignment/"): metric for name, metric in task_runs.metrics(result).items()}


def protocols(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each metric."""
    return {name: result["protocols"][metric["protocol"]] for name, metric in metrics(result).items()}


AS_IT_IS = {
    "loss_fitted",
    *(f"{way}_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    *(f"cosine_{what}" for what in ("excess", "between", "text", "image")),
    *("p_value", "neighbour_p_value", "neighbour_p_value_centred"),
    *("neighbour_hits", "neighbour_hits_centred", "subspace_overlap"),
}


def test_metrics_say_what_they_are_and_what_is_known_without_a_model() -> None:
    found = evaluate(pretrained(5))
    by_name = metrics(found)
    assert set(by_name) == AS_IT_IS
    for name, metric in by_name.items():
        if metric["items"]:
            assert metric["value"] == pytest.approx(value_of_items(metric, found["items"]["alignment"]), abs=1e-12)
            assert metric["stderr"] > 0
        assert metric["n"] == (61 if name == "subspace_overlap" else 300)  # 61 of 64 codes come up
    loss = by_name["loss_fitted"]
    assert (loss["unit"], loss["direction"], loss["baseline"]) == ("nats/pair", "lower", math.log(300))
    assert notes(found)["table"]["loss_floor"] < 2 < loss["value"] < loss["baseline"]
    assert 1 / 300 < by_name["image_to_text_at_1"]["baseline"] < 5 / 300 < by_name["image_to_text_at_5"]["baseline"]
    assert by_name["cosine_excess"]["direction"] == by_name["image_to_text_at_1"]["direction"] == "higher"
    assert [by_name[name]["direction"] for name in ("p_value", "cosine_text", "subspace_overlap")] == ["none"] * 3
    assert notes(found)["records_without_a_pair"] == notes(found)["images_again"] == 0
    assert notes(found)["table"]["pairs_left_out"] == 0


def test_new_rows_know_nothing_and_trained_ones_little() -> None:
    """What the paper found: the nearest text tokens of image tokens are noise, at every step."""
    both = [evaluate(pretrained(epoch), permutations=999) for epoch in (0, 5)]
    first, last = map(metrics, both)
    assert first["p_value"]["value"] > 0.2
    assert first["loss_fitted"]["value"] == math.log(300)
    # At the factor 0 all pairs have one loss, whose scatter is no error.
    assert (first["loss_fitted"]["stderr"], first["loss_fitted"]["items"]) == (None, [])
    assert last["loss_fitted"]["stderr"] > 0
    assert ["loss_fitted" in notes(result)["table"] for result in both] == [True, False]
    assert last["p_value"]["value"] == 1 / 1000
    assert first["loss_fitted"]["value"] - last["loss_fitted"]["value"] == pytest.approx(0.0027, abs=0.001)
    assert all(one["neighbour_p_value"]["value"] > 0.05 for one in (first, last))


def test_the_nearest_tokens_are_shown_as_text() -> None:
    page = artifacts(evaluate(pretrained(0), neighbours=2))["nearest_tokens.txt"].decode()
    lines = page.splitlines()
    assert lines[0] == "nearest text tokens of the 61 most frequent of 61 image tokens"
    assert re.fullmatch(r"‹image \d+›  in 299 images", lines[3])
    assert re.fullmatch(r"  rows    (‹.+› -?\d\.\d\d  ){1}‹.+› -?\d\.\d\d", lines[4])
    assert lines[5].startswith("  centred ‹")
    without = pretrained(0, text={"offset": 0, "size": 512})
    page = artifacts(evaluate(without, neighbours=2))["nearest_tokens.txt"].decode()
    assert re.search(r"  rows    ‹text \d+› -?\d\.\d\d", page)


def test_what_moves_a_number_is_in_its_protocol_and_nothing_else() -> None:
    """A seed that moves only p-values must not begin a new series of losses."""
    one = evaluate(pretrained(0), permutations=20)
    two = evaluate(pretrained(0), permutations=30, seed=1, neighbours=3, limit=300)
    same = {name for name, protocol in protocols(one).items() if protocol == protocols(two)[name]}
    moved = {"p_value", "neighbour_p_value", "neighbour_p_value_centred", "neighbour_hits", "neighbour_hits_centred"}
    assert same == AS_IT_IS - moved
    for name in same:
        assert metrics(one)[name]["value"] == metrics(two)[name]["value"]
    assert protocols(one)["loss_fitted"]["temperature"] == "fitted"
    for change in ({"batch": 100}, {"limit": 200}, {"table": "output"}, {"dtype": "bfloat16"}):
        other = protocols(evaluate(pretrained(0), permutations=20, **change))
        assert not [name for name in AS_IT_IS if other[name] == protocols(one)[name]]


def test_several_batches_are_chosen_by_the_seed_and_the_rest_is_counted() -> None:
    one, two = (evaluate(pretrained(5), batch=128, seed=seed, permutations=9) for seed in (0, 1))
    assert notes(one)["table"]["pairs_left_out"] == 44
    assert metrics(one)["loss_fitted"]["baseline"] == math.log(128)
    assert metrics(one)["loss_fitted"]["n"] == len(one["items"]["alignment"]) == 256
    assert protocols(one)["loss_fitted"] != protocols(two)["loss_fitted"]
    assert {item["index"] for item in one["items"]["alignment"]} < set(range(300))


@pytest.fixture(scope="module")
def learned() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALSVC_THREADS", "1")
        return evaluate(pretrained(0), learn={"data": TRAINING, **SHORT})


def test_the_learned_table_is_measured_on_what_it_has_not_seen(learned: dict[str, Any]) -> None:
    by_name = metrics(learned)
    assert set(by_name) == {
        *AS_IT_IS,
        *(f"learned_{name}" for name in AS_IT_IS),
        *("learned_loss", "learned_training_loss"),
    }
    assert by_name["learned_p_value"]["value"] == 1 / 100
    assert by_name["learned_cosine_excess"]["value"] > 5 * by_name["learned_cosine_excess"]["stderr"]
    assert by_name["learned_loss_fitted"]["value"] < by_name["loss_fitted"]["value"] - 0.05
    assert by_name["learned_loss"]["value"] >= by_name["learned_loss_fitted"]["value"]
    assert by_name["learned_cosine_text"]["value"] == by_name["cosine_text"]["value"]
    found = notes(learned)["learned"]
    assert (found["training_pairs"], found["pairs_in_both"], found["trained_codes"]) == (1397, 0, 62)
    for metric in by_name.values():
        if metric["items"]:
            assert metric["value"] == pytest.approx(value_of_items(metric, learned["items"]["alignment"]), abs=1e-12)


def test_the_loss_by_step_is_there_and_where_it_rests(learned: dict[str, Any]) -> None:
    lines = artifacts(learned)["learned_loss.csv"].decode().splitlines()
    assert lines[0] == "step,loss,temperature"
    rows = [tuple(map(float, line.split(","))) for line in lines[1:]]
    assert [row[0] for row in rows] == list(range(40))
    assert rows[0][2] == pytest.approx(0.07)
    training, plateau = metrics(learned)["learned_training_loss"], notes(learned)["learned"]["plateau"]
    assert training["value"] == pytest.approx(sum(row[1] for row in rows[-4:]) / 4) == pytest.approx(plateau["last"])
    assert (training["n"], training["baseline"]) == (4, math.log(128))
    assert plateau["first"] == rows[0][1] > training["value"] + 0.5
    assert 0 < plateau["step"] < 40


def test_the_same_again_is_the_same_to_the_last_bit(learned: dict[str, Any]) -> None:
    again = evaluate(pretrained(0), learn={"data": TRAINING, **SHORT})
    assert again["metrics"] == learned["metrics"]
    assert artifacts(again) == artifacts(learned)
    other = evaluate(pretrained(0), learn={"data": TRAINING, **SHORT, "seed": 1})
    assert artifacts(other)["image_rows.safetensors"] != artifacts(learned)["image_rows.safetensors"]
    assert protocols(other)["learned_loss"] != protocols(learned)["learned_loss"]
    assert protocols(other)["loss_fitted"] == protocols(learned)["loss_fitted"]


def test_what_the_rows_are_measured_on_does_not_move_them(learned: dict[str, Any]) -> None:
    """Other held-out pairs must not begin another series of training losses."""
    other = evaluate(pretrained(0), learn={"data": TRAINING, **SHORT}, limit=50, permutations=9)
    name = "learned_training_loss"
    assert metrics(other)[name]["value"] == metrics(learned)[name]["value"]
    assert protocols(other)[name] == protocols(learned)[name]
    assert protocols(other)["learned_loss"] != protocols(learned)["learned_loss"]
    assert artifacts(other)["image_rows.safetensors"] == artifacts(learned)["image_rows.safetensors"]


def test_training_that_goes_astray_names_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_alignment, "FIRST_TEMPERATURE", math.nan)
    found = error(evaluate(pretrained(0), learn={**SHORT, "steps": 2}, permutations=1))
    assert found.startswith("non_finite: run 'pretrained' epoch 0: the alignment's loss is nan at step 0; lower")


def test_a_run_can_begin_with_the_learned_rows(
    learned: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the lines of the page: the checkpoint opens, its image rows are the learned ones, and its loss is a number."""
    lines = find_block(PAGE, "python", "put_image_rows")
    before = pretrained(0)
    shutil.copy(before.path, tmp_path / "epoch_0.pt")
    (tmp_path / "image_rows.safetensors").write_bytes(artifacts(learned)["image_rows.safetensors"])
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, str(PAGE), "exec"), {})

    config = str(ROOT / "runs" / "pretrained" / "open_lm_miniature.json")
    table, old = (load_model(path, config).tok_embeddings.weight for path in ("aligned.pt", before.path))
    rows = read_image_rows(tmp_path / "image_rows.safetensors")
    layout = parse_layout(LAYOUT).resolve(583)
    assert rows.rows.tolist() == list(layout.image_ids or ())
    assert torch.equal(table[rows.rows], rows.values.bfloat16().float())
    others = [row for row in range(583) if row not in layout.image_ids]  # type: ignore[operator]
    assert torch.equal(table[others], old[others])
    assert torch.equal(table[rows.rows][~rows.trained], old[rows.rows][~rows.trained])

    aligned = CheckpointRef(str(tmp_path / "aligned.pt"), model=json.loads(Path(config).read_text()), layout=LAYOUT)
    found = task_runs.metrics(run_task(aligned, kind="loss", data=HELD_OUT, limit=20))
    assert all(math.isfinite(metric["value"]) for metric in found.values())


def test_the_file_says_where_its_rows_come_from_and_how_long_they_are(learned: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    path.write_bytes(artifacts(learned)["image_rows.safetensors"])
    rows, layout = read_image_rows(path), parse_layout(LAYOUT).resolve(583)
    assert (rows.table, rows.table_rows, list(rows.values.shape)) == ("tok_embeddings.weight", 583, [64, 96])
    assert rows.about["layout"] == layout.digest
    assert rows.about["checkpoint"] == hash_files(Path(pretrained(0).path))
    assert rows.about["protocol"] == metrics(learned)["learned_training_loss"]["protocol"]
    assert float(rows.about["temperature"]) == pytest.approx(1 / notes(learned)["learned"]["scale"])
    text = load_model(pretrained(0).path).tok_embeddings.weight[:512]
    lengths = [float(one.square().sum(1).mean().sqrt()) for one in (rows.values[rows.trained], text)]
    assert lengths == pytest.approx([float(rows.about["length"])] * 2, rel=1e-5)


def test_a_permuted_image_block_has_its_rows_where_its_map_says(tmp_path: Path) -> None:
    """Rows in the order of the table would start a run with every code's meaning swapped."""
    order = [(5 * code + 3) % 64 for code in range(64)]
    checkpoint = pretrained(0, image={**LAYOUT["image"], "map": order})
    found = evaluate(checkpoint, learn={**SHORT, "steps": 2}, permutations=1)
    (tmp_path / "rows.safetensors").write_bytes(artifacts(found)["image_rows.safetensors"])
    rows = read_image_rows(tmp_path / "rows.safetensors")
    assert rows.rows.tolist() == [512 + place for place in order]
    old = load_model(pretrained(0).path).tok_embeddings.weight
    assert torch.equal(rows.values[~rows.trained], old[rows.rows[~rows.trained]])


def test_without_training_pairs_one_half_trains_and_the_other_measures() -> None:
    found = evaluate(pretrained(0), learn={**SHORT, "steps": 3}, table="output", permutations=9)
    halves = [[item for item in found["items"]["alignment"] if way in item] for way in ("loss_fitted", "learned_loss")]
    assert [len(half) for half in halves] == [300, 150]
    assert metrics(found)["learned_loss"]["baseline"] == math.log(150)
    assert notes(found)["learned"]["training_pairs"] == 150
    assert protocols(found)["learned_loss"]["learned"]["data"] == "half"


def test_shards_travel_and_report_every_step() -> None:
    """Outputs go through MessagePack, and payloads through JSON; merging needs neither data nor weights."""
    task: dict[str, Any] = {"kind": "alignment", "permutations": 5, "learn": {**SHORT, "steps": 5}}
    plan = run_stage("plan", pretrained(0), data=HELD_OUT, **task)
    assert (plan.total, plan.unit) == (7, "steps")
    outputs = []
    for shard in json.loads(json.dumps(plan.shards)):
        done: list[int] = []
        output = run_stage("run", pretrained(0), None, [shard], report=done.append, data=HELD_OUT, **task)
        assert done == sorted(done)
        assert done[-1] == shard["units"]
        outputs.append(output)
    merged = run_stage("merge", pretrained(0), None, plan.shards, outputs, data="/nowhere.jsonl", **task)
    direct = evaluate(pretrained(0), learn=task["learn"], permutations=5)
    assert merged.metrics == [{k: v for k, v in metric.items() if k != "task"} for metric in direct["metrics"]]


def test_data_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    data, training = tmp_path / "data.jsonl", tmp_path / "training.jsonl"
    for path in (data, training):
        shutil.copy(HELD_OUT, path)
    task = {"kind": "alignment", "data": str(data), "learn": {"data": str(training), **SHORT, "steps": 1}}
    plan = run_stage("plan", pretrained(0), **task)
    for path in (training, data):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
        found = run_stage("run", pretrained(0), None, plan.shards[1:], **task)
        assert found.code == "data_changed"
        assert str(path) in found.message


@pytest.mark.parametrize(
    ("layout", "parameters", "message"),
    [
        ({"text": {"size": 583}}, {}, "invalid_data: task 'alignment' needs image tokens, .* has no image block"),
        (LAYOUT, {"limit": 1}, "invalid_data: .*has 1 records with both .* needs two of different images; add pairs"),
        (LAYOUT, {"limit": 3, "learn": {}}, "invalid_data: .*has 3 pairs, too few to train on one half"),
        (LAYOUT, {"data": "/none.jsonl"}, "invalid_data: the data file /none.jsonl does not exist"),
        (LAYOUT, {"learn": {"data": "/none.jsonl"}}, "invalid_data: the data file /none.jsonl does not exist"),
        (LAYOUT, {"tokenizer": HELD_OUT}, "invalid_data: the tokenizer .* is not a tokenizer.json"),
    ],
)
def test_what_cannot_be_measured_says_why(layout: Any, parameters: dict[str, Any], message: str) -> None:
    assert re.search(message, error(evaluate(replace(pretrained(0), layout=layout), **parameters)))
