"""Benchmarks and completions of a real language model, against transformers' and lm-eval's reading of the same folder.

The tests marked `long` ask all 11,007 questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from lm_eval.api.instance import Instance
from loaded_benchmarks import load_golden
from task_runs import items, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.language.encoding import Scored, TextEncoding
from evalsvc.language.lm import OpenLM
from evalsvc.models import load_model
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.tasks.completions.spec import TABLE_1

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

pytestmark = [pytest.mark.usefixtures("reference_models"), pytest.mark.timeout(3600)]

BENCHMARKS = {
    "arc_easy": 2_376,
    "copa": 100,
    "lambada_openai": 5_153,
    "piqa": 1_838,
    "winograd_wsc": 273,
    "winogrande": 1_267,
}
"""Number of questions of each benchmark."""

ITEMS = 100
"""Questions of each benchmark that are asked in every run: 600 in all."""

MAX_LENGTH = 1_024

LOGLIKELIHOOD = {"rel": 1e-5, "abs": 1e-3}
TIE = 1e-4
"""In nats: between answers that are as near as this, rounding decides."""

SAID = {
    TABLE_1[0]: " time and space are intertwined, and that the laws of physics are relative to the observer's "
    "perspective. This idea challenges the traditional notion of absolute time and",
    TABLE_1[1]: ' cheese\n\nIn French, the word for "sea" is "se" (the sound of the sea), and the word for "mole',
    "The capital of France is": " Paris.\n\n",
}
"""How transformers continues prompts greedily with these weights in float32."""


@pytest.fixture(scope="module")
def layout(smollm2: Path) -> VocabularyLayout:
    return parse_layout(str(smollm2 / "layout.json"))


@pytest.fixture(scope="module")
def ours(smollm2: Path, layout: VocabularyLayout) -> OpenLM:
    model = load_model(smollm2)
    resolved = layout.resolve(model.config.vocab_size)
    return OpenLM(model, TextEncoding(read_tokenizer(str(layout.text.tokenizer)), resolved, MAX_LENGTH))


@pytest.fixture(scope="module")
def theirs(smollm2: Path) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    from evalsvc.language.hub import quiet

    with quiet():
        return HFLM(
            str(smollm2),
            backend="causal",
            dtype="float32",
            device="cpu",
            batch_size=16,
            max_length=MAX_LENGTH,
            logits_cache=False,  # with the cache, some requests of version 0.4.13 get log-likelihoods of others
        )


@torch.inference_mode()
def is_tie(lm: OpenLM, asked: Sequence[Instance], answers: Sequence[tuple[float, bool]]) -> bool:
    """Say whether two options are equally likely but for rounding; without options, whether two ids are."""
    if len(asked) == 1:
        [scored] = lm.encoding.encode_all(asked)
        assert isinstance(scored, Scored)
        [request] = scored.requests
        logits = lm.model(torch.tensor([[*request.context, *request.continuation]]))[0, len(request.context) - 1 : -1]
        targets = torch.tensor(request.continuation)[:, None]
        return float((logits.max(-1).values - logits.gather(1, targets)[:, 0]).max()) <= TIE
    sums = [logprob for logprob, _ in answers]
    by_length = [value / len(instance.args[1]) for value, instance in zip(sums, asked, strict=True)]
    return any(best - second <= TIE for best, second, *_ in (sorted(side, reverse=True) for side in (sums, by_length)))


@pytest.mark.parametrize("limit", [ITEMS, pytest.param(None, marks=pytest.mark.long, id="all")])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_answers_are_those_of_hflm(shared: Path, ours: OpenLM, theirs: HFLM, name: str, limit: int | None) -> None:
    """The log-likelihoods, and by lm-eval's accuracies the right answers, except where rounding decides."""
    benchmark = load_golden(shared, name, limit)
    assert len(benchmark.documents) == min(limit or BENCHMARKS[name], BENCHMARKS[name])
    requests = list(benchmark.instances)
    sides = ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    answers, expected = ([logprob for logprob, _ in side] for side in sides)
    assert answers == pytest.approx(expected, **LOGLIKELIHOOD)
    for document in benchmark.documents:
        asked, place = requests[document.requests], document.requests
        first, second = (benchmark.task.process_results(asked[0].doc, side[place]) for side in sides)
        same = all(first[key] == second[key] for key in first if key.startswith("acc"))
        assert same or is_tie(ours, asked, sides[1][place]), document.index


def test_another_weight_is_noticed(shared: Path, ours: OpenLM, theirs: HFLM) -> None:
    """A tolerance that a wrong model is within would hold nothing."""
    benchmark = load_golden(shared, "copa", 20)
    weight = theirs.model.model.layers[7].self_attn.k_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 5] *= 1.5
    expected = theirs.loglikelihood(list(benchmark.instances), disable_tqdm=True)
    with torch.no_grad():
        weight.copy_(kept)
    answers = [logprob for logprob, _ in ours.loglikelihood(list(benchmark.instances))]
    assert answers != pytest.approx([logprob for logprob, _ in expected], **LOGLIKELIHOOD)


def test_completions_are_those_of_transformers(smollm2: Path, layout: VocabularyLayout) -> None:
    """Also the template for chats, which the folder has, is applied nowhere."""
    checkpoint = CheckpointRef(str(smollm2), layout=layout.to_json())
    result = run_task(checkpoint, kind="completions", prompts=list(SAID), samples=0, max_tokens=40)
    for item in items(result):
        assert item["text"].startswith(SAID[item["prompt"]])
