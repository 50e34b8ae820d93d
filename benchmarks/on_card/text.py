"""Scoring of options in requests a second and text generation in milliseconds an id."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from side_by_side import interleaved, medians, ratios, seconds

from evalsvc.models import Transformer
from evalsvc.sampling import SamplingParams
from evalsvc.sampling.completion import Continuation, complete
from evalsvc.scoring import Request, score
from evalsvc.scoring.scorer import pack
from evalsvc.spec.layout import text_only
from on_card.kit import Kit, Row, at_most, figure, holds, left_out
from on_card.rates import bandwidth, product_rate
from on_card.twins import BILLION, TINY, Shape, build_llama, build_transformer, layer_weights, missing

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM

OURS, THEIRS = "evalsvc", "lm-eval's HFLM"
BATCH_TOKENS = 8_192
"""As the service has it."""
ERROR = 1e-4
"""Of a log-likelihood in float32, in nats."""
ON_CARD = 3
"""Factor of the error on a card."""
TURNS = 3
OPTIONS = 4
WORDS = 500
"""Ids that are drawn from: those of the smallest table."""
HFLM_BATCH = 32
PROMPTS, PROMPT_TOKENS, DRAWN = 32, 64, 64
COLD = 16
"""Ids that are drawn with cuDNN's attention: it may plan for each of them, which takes up to half a second."""

Questions = Sequence[Sequence[Request]]


def run(kit: Kit) -> Iterator[Row]:
    """Compare log-likelihoods and completions of a small float32 model with the CPU's, then time a large one."""
    yield from _compare(kit)
    shape = TINY if kit.small else BILLION
    model = build_transformer(shape, kit.device, torch.bfloat16)
    for name, questions in _cases(10 if kit.small else 200):
        yield from _time_scoring(kit, shape, model, name, questions)
    yield from _time_completions(kit, shape, model)


def _compare(kit: Kit) -> Iterator[Row]:
    plain = build_transformer(TINY, torch.device("cpu"))
    ours = copy.deepcopy(plain).to(kit.device)
    kit.touched(ours.layers[0])
    for name, questions in _cases(6):
        found, expected = (_log_likelihoods(model, TINY, questions) for model in (ours, plain))
        error = max(abs(mine - other) for mine, other in zip(found, expected, strict=True))
        yield at_most(
            f"float32, {name}: log-likelihoods against the CPU's",
            error,
            ERROR * (ON_CARD if kit.on_card else 1),
            "nats",
        )
    for temperature in (0.0, 1.0):
        found, expected = (_completions(model, 8, 16, temperature) for model in (ours, plain))
        equal = sum(mine == other for mine, other in zip(found, expected, strict=True))
        name = "likeliest" if temperature == 0 else "drawn"
        # On a card a near tie may turn an id, and its text goes on otherwise.
        met = equal >= len(found) - (1 if kit.on_card else 0)
        yield holds(f"float32: {name} ids equal the CPU's", met, f"{equal} of {len(found)} texts")


# scoring


def _cases(count: int) -> Iterator[tuple[str, Questions]]:
    """Yield questions of random ids with four options: contexts of 29 and options of 4.5 on average, as ARC-easy's."""
    draw = random.Random(0)

    def words(mean: float, most: int) -> tuple[int, ...]:
        length = round(mean * draw.lognormvariate(-0.18, 0.6))  # its mean is 1
        return tuple(draw.randrange(1, WORDS) for _ in range(min(max(length, 1), most)))

    plain = [[Request(context, words(4.46, 40)) for _ in range(OPTIONS)] for context in _contexts(words, count)]
    yield "0 shots", plain
    block = words(500, 600)
    yield "fixed shots", [[Request(block + one.context, one.continuation) for one in options] for options in plain]


def _contexts(words: Callable[[float, int], tuple[int, ...]], count: int) -> Iterator[tuple[int, ...]]:
    for _ in range(count):
        yield words(28.5, 150)


def _log_likelihoods(model: Transformer, shape: Shape, questions: Questions) -> list[float]:
    requests = [request for options in questions for request in options]
    return [found.logprob for found in score(model, text_only(shape.rows), requests, BATCH_TOKENS)]


def _time_scoring(kit: Kit, shape: Shape, model: Transformer, name: str, questions: Questions) -> Iterator[Row]:
    title, count = f"{shape.name} bf16, {name}", sum(map(len, questions))
    sides: dict[str, Callable[[], object]] = {OURS: lambda: _log_likelihoods(model, shape, questions)}
    if lacking := missing("lm_eval", "transformers", "tokenizers"):
        yield left_out(f"{title}: against {THEIRS}", lacking)
    else:
        sides[THEIRS] = _their_side(shape, model, questions)
    for side in sides.values():  # warm-up
        side()
    times = interleaved(sides, 1 if kit.small else TURNS)
    taken = medians(times)[OURS]
    yield figure(f"{title}: requests/s", count / taken, "requests/s", seconds=times, requests=count)
    packed = pack([request for options in questions for request in options], BATCH_TOKENS)
    head = shape.hidden_dim * shape.rows
    operations = 2 * (len(packed.trie.ids) * layer_weights(model) + packed.scored * head)
    share = operations / taken / product_rate(kit.device, torch.bfloat16)
    details = {"tokens": len(packed.trie.ids), "heads": packed.scored, "operations": operations}
    yield figure(f"{title}: of product rate, without attention", share, "", **details)
    for ratio in ratios(times, OURS).values():
        yield figure(f"{title}: HFLM's time over ours", ratio, "x")


def _their_side(shape: Shape, model: Transformer, questions: Questions) -> Callable[[], object]:
    """Return what asks HFLM for the same, in words that its tokenizer turns into the same ids."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from text_cases import write_tokenizer
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        path = str(write_tokenizer(WORDS, folder))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=path, eos_token="<|endoftext|>")
    lm: TemplateLM = HFLM(build_llama(shape, model), tokenizer=tokenizer, max_length=1_024, batch_size=HFLM_BATCH)
    texts = [(_words(one.context), f" {_words(one.continuation)}") for options in questions for one in options]
    instances = [Instance("loglikelihood", {}, text, index) for index, text in enumerate(texts)]
    return lambda: lm.loglikelihood(instances, disable_tqdm=True)


def _words(ids: Sequence[int]) -> str:
    return " ".join(f"w{index}" for index in ids)


# text generation


def _completions(model: Transformer, prompts: int, drawn: int, temperature: float = 1.0) -> list[list[int]]:
    draw = random.Random(0)
    asked = [
        Continuation(str(index), tuple(draw.choices(range(WORDS), k=PROMPT_TOKENS)), drawn) for index in range(prompts)
    ]
    return complete(model, asked, SamplingParams(temperature=temperature), batch_tokens=BATCH_TOKENS)


def _time_completions(kit: Kit, shape: Shape, model: Transformer) -> Iterator[Row]:
    prompts, drawn = (4, 4) if kit.small else (PROMPTS, DRAWN)
    title = f"{shape.name} bf16, {prompts} texts"
    weight_bytes = 2 * (layer_weights(model) + shape.hidden_dim * shape.rows)
    with _cudnn_attention(kit, False):
        _completions(model, prompts, 2)  # warm-up
        taken = seconds(lambda: _completions(model, prompts, drawn)) / drawn
    yield figure(f"{title} of {drawn} ids: ms an id", 1e3 * taken, "ms")
    share = weight_bytes / bandwidth(kit.device) / taken
    yield figure(f"{title} of {drawn} ids: of bandwidth, weights", share, "", weight_bytes=weight_bytes)
    if not kit.on_card:
        yield left_out(f"{title}: cuDNN's attention on", "there is none on a CPU")
        return
    for enabled in (False, True):
        with _cudnn_attention(kit, enabled):
            for turn in ("first", "second"):
                taken = seconds(lambda: _completions(model, prompts, COLD)) / COLD
                switch = "on" if enabled else "off"
                yield figure(f"{title} of {COLD}, cuDNN {switch}, {turn} time: ms an id", 1e3 * taken, "ms")


@contextmanager
def _cudnn_attention(kit: Kit, enabled: bool) -> Iterator[None]:
    """Switch cuDNN's attention, and back to what it was."""
    if not kit.on_card:
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
