"""Sequences of ids that begin alike, drawn at random."""

import random

Ids = tuple[int, ...]


def random_sequences() -> list[Ids]:
    """Contexts with options, some of which begin alike, solved examples before some, and some of it twice."""
    pick = random.Random(0)
    words = [tuple(pick.choices(range(4), k=pick.randint(1, 14))) for _ in range(30)]
    block = tuple(pick.choices(range(9), k=40))
    asked = [context + option for context in words[:8] for option in pick.sample(words, 6)]
    asked += [block + context + option for context in words[8:14] for option in pick.sample(words, 4)]
    return asked + pick.sample(asked, 15)
