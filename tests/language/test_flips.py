"""Flipped questions in words, on real benchmarks of every kind, from items that are written out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import questions, write_benchmark

from evalsvc.language.benchmarks import Benchmark, LoadOptions, load_benchmarks
from evalsvc.language.results import flips
from evalsvc.spec.benchmark import BenchmarkSpec


def load(folder: Path, **changes: Any) -> Benchmark:
    write_benchmark(folder, "a", questions(6), **{"generation_kwargs": None, **changes})
    options = LoadOptions(include_path=(folder,), num_fewshot=changes.get("num_fewshot"))
    return load_benchmarks([BenchmarkSpec(name="a")], options).benchmarks[0]


def item(index: int, acc: float, within: float | None, **more: Any) -> dict[str, Any]:
    found = {"benchmark": "a", "index": index, "acc": acc, **more}
    return found if within is None else {**found, "acc_within": within}


def scores(chosen: int, within: int | None = None, options: int = 3) -> list[list[float]]:
    """Log-probabilities by which these options are chosen."""
    rows: list[list[float]] = [[-float(place != chosen), 0] for place in range(options)]
    return rows if within is None else [[*row, -float(place != within), 0] for place, row in enumerate(rows)]


def test_a_multiple_choice(tmp_path: Path) -> None:
    """Question 1 has the options 1, 2 and 3 and the second is right; no solved example is part of the question."""
    benchmark = load(tmp_path, num_fewshot=2, fewshot_split="test")
    base = [item(n, 1.0, 1.0, scores=scores(n % 3, n % 3)) for n in range(6)]
    own = [*base[:1], item(1, 0.0, 1.0, scores=scores(2, 1)), *base[2:]]
    assert [flip.model_dump() for flip in flips(benchmark, "acc", base, own)] == [
        {
            "index": 1,
            "flip": "lost",
            "flip_within": None,
            "question": "Question: what is 1?\nAnswer:",
            "options": ["1", "2", "3"],
            "right": ["2"],
            "base": "2",
            "checkpoint": "3",
            "base_within": "2",
            "checkpoint_within": "2",
        }
    ]
    assert [flip.flip for flip in flips(benchmark, "acc", own, base)] == ["gained"]
    within = [*base[:4], item(4, 1.0, 0.0, scores=scores(1, 0)), *base[5:]]
    assert [(flip.flip, flip.flip_within) for flip in flips(benchmark, "acc", base, within)] == [(None, "lost")]


def test_of_equal_options_the_first_is_the_answer(tmp_path: Path) -> None:
    """As lm-eval decides it; else the page shows an answer that was not counted."""
    base, own = [item(0, 1.0, None, scores=scores(0))], [item(0, 0.0, None, scores=[[-2, 0], [-1, 0], [-1, 0]])]
    [flip] = flips(load(tmp_path), "acc", base, own)
    assert (flip.base, flip.checkpoint, flip.checkpoint_within) == ("0", "1", "1")


def test_a_base_that_is_all_text(tmp_path: Path) -> None:
    base, own = [item(0, 1.0, None, scores=scores(0))], [item(0, 0.0, 1.0, scores=scores(1, 0))]
    [flip] = flips(load(tmp_path), "acc", base, own)
    assert (flip.flip, flip.flip_within, flip.base_within) == ("lost", None, "0")


def test_contexts_as_options(tmp_path: Path) -> None:
    """Winograd's schemas: the options are what goes before, and the question is how it goes on."""
    benchmark = load(tmp_path, doc_to_text="gold", doc_to_choice="choices", doc_to_target="{{question}}")
    base, own = ([item(1, acc, None, scores=scores(chosen))] for acc, chosen in ((1.0, 1), (0.0, 0)))
    [flip] = flips(benchmark, "acc", base, own)
    assert (flip.question, flip.right) == ("what is 1?", ["2"])
    assert (flip.base, flip.checkpoint) == ("2", "1")


@pytest.mark.parametrize(
    ("scored", "answer"), [([-0.1, 1], "2"), ([-6.9, 0], "other words (the right ones have probability 0.001)")]
)
def test_a_continuation(tmp_path: Path, scored: Sequence[float], answer: str) -> None:
    """Of the wrong one nothing is known but that it is another."""
    benchmark = load(tmp_path, output_type="loglikelihood", doc_to_choice=None, doc_to_target=" {{choices[gold]}}")
    base, own = [item(1, 0.5, None, scores=[[-1, 0]])], [item(1, float(scored[1]), None, scores=[list(scored)])]
    [flip] = flips(benchmark, "acc", base, own)
    assert (flip.right, flip.checkpoint) == (["2"], answer)
    assert flip.options is None


def test_a_text_that_was_drawn(tmp_path: Path) -> None:
    benchmark = load(tmp_path, output_type="generate_until", doc_to_choice=None, doc_to_target="{{choices[gold]}}")
    base = [item(2, 1.0, 1.0, text=[" 4\n"], text_within=["4"])]
    own = [item(2, 0.0, 0.0, text=["‹image 3›"], text_within=["five"])]
    [flip] = flips(benchmark, "acc", base, own)
    assert (flip.right, flip.base, flip.checkpoint, flip.checkpoint_within) == (["4"], "4", "‹image 3›", "five")


def test_what_one_side_lacks_has_not_flipped(tmp_path: Path) -> None:
    assert not list(flips(load(tmp_path), "acc", [item(0, 1.0, None, scores=scores(0))], []))


def test_half_a_character_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset with a lone surrogate would have cost the whole task's numbers."""
    monkeypatch.setattr("evalsvc.language.results.question_text", lambda *_: "what is \ud83d?")
    base, own = [item(0, 1.0, None, scores=scores(0))], [item(0, 0.0, None, scores=scores(1))]
    [flip] = flips(load(tmp_path), "acc", base, own)
    assert flip.question == "what is ??"
