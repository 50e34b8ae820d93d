"""Expressions drawn at random, for tests of what holds for all of them."""

import random

from evalsvc.checkpoints.expression import PARTS, Average, Base, Expression, File, Graft, Lerp, Step


def random_expression(chance: random.Random, room: int = 4) -> Expression:
    kind = chance.choice(["leaf", "avg", "lerp", "graft"]) if room else "leaf"
    if kind == "leaf":
        name = chance.choice(["run", "text-1b", "a.b_c"])
        step = Step(name, chance.randrange(10_000), chance.choice(["raw", "raw", "ema_0.9999"]))
        return chance.choice([step, step, step, Base(), File("/runs/a b/epoch=3.pt"), File("runs/step|4.pt")])
    if kind == "avg":
        return Average(tuple(random_expression(chance, room - 1) for _ in range(chance.randint(1, 4))))
    first, second = random_expression(chance, room - 1), random_expression(chance, room - 1)
    if kind == "lerp":
        return Lerp(first, second, chance.choice([0.0, 1.0, 0.3, chance.random(), 1e-7]))
    chosen = chance.sample([*range(12), *PARTS], k=chance.randint(1, 8))
    return Graft(first, second, frozenset(chosen))


Ids = tuple[int, ...]


def random_sequences() -> list[Ids]:
    """Contexts with options, some of which begin alike, solved examples before some, and some of it twice."""
    pick = random.Random(0)
    words = [tuple(pick.choices(range(4), k=pick.randint(1, 14))) for _ in range(30)]
    block = tuple(pick.choices(range(9), k=40))
    asked = [context + option for context in words[:8] for option in pick.sample(words, 6)]
    asked += [block + context + option for context in words[8:14] for option in pick.sample(words, 4)]
    return asked + pick.sample(asked, 15)
