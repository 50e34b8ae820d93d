"""What the held-out topics say that neither a training topic nor an earlier held-out topic does.

Python's documentation repeats itself: more than half of the held-out words stand in training topics too, most of them
in whole sections, and every checkpoint knows those. What held-out topics say twice would count twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

RUN = 8
"""Words in a row that two places do not share by chance."""
WORD = re.compile(r"\w+")
PARAGRAPH = re.compile(r"\S.*?(?=\n\s*\n|\s*\Z)", re.DOTALL)

Run = tuple[str, ...]


def pieces(held_out: Iterable[str], training: Iterable[str]) -> list[str]:
    """The held-out topics without the paragraphs of which RUN words in a row were said before.

    Said by a training topic, or by an earlier paragraph of any held-out topic, be it wrapped or marked otherwise.
    What is left comes in pieces of paragraphs that follow each other in their topic.
    """
    said = {run for topic in training for run, _, _ in _runs(topic)}
    return [piece for topic in held_out for piece in _new_pieces(topic, said)]


def _new_pieces(topic: str, said: set[Run]) -> Iterator[str]:
    """Adds to what was said what it yields."""
    runs = list(_runs(topic))

    def take(paragraph: re.Match[str]) -> bool:
        """Whether it is new; if so, what it says is no longer."""
        found = [(run, end) for run, start, end in runs if start < paragraph.end() and end > paragraph.start()]
        if any(run in said for run, _ in found):
            return False
        # A run that goes on into the next paragraph is that one's to add: it would else be its own repetition.
        said.update(run for run, end in found if end <= paragraph.end())
        return True

    for new, group in groupby(PARAGRAPH.finditer(topic), take):
        paragraphs = list(group)
        if new:
            yield topic[paragraphs[0].start() : paragraphs[-1].end()]


def _runs(text: str) -> Iterator[tuple[Run, int, int]]:
    """Every RUN words in a row, in lower case, with the characters where they begin and end."""
    words = list(WORD.finditer(text))
    lower = [word.group().lower() for word in words]
    for first in range(len(words) - RUN + 1):
        last = first + RUN - 1
        yield tuple(lower[first : last + 1]), words[first].start(), words[last].end()
