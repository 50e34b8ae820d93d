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
    """Faults for so many seconds, `gap` seconds apart on average: every kind once, in random order, and so again."""
    chance = Random(seed)
    planned: list[Planned] = []
    deck: list[str] = []
    at = 0.0
    while True:
        at += gap * chance.uniform(0.5, 1.5)
        if at >= seconds:
            return planned
        if not deck:
            deck = chance.sample(kinds, len(kinds))
        planned.append(Planned(at, deck.pop(), chance.random()))
