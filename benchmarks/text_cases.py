"""What `text.py` asks: requests of public benchmarks' items, or random words as many, and the models that answer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from evalsvc.language.benchmarks import Loaded, LoadOptions, load_benchmarks
from evalsvc.language.definitions import Rules
from evalsvc.spec.benchmark import BenchmarkSpec

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
ITEMS = GOLDEN / "text_tasks"
TOKENIZER = GOLDEN / "tokenizer" / "20B_tokenizer.json"
STORIES = GOLDEN / "stories260k_openlm"
BENCHMARKS = ("arc_easy", "piqa", "copa", "winogrande", "winograd_wsc", "lambada_openai")

SHOTS = 5
FIXED = range(1_000, 1_000 + SHOTS)
"""Questions that are the solved examples of all others."""

Row = Mapping[str, Any]
Texts = tuple[str, str]
"""A context and its continuation."""


@dataclass(frozen=True)
class Case:
    """Questions, each of which is some requests."""

    name: str
    goal: float
    """HFLM's time over ours that is aimed at."""
    questions: Sequence[Sequence[Texts]]

    @property
    def requests(self) -> list[Instance]:
        texts = [text for question in self.questions for text in question]
        return [
            Instance("loglikelihood", {}, text, index, metadata=(self.name, index, 1))
            for index, text in enumerate(texts)
        ]

    def choices(self, scores: Sequence[float]) -> list[int]:
        """Which option of each question is the likeliest."""
        ends = [0]
        for question in self.questions:
            ends.append(ends[-1] + len(question))
        parts = (scores[start:stop] for start, stop in pairwise(ends))
        return [max(range(len(part)), key=part.__getitem__) for part in parts]


def public_cases() -> Iterator[Case]:
    """Items of public benchmarks."""
    arc = _rows("arc_easy")
    yield Case("arc_easy, 0 shots", 5, [_options(row) for row in arc[:200]])
    yield Case("arc_easy, 5 fixed shots", 9, [_options(row, [arc[index] for index in FIXED]) for row in arc[:60]])
    draw = random.Random(0)
    yield Case("arc_easy, 5 random shots", 4, [_options(row, draw.sample(arc[60:], SHOTS)) for row in arc[:60]])
    yield Case("piqa", 2, [_options(row) for row in _rows("piqa")[:100]])
    schemas = _rows("winogrande")[:100]
    yield Case(
        "winogrande", 2, [[(one, f" {row['continuation']}") for one in row["context_options"]] for row in schemas]
    )
    yield Case("lambada", 2, [[(row["context"], f" {row['continuation']}")] for row in _rows("lambada_openai")[:100]])


def random_cases(rows: int, questions: int) -> Iterator[Case]:
    """Random words: four options a question, contexts of 29 and options of 4.5 on average, as ARC-easy's tokens."""
    draw = random.Random(0)

    def words(mean: float, most: int) -> str:
        count = round(mean * draw.lognormvariate(-0.18, 0.6))  # its mean is 1
        return " ".join(f"w{draw.randrange(1, rows)}" for _ in range(min(max(count, 1), most)))

    asked = [[(words(28.5, 150), f" {words(4.46, 40)}")] * 1 for _ in range(questions)]
    options = [[(context, f" {words(4.46, 40)}") for _ in range(4)] for [(context, _)] in asked]
    block = words(100, 150)
    yield Case("0 shots", 1, options)
    yield Case("fixed shots", 1, [[(f"{block} {context}", option) for context, option in one] for one in options])
    yield Case("texts", 1, asked)


def load_suite() -> Loaded:
    """All items of the benchmarks that are here, as a suite asks them."""
    folder = Path(__file__).parents[1] / "evalsvc" / "text_tasks"
    resolve: Callable[[str], str] = lambda path: str(ITEMS / path.removeprefix("datasets:text/"))  # noqa: E731
    options = LoadOptions(include_path=(folder,), rules=Rules(resolve=resolve))
    return load_benchmarks([BenchmarkSpec(name=name) for name in BENCHMARKS], options)


def write_tokenizer(rows: int, folder: str) -> Path:
    """One that has the random words."""
    ids = {"<|endoftext|>": 0} | {f"w{index}": index for index in range(1, rows)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    return Path(folder) / "tokenizer.json"


def _rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (ITEMS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _options(row: Row, solved: Sequence[Row] = ()) -> list[Texts]:
    block = "".join(f"{one['query']}Answer: {one['choices'][one['gold']]}\n\n" for one in solved)
    return [(f"{block}{row['query']}Answer:", f" {choice}") for choice in row["choices"]]
