import json
import types
from array import array
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from miniature_run import DECODER, pretrained
from task_runs import run_stage

from evalsvc.data.tokens import Record
from evalsvc.errors import InvalidRequest, InvalidSuite
from evalsvc.files.arrays import pack_array
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.documents.results import Completion
from evalsvc.spec.suite import parse_suite
from evalsvc.tasks.alignment.work import AlignmentWork
from evalsvc.tasks.completions.work import CompletionsWork
from evalsvc.tasks.loss.work import LossWork
from evalsvc.tasks.sequence_groups import at_border, group_of_each, group_order, groups_of_records
from evalsvc.tasks.stages import AnyWork
from evalsvc.tasks.task import Plan, Shard, Task, Work, cut


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_a_task_is_called_as_the_catalog_says_and_names_its_work(kind: str) -> None:
    """The service reads the parameters only: a work that cannot be imported fails on workers, after the post."""
    task = catalog.load("tasks", kind)
    module, _, name = task.work.partition(":")
    assert task.kind == kind
    assert issubclass(getattr(import_module(module), name), Work)


def test_a_plan_has_no_more_shards_than_a_queue_takes() -> None:
    words = "the task is cut into 1,000,000 shards, more than 10,000; raise `shard_size`"
    with pytest.raises(InvalidRequest, match=words):
        cut(1_000_000, 1)
    with pytest.raises(InvalidRequest, match="is cut into 10,001 shards"):
        Plan([Shard(units=1)] * 10_001, "images")
    assert list(cut(5, 2)) == [(0, 2), (2, 4), (4, 5)]


@dataclass(frozen=True)
class Left:
    count: int


def test_a_work_names_frozen_dataclasses() -> None:
    """It is said where the class is defined, not by the first shard that cannot be sent."""
    write = r"write `class …\(Work\[Parameters, Shard, Output\]\)` with the class of the parameters and two frozen data"
    with pytest.raises(TypeError, match=f"Untyped does not name its types; {write}"):
        type("Untyped", (Work,), {})
    with pytest.raises(TypeError, match=f"needs three types; {write}"):
        Work[Task]  # type: ignore[misc]
    with pytest.raises(TypeError, match="is no frozen dataclass"):
        types.new_class("Loose", (Work[Task, Shard, dict],))
    with pytest.raises(TypeError, match="Unitless has shards without `units`; derive Left from Shard"):
        types.new_class("Unitless", (Work[Task, Left, Left],))


def record(text: list[int] | None, codes: list[int] | None = None, document: str | int | None = None) -> Record:
    text_ids = None if text is None else array("i", text)
    return Record(text_ids, None if codes is None else array("i", codes), "line 1", document)


def test_a_group_is_named_after_its_first_item() -> None:
    assert group_of_each("abcba") == [0, 1, 2, 1, 0]
    assert group_of_each("abcb") == [0, 1, 2, 1]
    assert group_of_each("abc") is None
    assert group_of_each("") is None


def test_records_belong_together_by_document_then_image_then_text() -> None:
    """Equal captions of different images do not: three hundred photographs may all be `a dog`."""
    assert groups_of_records([record([1], [5, 6]), record([1], [5, 7]), record([2], [5, 6])]) == [0, 1, 0]
    assert groups_of_records([record([1], [5, 6]), record([1], [5, 7])]) is None
    assert groups_of_records([record([1, 2]), record([1]), record([1, 2]), record([1, 2], [])]) == [0, 1, 0, 0]
    assert groups_of_records([record([1], document="a"), record([2], document="a"), record([1])]) == [0, 0, 2]
    assert groups_of_records([record([1], [4], "a"), record([1], [4], "b")]) is None
    assert groups_of_records([record([1], document=1), record([2], document="1")]) is None
    assert groups_of_records([record(None, [1]), record([1])]) is None, "a text is no image with the same ids"


def test_order_and_borders() -> None:
    groups = [0, 1, 2, 1, 0, 5]
    assert group_order(groups) == [0, 4, 1, 3, 2, 5]
    assert [at_border([0, 0, 1, 1, 2, 5], place) for place in range(7)] == [0, 2, 2, 4, 4, 5, 6]


CODES = {"ids": pack_array(np.arange(4, dtype=np.uint8)), "lengths": [4], "firsts": [0]}
LOSS = {"cut": 1, "sums": {"n_text": [2.0]}, "profile": {"text_position": [[1.0], [2.0]]}, "empty": 0, "codes": CODES}
TABLE = {"places": [0, 1], "columns": {"loss_fitted": [0.5, 0.25]}, "chance": {"at_1": 0.5}, "floor": 0.0} | {
    "tests": {"pairs": {"p": 0.1, "mean": 0.0, "deviation": 1.0}},
    "overlap": {"inside": [0.5], "whole": [1.0]},
    "hit_chance": {"neighbour_hits": 0.5},
    "fitted_scale": 2.0,
    "overlap_chance": 0.5,
    "nearest_tokens": "page",
}
ITEM = {"index": 0, "prompt": "A cat", "way": "greedy", "protocol": "ab", "text": " sat", "ids": [1], "drawn": 1} | {
    **dict.fromkeys(("seq_rep_4", "distinct_2", "base", "base_ids")),
    "image_ids": 0,
    "distinct_1": 1.0,
    "ended": 0,
}
COMPLETIONS = {"items": [ITEM], "cut": 0, "base_rotary": {}, "base_text_ids": 0, "protocol": {"prompts": "ab"}} | (
    dict.fromkeys(("chance", "base", "base_layout"))
)


@pytest.mark.parametrize(
    ("work", "document"), [(LossWork, LOSS), (AlignmentWork, TABLE), (CompletionsWork, COMPLETIONS)]
)
def test_a_stored_output_is_the_map_of_its_fields(work: type[AnyWork], document: dict[str, Any]) -> None:
    """Outputs that are in rows and files while the service is upgraded are merged afterwards."""
    output = work.output_codec.unpack(msgpack.packb(document))
    again = msgpack.unpackb(work.output_codec.pack(output))
    kept = [key for key in document if key != "items"]
    assert [again[key] for key in kept] == [document[key] for key in kept]
    assert "items" not in document or list(output.items) == [Completion(**ITEM)]


NEEDED: dict[str, dict[str, Any]] = {
    "alignment": {"data": "/pairs.jsonl"},
    "completions": {},
    "forgetting": {},
    "language": {"benchmarks": ["piqa"]},
    "loss": {"data": "/data.json"},
    "text_to_image": {"captions": "/captions.jsonl", "samples": 96, "decoder": "/movqgan.ckpt", "metrics": ["fid64"]},
}

UNTIL = {"metric": "fid64", "stderr": 1.0}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("alignment", {"learn": {}}, "no key is named 'learn'"),
    ("alignment", {"data": "pairs.jsonl"}, "data: 'pairs.jsonl' is relative"),
    ("alignment", {"table": "both"}, "table: input should be 'input' or 'output'"),
    ("alignment", {"batch": 1}, "batch: input should be greater than or equal to 2"),
    ("completions", {"prompts": []}, "prompts: tuple should have at least 1 item"),
    ("completions", {"prompts": ["a", "b", "a"]}, "the prompt 'a' is given twice"),
    ("completions", {"temperature": 0}, "completions at temperature 0 equal the greedy completion; set `samples`"),
    ("completions", {"top_p": 2}, "top_p is 2.0"),
    ("completions", {"seed": -1}, "seed: input should be greater than or equal to 0, found -1"),
    ("completions", {"guidance_scale": 2}, "no key is named 'guidance_scale'"),
    ("forgetting", {}, "neither `benchmarks` nor `text` is given"),
    ("forgetting", {"benchmarks": ["a"], "text_limit": 3}, "`text_limit` is given without `text`"),
    ("forgetting", {"text": "/a", "icl_positions": [500, 50]}, "the earlier one first"),
    ("forgetting", {"benchmarks": ["a"], "icl": ["b"]}, "icl: 'b' is not one of `benchmarks`; choose from a"),
    ("forgetting", {"text": "/a", "icl": True}, "icl: there are no `benchmarks`"),
    ("language", {"benchmarks": []}, "benchmarks: tuple should have at least 1 item"),
    ("language", {"benchmarks": ["a", {"name": "a", "limit": 3}]}, "the benchmark 'a' is listed twice; move one"),
    ("language", {"benchmarks": [{"name": "a", "limit": 3, "samples": [1]}]}, "`limit` and `samples` are both given"),
    ("language", {"benchmarks": [{"name": "a", "sample": 3, "samples": [1]}]}, "`samples` and `sample` are both given"),
    ("language", {"sample": 3, "limit": 3}, "`limit` and `sample` are both given; set only one"),
    ("language", {"include_path": ["here"]}, "include_path.0: 'here' is relative; use an absolute"),
    ("language", {"limits": 3}, "no key is named 'limits'; did you mean 'limit'"),
    ("loss", {"images": "/images"}, "`images` is given without `decoder`; set both"),
    ("loss", {"decoder": "movqgan-67M"}, "`decoder` is given without `images`"),
    ("loss", {"profile": False, "profile_metrics": ["image_row"]}, "are given, but `profile` is false"),
    ("loss", {"profile_metrics": ["image_cell"]}, "input should be 'text_position', 'image_row'"),
    ("loss", {"images": "/i", "decoder": "d", "image_columns": 4}, "`image_columns` is given together with `decoder`"),
    ("text_to_image", {"temperature": -1}, "temperature is -1"),
    ("text_to_image", {"captions": None, "samples": None}, "set `captions`, or `samples`"),
    ("text_to_image", {"guidance_scale": [1, -2]}, "guidance_scale is -2"),
    ("text_to_image", {"guidance_scale": [1, 3, 1.0]}, "with a scale twice"),
    ("text_to_image", {"metrics": ["fid46"]}, "no metric is named 'fid46'; did you mean 'fid64'"),
    ("text_to_image", {"metrics": ["fid64", "fid64"]}, "is listed twice"),
    ("text_to_image", {"metrics": ["agreement"]}, "`metrics` has agreement without `classifier`; set `classifier`"),
    ("text_to_image", {"until": {"metric": "kid", "stderr": 1.0}}, "until: no metric is named 'kid'"),
    ("text_to_image", {"until": UNTIL, "guidance_scale": [1, 3]}, "a single guidance scale"),
    ("text_to_image", {"reference": "x", "reference_of": "captions"}, "set `captions`, and `reference` to a folder"),
    ("text_to_image", {"protocol": "llamagen"}, "no protocol is named 'llamagen'; did you mean 'llamagen-coco'"),
    ("text_to_image", {"protocol": "llamagen-coco", "top_k": 500}, "top_k is 500, but the protocol llamagen-coco has"),
    ("text_to_image", {"protocol": "llamagen-coco", "samples": 30_001}, "samples is 30001, but the protocol"),
    ("text_to_image", {"name": "fid-30k"}, "'fid-30k' promises 30,000 images, `samples` is 96"),
]


@pytest.mark.parametrize(("kind", "parameters", "message"), REFUSED)
def test_wrong_parameters_are_refused_with_the_suite(kind: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite) as refused:
        parse_suite({"tasks": [{"kind": kind, **NEEDED[kind], **parameters}]}, "test")
    assert message in refused.value.message


AGREEMENT = {"metrics": ["agreement"], "classifier": str(ROOT / "classifier.safetensors")}
CHANGED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "alignment": ("data", "heldout_pairs.jsonl", {}),
    "completions": ("tokenizer", "tokenizer.json", {"max_tokens": 2}),
    "forgetting": ("text", "heldout_text.jsonl", {}),
    "language": ("tokenizer", "tokenizer.json", {"benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 4}),
    "loss": ("data", "heldout_pairs.jsonl", {"limit": 4}),
    "text_to_image": ("captions", "captions.jsonl", {"samples": 4, "decoder": DECODER} | AGREEMENT),
}
"""Parameter, file and other parameters by kind of task."""


@pytest.mark.parametrize("kind", CHANGED)
def test_only_shards_need_the_checkpoint_and_the_file_of_the_plan(kind: str, tmp_path: Path) -> None:
    """The training loop may have deleted them by the merge; a shard that reads another file must not run."""
    parameter, name, parameters = CHANGED[kind]
    lines, path = (ROOT / name).read_text().splitlines(keepends=True), tmp_path / name
    path.write_text("".join(lines))
    task, base = {"kind": kind, parameter: str(path), **parameters}, pretrained(0)
    shards = json.loads(json.dumps(run_stage("plan", pretrained(1), base, **task).shards))
    outputs = [run_stage("run", pretrained(1), base, [shard], **task) for shard in shards]
    path.write_text("".join([*lines, "\n"] if parameter == "tokenizer" else lines[1:]))
    found = run_stage("run", pretrained(1), base, shards[:1], **task)
    assert (found.code, "since this evaluation was planned" in found.message) == ("data_changed", True)
    path.unlink()
    gone, gone_base = (replace(one, path="/nowhere/epoch_1.pt") for one in (pretrained(1), base))
    assert run_stage("merge", gone, gone_base, shards, outputs, **task).metrics
