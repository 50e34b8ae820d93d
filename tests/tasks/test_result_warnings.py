"""Which results are suspicious, and what is said of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from miniature_run import pretrained
from task_runs import run_stage, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.miniature import ROOT
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.result_warnings import MAX_WARNINGS, cut_inputs, few_warnings, left_out, worse_than_guessing
from evalsvc.tasks.task import TaskWarning

PAIRS = {"kind": "loss", "data": str(ROOT / "heldout_pairs.jsonl"), "limit": 12, "shards": 1}


def found(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Code and message of each warning by metric."""
    [warnings] = result["warnings"].values() or [[]]
    return {warning["metric"]: (warning["code"], warning["message"]) for warning in warnings}


def value(number: float, stderr: float | None, baseline: float | None = 4.0) -> MetricValue:
    return MetricValue("a/image_within", number, stderr, 8, "nats/token", "lower", Protocol({}), baseline)


@pytest.mark.parametrize(
    ("metric", "suspicious"),
    [
        (value(4.61, 0.2), True),
        (value(4.59, 0.2), False),  # within three standard errors
        (value(4.05, 0.001), True),
        (value(4.000003, 4.6e-07), False),  # the new rows of a widened table are nearly equal at first
        (value(4.05, None), True),
        (value(4.03, None), False),
        (value(9.0, 0.1, baseline=None), False),
        (value(float("nan"), 0.1), False),
        (value(float("inf"), None), True),
        (value(9.0, float("nan")), False),
    ],
)
def test_a_loss_is_worse_than_guessing_beyond_its_error(metric: MetricValue, suspicious: bool) -> None:
    """A fresh Hugging Face model was suspicious at every evaluation: "4.159 ± 4.6e-07 is above 4.159"."""
    assert bool(list(worse_than_guessing([metric], ["a/image_within"], ""))) == suspicious
    assert list(worse_than_guessing([metric], ["a/text_within"], "")) == []


def test_a_warning_has_the_figures_and_what_to_look_at() -> None:
    [guess] = worse_than_guessing([value(5.78, 0.031)], ["a/image_within"], "")
    assert guess.message == (
        "5.78 ± 0.031 nats/token is 45% above 4, the cost of a uniform guess; check the layout's preset and offsets, "
        "the tokenizer, and the data's ids"
    )
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
