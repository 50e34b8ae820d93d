"""The engine hflm: lm-eval's own model class around evalsvc's model, held to evalsvc's packed scoring and decoding."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import questions, write_benchmark
from lm_eval.api.instance import Instance
from miniature_run import LAYOUT, pretrained
from task_runs import items, metrics, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import InvalidData, MissingPackage
from evalsvc.installation import pip_install
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.hflm import HflmScoring
from evalsvc.language.lm import Answer, Generation, OpenLM
from evalsvc.miniature import ROOT
from evalsvc.models import load_model
from evalsvc.spec import catalog
from evalsvc.spec.layout import parse_layout

pytestmark = pytest.mark.usefixtures("reference_models", "one_thread")

CLOZE = {"kind": "language", "benchmarks": ["cloze"], "include_path": [str(ROOT)]}
HFLM = {"engine": {"scoring": "hflm"}}


def encoding(tokenizer: Path = ROOT / "tokenizer.json", **options: Any) -> TextEncoding:
    return TextEncoding(read_tokenizer(tokenizer), parse_layout(dict(LAYOUT), ROOT).resolve(583), 132, **options)


def instance(kind: Any, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=("a benchmark", 0, 1))


def assert_scores_are_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for first, second in zip(items(ours), items(theirs), strict=True):
        pairs = zip(first["scores"], second["scores"], strict=True)
        assert all(a == pytest.approx(b, abs=1e-4) for a, b in pairs)


def test_a_benchmark_has_the_numbers_of_hflm() -> None:
    """Accuracies, and log-probabilities over all ids and within the text ids; the protocol names the engine."""
    ours, theirs = (run_task(pretrained(0), **CLOZE, limit=8, **engine) for engine in ({}, HFLM))
    assert_scores_are_equal(ours, theirs)
    assert metrics(theirs).keys() == metrics(ours).keys() - {"cloze/image_mass"}, "HFLM has no mass on image ids"
    assert metrics(theirs)["cloze/acc"]["value"] == metrics(ours)["cloze/acc"]["value"]
    assert {protocol["engine"]["scoring"] for protocol in theirs["protocols"].values()} == {"hflm"}
    assert not any("engine" in protocol for protocol in ours["protocols"].values())
    assert theirs["provenance"]["language"]["shards"][0]["scoring_engine"].startswith("hflm 0.")


def test_text_rows_may_lie_behind_others() -> None:
    """The same weights with the image rows first: each side finds the rows of the text by itself."""
    turned = {**LAYOUT, "text": {**LAYOUT["text"], "offset": 71}, "image": {"offset": 0, "size": 64}}
    turned["special"] = {name: row - 512 for name, row in LAYOUT["special"].items()}
    moved = CheckpointRef(pretrained(0).path, layout=turned, label="moved")
    ours, theirs = (run_task(moved, **CLOZE, limit=3, **engine) for engine in ({}, HFLM))
    assert_scores_are_equal(ours, theirs)


@pytest.fixture
def with_end(tmp_path: Path) -> Path:
    """The miniature's tokenizer, with an added token that ends a text."""
    tokenizer = json.loads((ROOT / "tokenizer.json").read_text())
    [end] = [token for token, number in tokenizer["model"]["vocab"].items() if number == 511]
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokenizer["added_tokens"] = [{"id": 511, "content": end, **added}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path / "tokenizer.json"


def test_texts_are_generated_and_scored_in_windows(with_end: Path) -> None:
    """Prompts of several lengths are padded together."""
    options = {"until": ["\n"], "max_gen_toks": 12}
    asked = [instance("generate_until", text, options) for text in ("The first", "An expression is", "If")]
    asked.append(instance("loglikelihood_rolling", "The first of the objects is called. " * 12))
    model, text = load_model(pretrained(0).path), encoding(with_end, end_of_text=511)
    ours, theirs = OpenLM(model, text).answers(asked), HflmScoring(model, text).answers(asked)
    assert [answer for answer in ours if isinstance(answer, Generation)] == theirs[:3]
    assert isinstance(ours[3], Answer)
    assert isinstance(theirs[3], Answer)
    assert theirs[3].score.logprob == pytest.approx(ours[3].score.logprob, rel=1e-6)
    assert math.isnan(theirs[3].score.image_mass)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("generate_until", "If", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 3}), "drawn at random"),
        (("generate_until", "If", {"max_gen_toks": 3}), "none of the tokenizer's added tokens is `end_of_text`"),
        (("loglikelihood", "If", " the object" * 99), "longer than the model's input, where HFLM stops"),
        (("loglikelihood", "If", " the object"), "lm-eval's HFLM stopped with RuntimeError: out of luck"),
    ],
)
def test_a_request_that_hflm_cannot_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, request_: tuple[Any, ...], message: str
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("out of\nluck")

    scoring = HflmScoring(load_model(pretrained(0).path), encoding(end_of_text=511))
    monkeypatch.setattr(scoring.everything, "loglikelihood", stop)
    with pytest.raises(InvalidData, match=f"benchmark 'a benchmark'(, document 0, request 0)?: .*{message}"):
        scoring.answers([instance(*request_)])


def test_without_the_packages_the_message_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "evalsvc.language.hflm")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackage, match=re.escape(pip_install("reference"))):
        catalog.load("scorings", "hflm")


def test_solved_examples_are_asked_too(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "sums", questions(6))
    task = {"kind": "language", "benchmarks": ["sums"], "include_path": [str(tmp_path)], "num_fewshot": 1}
    ours, theirs = (metrics(run_task(pretrained(0), **task, **engine)) for engine in ({}, HFLM))
    assert theirs["sums/bits_per_byte"]["value"] == pytest.approx(ours["sums/bits_per_byte"]["value"], rel=1e-5)
