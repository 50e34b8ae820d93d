"""The miniature's cloze: in which of four orders do four words go on, in text that no checkpoint was trained on?

Of such text the language model knows the grammar and little of the matter, so the wrong options are the right words in
other orders, which also makes all options equally long.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

QUESTIONS = 300
OPTIONS = 4
WORDS = 4
CONTEXT = 110
"""Characters before the gap: with its options a question stays within the model's 132 tokens."""
RUN = re.compile(rf"(?<=\S )[a-z]+(?: [a-z]+){{{WORDS - 1}}}(?= )")
"""Lower-case words within a line."""


@dataclass(frozen=True)
class Gap:
    words: str
    context: str
    """What stands before them, from the beginning of a word on."""


def questions(texts: Iterable[str], seed: int) -> list[dict[str, Any]]:
    """Rows `{"query", "choices", "gold"}` in the order of the texts; each place is as often the right one."""
    generator = random.Random(seed)
    gaps = [gap for text in texts for gap in _gaps(text)]
    chosen = sorted(generator.sample(range(len(gaps)), QUESTIONS))
    places = [index % OPTIONS for index in range(QUESTIONS)]
    generator.shuffle(places)
    return [_question(gaps[index], gold, generator) for index, gold in zip(chosen, places, strict=True)]


def _question(gap: Gap, gold: int, generator: random.Random) -> dict[str, Any]:
    choices: list[str] = []
    while len(choices) < OPTIONS - 1:
        words = gap.words.split()
        generator.shuffle(words)
        order = " ".join(words)
        if order not in (gap.words, *choices):
            choices.append(order)
    choices.insert(gold, gap.words)
    return {"query": gap.context, "choices": choices, "gold": gold}


def _gaps(text: str) -> Iterator[Gap]:
    """The places for a question; words that occur twice have too few orders."""
    for match in RUN.finditer(text):
        words, end = match.group(), match.start() - 1  # the space before the words is the option's
        if end >= CONTEXT and len(set(words.split())) == WORDS:
            yield Gap(words, re.sub(r"^\S*\s+", "", text[end - CONTEXT : end]))
