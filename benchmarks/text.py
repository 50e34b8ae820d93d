"""Scoring the options of questions against lm-eval's own HFLM: requests per second.

Both are lm-eval models with the same weights and answer the same requests, as lm-eval makes them of ARC-easy at zero
shots, alternating in one process; tokenizing is part of it. HFLM has the batch size that suits it best here, and its
cache, with which options of one id share a forward pass. Log-likelihoods and greedy flags are compared before anything
is timed.

    python benchmarks/text.py [--quick]

Questions and tokenizer are those in ../shared/golden; without them, and with --quick, words are drawn at random, as
many as ARC-easy has. Prints a card (shape, requests, operations), a table, the distance from the matrix product that
this machine manages, and as last line one JSON document; `ratios` has HFLM's time over ours, above 1 when ours is
faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from loss import Case as Shape
from loss import build_ours, build_theirs
from side_by_side import gemm_rate, interleaved, machine, medians, print_last_line, ratios, seconds
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from evalsvc.language.encoding import TextEncoding
from evalsvc.language.lm import OpenLM
from evalsvc.layout import text_only
from evalsvc.models import Transformer
from evalsvc.scoring import Request
from evalsvc.scoring.packing import pack
from evalsvc.scoring.scorer import CPU_BATCH_TOKENS
from evalsvc.tokenizer import read_tokenizer

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
QUESTIONS = GOLDEN / "text_tasks" / "arc_easy.jsonl"
TOKENIZER = GOLDEN / "tokenizer" / "20B_tokenizer.json"

HFLM_NAME = "lm-eval's HFLM"
MAX_LENGTH = 1_024
TOLERANCE = 1e-4

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether it is the greedy one."""

Texts = tuple[str, str]
"""A context and its continuation."""


@dataclass(frozen=True)
class Case:
    shape: Shape
    questions: int
    batch_sizes: tuple[int, ...]
    """HFLM's, of which the best is taken."""


def make_case(width: int, layers: int, heads: int, rows: int, questions: int, batch_sizes: tuple[int, ...]) -> Case:
    # The ceiling is that of a product with as many rows as our batches have tokens.
    layout = text_only(rows).model_copy(update={"length": CPU_BATCH_TOKENS})
    return Case(Shape(width, layers, heads, layout, sequences=1, repetitions=3), questions, batch_sizes)


# A Llama of 79M parameters with the NeoX tokenizer's rows, and a small one that shows only that the benchmark works.
FULL = make_case(512, 8, 8, 50_432, questions=200, batch_sizes=(4, 8, 16, 32))
QUICK = make_case(64, 2, 4, 512, questions=10, batch_sizes=(16,))


def read_texts(case: Case) -> list[Texts]:
    """The options of the first questions, each with its question."""
    questions = map(json.loads, QUESTIONS.read_text(encoding="utf-8").splitlines()[: case.questions])
    return [(f"{question['query']}Answer:", f" {choice}") for question in questions for choice in question["choices"]]


def make_texts(case: Case) -> list[Texts]:
    """Random words: four options a question, contexts of 29 and options of 4.5 on average, as ARC-easy's tokens."""
    draw = random.Random(0)

    def words(mean: float, most: int) -> str:
        count = round(mean * draw.lognormvariate(-0.18, 0.6))  # its mean is 1
        return " ".join(f"w{draw.randrange(1, case.shape.rows)}" for _ in range(min(max(count, 1), most)))

    contexts = [words(28.5, 150) for _ in range(case.questions)]
    return [(context, f" {words(4.46, 40)}") for context in contexts for _ in range(4)]


def write_tokenizer(case: Case, folder: str) -> Path:
    """One that has the random words."""
    ids = {"<|endoftext|>": 0} | {f"w{index}": index for index in range(1, case.shape.rows)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    return Path(folder) / "tokenizer.json"


def build_openlm(case: Case, model: Transformer, tokenizer: Path) -> OpenLM:
    return OpenLM(model, TextEncoding(read_tokenizer(tokenizer), case.shape.layout, MAX_LENGTH))


def build_hflm(case: Case, model: Transformer, tokenizer: Path) -> HFLM:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every model that is not a path
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token="<|endoftext|>")
    return HFLM(build_theirs(case.shape, model), tokenizer=fast, max_length=MAX_LENGTH)


def make_requests(texts: Sequence[Texts]) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, text, index, metadata=("arc_easy", index, 1)) for index, text in enumerate(texts)
    ]


def answer(lm: TemplateLM, requests: list[Instance]) -> list[Answer]:
    return lm.loglikelihood(requests, disable_tqdm=True)


def choose_batch_size(case: Case, lm: HFLM, requests: Sequence[Instance]) -> dict[int, float]:
    """Requests a second of HFLM at each batch size on every fifth question; leaves it at the best."""
    some = [request for index, request in enumerate(requests) if index // 4 % 5 == 0]
    answer(lm, some[:16])  # warm-up
    rates = {}
    for size in case.batch_sizes:
        lm.batch_size_per_gpu = size
        rates[size] = len(some) / seconds(lambda: answer(lm, some))
    lm.batch_size_per_gpu = max(rates, key=lambda size: rates[size])
    return rates


@dataclass(frozen=True)
class Work:
    """What one side computes, without its padding."""

    tokens: int
    """That go through the layers."""
    heads: int
    """Positions whose logits are computed."""

    def operations(self, model: Transformer) -> int:
        """Two per weight and token; attention is left out, less than 2 % of it here."""
        head = model.output.weight.numel()
        layers = sum(parameter.numel() for parameter in model.layers.parameters())
        return 2 * (self.tokens * layers + self.heads * head)


def our_work(requests: Sequence[Request]) -> Work:
    rows = pack(requests, CPU_BATCH_TOKENS)
    return Work(sum(row.length for row in rows), sum(row.length - len(row.context) + 1 for row in rows))


def their_work(requests: Sequence[Request]) -> Work:
    """With the cache: what differs in its last id only is computed once."""
    tokens = sum(map(len, {request.context + request.continuation[:-1] for request in requests}))
    return Work(tokens, tokens)


def compare(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """The largest difference of two log-likelihoods; ends the benchmark where it or a greedy flag is wrong."""
    worst = max(abs(mine[0] - other[0]) for mine, other in zip(ours, theirs, strict=True))
    flags = sum(mine[1] != other[1] for mine, other in zip(ours, theirs, strict=True))
    if worst > TOLERANCE or flags:
        raise SystemExit(f"the sides differ: log-likelihoods by up to {worst:.1e}, {flags} greedy flags")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that the benchmark works")
    quick = parser.parse_args().quick
    case = QUICK if quick else FULL
    synthetic = quick or not (QUESTIONS.exists() and TOKENIZER.exists())
    with tempfile.TemporaryDirectory() as folder:
        run(case, synthetic, write_tokenizer(case, folder) if synthetic else TOKENIZER)


def run(case: Case, synthetic: bool, tokenizer: Path) -> None:
    model = build_ours(case.shape)
    ours, theirs = build_openlm(case, model, tokenizer), build_hflm(case, model, tokenizer)
    requests = make_requests(make_texts(case) if synthetic else read_texts(case))
    encoded = [one for scored in ours.encoding.encode_all(requests, str) for one in scored.requests]
    print_card(case, model, encoded, "random words, as many" if synthetic else "its first questions, NeoX tokenizer")
    rates = choose_batch_size(case, theirs, requests)
    difference = compare(answer(ours, requests), answer(theirs, requests))  # also the warm-up
    sides = {"evalsvc": lambda: answer(ours, requests), HFLM_NAME: lambda: answer(theirs, requests)}
    times = interleaved(sides, case.shape.repetitions)
    print_results(model, encoded, rates, difference, times, gemm_rate(torch.float32))


def print_card(case: Case, model: Transformer, requests: Sequence[Request], what: str) -> None:
    weights = sum(parameter.numel() for parameter in model.parameters())
    shape, mine, theirs = case.shape, our_work(requests), their_work(requests)
    lengths = [len(request.context) + len(request.continuation) for request in requests]
    print(
        f"model     {shape.hidden_dim} wide, {shape.n_layers} layers, {shape.n_heads} heads, {shape.rows:,} rows, "
        f"{weights / 1e6:.1f} M weights, float32"
    )
    print(f"data      ARC-easy at zero shots: {what}")
    print(
        f"requests  {len(requests)} of {case.questions} questions; {statistics.mean(lengths):.1f} tokens on average, "
        f"{max(lengths)} at most; options of {statistics.mean(len(request.continuation) for request in requests):.2f}"
    )
    print(f"evalsvc   {mine.tokens:,} tokens, {mine.heads:,} of them to the head")
    print(f"HFLM      {theirs.tokens:,} tokens and its padding, all to the head")
    print(
        f"work      {mine.operations(model) / 1e12:.3f} TFLOP, HFLM {theirs.operations(model) / 1e12:.3f} and padding"
    )
    print(f"machine   {machine()}\n")


def print_results(
    model: Transformer,
    requests: Sequence[Request],
    rates: dict[int, float],
    difference: float,
    times: Mapping[str, Sequence[float]],
    ceiling: float,
) -> None:
    best = max(rates, key=lambda size: rates[size])
    typical = medians(times)
    flops = [work.operations(model) for work in (our_work(requests), their_work(requests))]
    print(f"{'':26}{'requests/s':>12}{'seconds':>10}{'of ceiling':>12}")
    for (name, taken), work in zip(typical.items(), flops, strict=True):
        print(f"{name:26}{len(requests) / taken:12.1f}{taken:10.2f}{work / taken / ceiling:12.0%}")
    print(f"\nceiling   {ceiling / 1e9:.0f} GFLOP/s, a float32 matrix product")
    tried = ", ".join(f"{size}: {rate:.1f}" for size, rate in rates.items())
    print(f"batches   HFLM's requests/s on a part, by batch size, of which {best} was taken: {tried}")
    print(f"equal     log-likelihoods to {difference:.1e}, all greedy flags\n")
    print_last_line(
        "text",
        ratios(times, "evalsvc"),
        requests_per_second={name: len(requests) / taken for name, taken in typical.items()},
        batch_size=best,
        difference=difference,
        ceiling_flops=ceiling,
        of_ceiling=flops[0] / typical["evalsvc"] / ceiling,
    )


if __name__ == "__main__":
    main()
