import dataclasses
import json
import types
from array import array
from collections.abc import Mapping
from dataclasses import make_dataclass, replace
from importlib import import_module
from itertools import starmap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from miniature_run import DECODER, pretrained
from square_features import offer_squares
from task_runs import metrics, run_stage, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.data.tokens import Record
from evalsvc.decoders import load_decoder
from evalsvc.errors import InvalidRequest, InvalidSuite
from evalsvc.features import load_extractor
from evalsvc.metrics.contrastive import PermutationTest
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.spec.suite import parse_suite
from evalsvc.tasks.alignment.pair_measures import OverlapParts, TableMeasures
from evalsvc.tasks.completions.work import CompletionsOutput
from evalsvc.tasks.loss.metrics import PackedTargets
from evalsvc.tasks.loss.work import LossOutput
from evalsvc.tasks.result_warnings import MAX_WARNINGS, cut_inputs, few_warnings, left_out, worse_than_guessing
from evalsvc.tasks.sequence_groups import at_border, group_of_each, group_order, groups_of_records
from evalsvc.tasks.task import Plan, Shard, Task, TaskWarning, Work, cut


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_a_task_is_called_as_the_catalog_says_and_names_its_work(kind: str) -> None:
    """The service reads the parameters only: a work that cannot be imported fails on workers, after the post."""
    task = catalog.load("tasks", kind)
    module, _, name = task.work.partition(":")
    assert task.kind == kind
    assert issubclass(getattr(import_module(module), name), Work)


def test_a_plan_has_no_more_shards_than_a_queue_takes() -> None:
    with pytest.raises(InvalidRequest, match="is cut into 1,000,000 shards, more than 10,000; raise `shard_size`"):
        cut(1_000_000, 1)
    with pytest.raises(InvalidRequest, match="is cut into 10,001 shards"):
        Plan([Shard(units=1)] * 10_001, "images")
    assert list(cut(5, 2)) == [(0, 2), (2, 4), (4, 5)]


def test_a_work_names_frozen_dataclasses() -> None:
    """It is said where the class is defined, not by the first shard that cannot be sent."""
    left = make_dataclass("Left", [("count", int)], frozen=True)
    write = r"write `class …\(Work\[Parameters, Shard, Output\]\)` with the class of the parameters and two frozen data"
    with pytest.raises(TypeError, match=f"Untyped does not name its types; {write}"):
        type("Untyped", (Work,), {})
    with pytest.raises(TypeError, match=f"needs three types; {write}"):
        Work[Task]  # type: ignore[misc]
    with pytest.raises(TypeError, match="is no frozen dataclass"):
        types.new_class("Loose", (Work[Task, Shard, dict],))
    with pytest.raises(TypeError, match="Unitless has shards without `units`; derive Left from Shard"):
        types.new_class("Unitless", (Work[Task, left, left],))


@pytest.mark.parametrize(
    ("records", "groups"),
    [
        ([([1], [5, 6]), ([1], [5, 7]), ([2], [5, 6])], [0, 1, 0]),
        ([([1], [5, 6]), ([1], [5, 7])], None),
        ([([1, 2],), ([1],), ([1, 2],), ([1, 2], [])], [0, 1, 0, 0]),
        ([([1], None, "a"), ([2], None, "a"), ([1],)], [0, 0, 2]),
        ([([1], [4], "a"), ([1], [4], "b")], None),
        ([([1], None, 1), ([2], None, "1")], None),
        ([(None, [1]), ([1],)], None),  # a text is no image with the same ids
        ([], None),
    ],
)
def test_records_belong_together_by_document_then_image_then_text(records: Any, groups: list[int] | None) -> None:
    """Equal captions of different images do not: three hundred photographs may all be `a dog`."""

    def record(text: Any, codes: Any = None, document: Any = None) -> Record:
        ids = [None if row is None else array("i", row) for row in (text, codes)]
        return Record(*ids, "line 1", document)

    assert groups_of_records(starmap(record, records)) == groups


def test_groups_are_whole_in_an_order_with_borders() -> None:
    groups = group_of_each("abcbad")
    assert groups == [0, 1, 2, 1, 0, 5]
    assert group_order(groups) == [0, 4, 1, 3, 2, 5]
    assert [at_border([0, 0, 1, 1, 2, 5], place) for place in range(7)] == [0, 2, 2, 4, 4, 5, 6]


TABLES = "places columns chance hit_chance floor fitted_scale tests overlap overlap_chance nearest_tokens"


@pytest.mark.parametrize(
    ("output", "fields"),
    [
        (LossOutput, "cut sums profile empty codes"),
        (PackedTargets, "ids lengths firsts"),
        (TableMeasures, TABLES),
        (PermutationTest, "p mean deviation"),
        (OverlapParts, "inside whole"),
        (CompletionsOutput, "items cut chance base base_layout base_rotary base_text_ids protocol"),
    ],
)
def test_a_stored_output_is_the_map_of_these_fields(output: type[Any], fields: str) -> None:
    """Outputs that are in rows and files while the service is upgraded are merged afterwards."""
    assert [field.name for field in dataclasses.fields(output)] == fields.split()


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
    ("alignment", {"batch": 1}, "batch: input should be greater than or equal to 2"),
    ("completions", {"prompts": []}, "prompts: tuple should have at least 1 item"),
    ("completions", {"prompts": ["a", "b", "a"]}, "the prompt 'a' is given twice"),
    ("completions", {"temperature": 0}, "completions at temperature 0 equal the greedy completion; set `samples`"),
    ("completions", {"top_p": 2}, "top_p is 2.0"),
    ("completions", {"seed": -1}, "seed: input should be greater than or equal to 0, found -1"),
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
    ("loss", {"images": "/images"}, "`images` is given without `decoder`; set both"),
    ("loss", {"decoder": "movqgan-67M"}, "`decoder` is given without `images`"),
    ("loss", {"profile": False, "profile_metrics": ["image_row"]}, "are given, but `profile` is false"),
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


# another package adds a task, a metric, a decoder and an extractor, each by one file and one entry point

PACKAGE = Path(__file__).parents[1] / "support" / "plug_ins"


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PACKAGE)


@pytest.fixture
def negative(tmp_path: Path) -> str:
    config = yaml.safe_load((ROOT / "movqgan" / "config.yaml").read_text())
    config["model"]["target"] = "inverted.Decoder"
    (tmp_path / "negative.yaml").write_text(json.dumps(config))
    return str(tmp_path / "negative.yaml")


def value(name: str, /, **task: Any) -> float:
    return float(metrics(run_task(pretrained(5), **task))[name]["value"])


@pytest.mark.usefixtures("_installed")
def test_a_task_is_one_file_and_one_entry_point() -> None:
    letters = sum(map(str.isalpha, pretrained(5).label))
    assert value("letters/count", kind="letters", times=2) == 2 * letters
    with pytest.raises(InvalidSuite, match="no key is named 'time'; did you mean 'times'"):
        parse_suite({"tasks": [{"kind": "letters", "time": 2}]}, "test")


@pytest.mark.usefixtures("_installed")
def test_so_are_a_metric_and_a_decoder(monkeypatch: pytest.MonkeyPatch, negative: str) -> None:
    offer_squares(monkeypatch)
    task = {"kind": "text_to_image", "samples": 8, "decoder": DECODER, "extractor": "squares", "metrics": ["spread"]}
    plain, inverted = (value("x/spread", name="x", **task, **given) for given in ({}, {"decoder_config": negative}))
    assert inverted == pytest.approx(plain, rel=0.02) != 0, "negatives lie as far apart, but for rounding and clamping"
    codes = torch.zeros(1, 64, dtype=torch.int64)
    positive = load_decoder(DECODER, ROOT / "movqgan" / "config.yaml").decode(codes)
    torch.testing.assert_close(load_decoder(DECODER, negative).decode(codes), -positive)


@pytest.mark.usefixtures("_installed")
def test_so_is_an_extractor(tmp_path: Path) -> None:
    (tmp_path / "factor.txt").write_text("2")
    extractor = load_extractor("brightness", tmp_path / "factor.txt")
    images = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    assert extractor.features(images, "none")[1].tolist() == [[200.0], [200.0]]


def test_without_the_package_none_of_them_is_there() -> None:
    assert not {"letters", "spread", "inverted", "brightness"} & {
        name for group in catalog.COMPONENTS for name in catalog.names(group)
    }


# which results are suspicious, and what is said of them

PAIRS = {"kind": "loss", "data": str(ROOT / "heldout_pairs.jsonl"), "limit": 12, "shards": 1}


def found(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Code and message of each warning by metric."""
    [warnings] = result["warnings"].values() or [[]]
    return {warning["metric"]: (warning["code"], warning["message"]) for warning in warnings}


GUESS = (
    "5.78 ± 0.031 nats/token is 45% above 4, the cost of a uniform guess; check the layout's preset and offsets, the "
    "tokenizer, and the data's ids"
)


@pytest.mark.parametrize(
    ("value", "stderr", "baseline", "message"),
    [
        (5.78, 0.031, 4.0, GUESS),
        (4.61, 0.2, 4.0, "4.61 ± 0.2 nats/token is 15% above 4"),
        (4.59, 0.2, 4.0, None),  # within three standard errors
        (4.05, 0.001, 4.0, "4.05 ± 0.001"),
        (4.000003, 4.6e-07, 4.0, None),  # the new rows of a widened table are nearly equal at first
        (4.05, None, 4.0, "4.05 nats/token is 1% above 4"),
        (4.03, None, 4.0, None),
        (9.0, 0.1, None, None),
        (float("nan"), 0.1, 4.0, None),
        (float("inf"), None, 4.0, "inf nats/token"),
        (9.0, float("nan"), 4.0, None),
    ],
)
def test_a_loss_is_worse_than_guessing_beyond_its_error(
    value: float, stderr: float | None, baseline: float | None, message: str | None
) -> None:
    """A fresh Hugging Face model was suspicious at every evaluation: "4.159 ± 4.6e-07 is above 4.159"."""
    metric = MetricValue("a/image_within", value, stderr, 8, "nats/token", "lower", Protocol({}), baseline)
    warnings = [warning.message for warning in worse_than_guessing([metric], ["a/image_within"], "")]
    assert [found.startswith(message or "never") for found in warnings] == [True] * (message is not None)
    assert list(worse_than_guessing([metric], ["a/text_within"], "")) == []


def test_a_warning_has_the_figures_and_what_to_look_at() -> None:
    assert list(cut_inputs("a", "prompts", 0, 9, "lower it")) == []
    told = TaskWarning("inputs_cut", "a", "1,200 of 3,000 prompts did not fit and were cut; lower it")
    assert list(cut_inputs("a", "prompts", 1200, 3000, "lower it")) == [told]
    reasons = {"fid": "it needs 2,049 images", "fid_infinity": "it needs 2,049 images", "kid": "no features"}
    assert [(warning.metric, warning.message) for warning in left_out("a", reasons, "add")] == [
        ("a/fid", "fid, fid_infinity are left out: it needs 2,049 images; add"),
        ("a/kid", "kid is left out: no features; add"),
    ]


def test_of_a_thousand_warnings_each_rule_has_its_first() -> None:
    """They are shown with every result, and a suite may name a thousand benchmarks."""
    cut = [TaskWarning("inputs_cut", f"benchmark-{index}", "cut") for index in range(1000)]
    guess = TaskWarning("worse_than_guessing", "benchmark-7/bits_per_byte", "guess")
    first, second, *_, last = few = list(few_warnings([*cut, guess]))
    assert (first, second, len(few)) == (cut[0], guess, MAX_WARNINGS + 1)
    assert last.message == "there are 969 more warnings of these kinds"
    assert (list(few_warnings([guess])), list(few_warnings([]))) == ([guess], [])


def test_image_codes_in_another_order_are_worse_than_a_guess() -> None:
    """Absurd numbers passed without a word: 5.78 nats where knowing nothing is 4.16."""
    other = {"offset": 512, "size": 64, "map": [code ^ 1 for code in range(64)]}
    [(metric, (code, message))] = found(run_task(pretrained(5, image=other), **PAIRS)).items()
    assert (metric, code) == ("loss/image_within", "worse_than_guessing")
    assert "% above 4.159, the cost of a uniform guess" in message


TEXT = str(ROOT / "heldout_text.jsonl")
GENERAL = {"general_text": TEXT, "general_text_limit": 5}


def test_sequences_that_were_cut_are_told() -> None:
    assert found(run_task(pretrained(5), **PAIRS, **GENERAL)) == {}
    short = found(run_task(pretrained(5, length=20), **{**PAIRS, **GENERAL, "data": TEXT}))
    assert short["loss/total"][1].startswith("12 of 12 sequences did not fit and were cut; use a layout with")
    assert short["loss/general_text"][1].startswith("5 of 5 general texts did not fit")


SCATTERED = [[59, 56, 36, 15], [7, 32, 2, 58], [38, 38, 26, 42], [20, 46, 55, 40], [42, 35, 1, 57], [15, 49, 30, 19]]
"""Ids that the untrained checkpoint of the golden data expects less than a uniform guess would."""

CLOZE = {"benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 8}


@pytest.mark.parametrize("base", [0, 5])
def test_a_checkpoint_that_is_its_own_base_is_the_first(base: int) -> None:
    """Bits per byte of another tokenizer of the same size are above those of a uniform guess, and nobody said so."""
    result = run_task(pretrained(5), pretrained(base), kind="forgetting", text=TEXT, text_limit=4, **CLOZE)
    first = {"cloze/bits_per_byte", "cloze/bits_per_byte_within", "forgetting/loss_within"}
    assert found(result).keys() == (first if base == 5 else set())


def test_the_loss_of_a_model_of_text_alone_is_that_within_text(tmp_path: Path, open_lm_case: Path) -> None:
    weights = CheckpointRef(str(open_lm_case.parent / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"))
    (tmp_path / "ids.jsonl").write_text("".join(f'{{"text_ids": {ids}}}\n' for ids in SCATTERED))
    result = run_task(weights, weights, kind="forgetting", text=str(tmp_path / "ids.jsonl"))
    assert found(result).keys() == {"forgetting/loss"}


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_step_is_told_by_the_service(is_first: bool) -> None:
    """Later such a loss may be the very finding: the last checkpoint has forgotten its English."""
    task = {**PAIRS, **GENERAL}
    shards = run_stage("plan", pretrained(5), **task).shards
    outputs = [run_stage("run", pretrained(5), None, [shard], **task) for shard in shards]
    warnings = run_stage("merge", pretrained(5), None, shards, outputs, is_first=is_first, **task).warnings
    assert [warning["metric"] for warning in warnings] == (["loss/general_text_within"] if is_first else [])


def test_contexts_and_prompts_that_were_cut_are_told() -> None:
    told = found(run_task(pretrained(5), kind="language", max_length=20, num_fewshot=2, **CLOZE))
    code, message = told["cloze"]
    assert (code, len(told)) == ("inputs_cut", 1)
    assert message.startswith("8 of 8 documents' contexts did not fit and were cut; raise `max_length`")
    [(_, message)] = found(run_task(pretrained(5), kind="completions", max_length=16, max_tokens=8, samples=0)).values()
    assert "prompts did not fit and were cut; lower `max_tokens`" in message
