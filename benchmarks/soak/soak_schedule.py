"""When which fault happens: a pure function of the seed, so that a run that failed can be had again."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Planned:
    """A fault that is to come."""

    at: float
    """Seconds after the beginning."""
    kind: str
    draw: float
    """Between 0 and 1: which of the things that are there at that time it hits, and for how long."""


def schedule(seed: int, seconds: float, kinds: Sequence[str], gap: float) -> list[Planned]:
    """A fault every `gap` seconds, give or take a half: every kind once, in random order, and so again."""
    chance = Random(seed)
    planned: list[Planned] = []
    deck: list[str] = []
    for number in range(1, int(seconds / gap) + 1):
        if not deck:
            deck = chance.sample(kinds, len(kinds))
        planned.append(Planned(gap * (number + chance.uniform(-0.5, 0.5)), deck.pop(), chance.random()))
    return planned
