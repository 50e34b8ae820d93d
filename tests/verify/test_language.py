"""Benchmarks against lm-eval's own evaluation by HFLM, and what is found where a side differs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_files import write_benchmark
from miniature_run import LAYOUT, pretrained

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.installation import missing_package
from evalsvc.miniature import ROOT
from evalsvc.models import Transformer
from evalsvc.spec.model_config import ModelConfig
from evalsvc.tasks.language.spec import Language
from evalsvc.verify import hflm
from evalsvc.verify.agreement import Agreement, Finding, Untried, all_agree
from evalsvc.verify.language import verify_benchmarks
from evalsvc.verify.recorded_values import RecordedValues
from evalsvc.worker.context import ShardContext

pytestmark = pytest.mark.usefixtures("reference_models", "one_thread")

NOTHING = RecordedValues({})

CLOZE = {"benchmarks": ["cloze"], "include_path": [str(ROOT)]}


def context(checkpoint: CheckpointRef | None = None) -> ShardContext:
    return ShardContext(checkpoint or pretrained(0), Settings.load(threads=1), lambda done: None)


def language(**fields: Any) -> Language:
    return Language.model_validate({"name": "language", **CLOZE, **fields})


def by_quantity(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.quantity: finding for finding in findings}


def test_a_benchmark_is_lm_evals() -> None:
    """Requests, answers and accuracy; over all ids, and within the text ids by a model that has no others."""
    found = verify_benchmarks(context(), language(limit=24), NOTHING, 256)
    assert all_agree(found)
    assert [finding.quantity for finding in found] == [
        "cloze: requests that differ, of 96",
        "cloze: log-likelihood per token of 96 requests",
        "cloze/acc",
        "cloze_within: log-likelihood per token of 96 requests",
        "cloze/acc_within",
    ]
    accuracy = by_quantity(found)["cloze/acc"]
    assert isinstance(accuracy, Agreement)
    assert accuracy.ours == accuracy.theirs
    assert accuracy.theirs is not None
    assert 0.5 < accuracy.theirs < 1
    assert accuracy.note.startswith("computed here; ")


def test_text_rows_may_lie_behind_others() -> None:
    """The same weights with the image rows first: each side finds the rows of the text by itself."""
    turned = {**LAYOUT, "text": {**LAYOUT["text"], "offset": 71}, "image": {"offset": 0, "size": 64}}
    turned["special"] = {name: row - 512 for name, row in LAYOUT["special"].items()}
    moved = CheckpointRef(pretrained(0).path, layout=turned, label="moved")
    found = verify_benchmarks(context(moved), language(limit=3), NOTHING, 3)
    assert all_agree(found)


def test_arithmetic_that_differs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """HFLM has another weight than ours: the log-likelihoods are wrong, whether the accuracy moves or not."""
    write = hflm.write_hugging_face

    def perturbed(*arguments: Any) -> Any:
        model = write(*arguments)
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight[3, 5] += 1e-2
        return model

    monkeypatch.setattr(hflm, "write_hugging_face", perturbed)
    found = by_quantity(verify_benchmarks(context(), language(limit=4), NOTHING, 4))
    assert found["cloze: requests that differ, of 16"].verdict == "ok"
    assert found["cloze: log-likelihood per token of 16 requests"].verdict == "WRONG"


def test_solved_examples_are_drawn_as_lm_eval_draws_them() -> None:
    """At random, one document after the other; what a sample by strata is asked, lm-eval would draw otherwise."""
    found = verify_benchmarks(context(), language(limit=4, num_fewshot=1), NOTHING, 3)
    assert by_quantity(found)["cloze: requests that differ, of 12"].verdict == "ok"
    [sampled] = verify_benchmarks(context(), language(sample=4, num_fewshot=1), NOTHING, 4)
    assert isinstance(sampled, Untried)
    assert "draws other solved examples for a sample" in sampled.reason
    named = language(benchmarks=[{"name": "cloze", "samples": [7, 2]}])
    assert all_agree(verify_benchmarks(context(), named, NOTHING, 4))


def test_generated_texts_are_hflms(tmp_path: Path) -> None:
    rows = [{"question": word, "answer": "a"} for word in ("The first", "An expression", "If the object")]
    changes: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "doc_to_choice": None,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    write_benchmark(tmp_path, "goes_on", rows, **changes)
    fields = {"benchmarks": ["goes_on"], "include_path": [str(tmp_path)], "end_of_text": 511}
    [untried] = verify_benchmarks(context(), language(**fields), NOTHING, 3)
    assert isinstance(untried, Untried)
    assert "none of the tokenizer's added tokens is `end_of_text`" in untried.reason
    tokenizer = json.loads((ROOT / "tokenizer.json").read_text())
    [end] = [token for token, number in tokenizer["model"]["vocab"].items() if number == 511]
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokenizer["added_tokens"] = [{"id": 511, "content": end, **added}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    fields["tokenizer"] = str(tmp_path / "tokenizer.json")
    found = by_quantity(verify_benchmarks(context(), language(**fields), NOTHING, 3))
    assert found["goes_on: texts that differ, of 3"].verdict == "ok"
    assert found["goes_on/exact_match"].verdict == "ok"


@pytest.fixture
def with_qk_norm(tmp_path: Path) -> CheckpointRef:
    """A model that no class of transformers computes, with random weights and the miniature's layout."""
    shape = json.loads((ROOT / "runs" / "pretrained" / "open_lm_miniature.json").read_text())
    shape |= {"qk_norm": True, "model_norm": "gain_only_layer_norm"}
    torch.manual_seed(0)
    torch.save(Transformer(ModelConfig(**shape)).state_dict(), tmp_path / "random.pt")
    return CheckpointRef(str(tmp_path / "random.pt"), model=shape, layout=LAYOUT, label="with qk_norm")


def test_a_model_that_no_class_computes_is_told(with_qk_norm: CheckpointRef, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open_lm", "open_lm.attention"):
        monkeypatch.setitem(sys.modules, name, None)
    [finding] = verify_benchmarks(context(with_qk_norm), language(limit=2), NOTHING, 2)
    assert isinstance(finding, Untried)
    assert (
        "normalises queries and keys over all heads together (qk_norm); for open_lm's own model: open_lm"
        in finding.reason
    )


@pytest.mark.usefixtures("real_open_lm")
def test_open_lm_itself_answers_where_no_class_does(with_qk_norm: CheckpointRef) -> None:
    found = verify_benchmarks(context(with_qk_norm), language(limit=8), NOTHING, 8)
    assert all_agree(found)
    assert len(found) == 5
    assert {"HFLM, open_lm" in finding.program for finding in found} == {True}


def test_without_the_packages_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hflm, "find_spec", lambda name: None)
    [finding] = verify_benchmarks(context(), language(limit=2), NOTHING, 2)
    assert isinstance(finding, Untried)
    assert finding.reason == missing_package("transformers", "lm-eval's HFLM", "reference").message


def test_where_lm_eval_stops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr("evalsvc.verify.language.evaluate", stop)
    for finding in verify_benchmarks(context(), language(limit=2), NOTHING, 2):
        assert isinstance(finding, Untried)
        assert finding.reason == "lm-eval stopped with RuntimeError: out of luck"
