"""Cells of means, ratios and shares: single values and differences."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from evalsvc.metrics.definitions import RANGES, Range
from evalsvc.metrics.distance import Distance, distance
from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.ratio import Ratio, perplexity
from evalsvc.metrics.value_interval import value_interval
from simulated.cells import Cell, Draw, Generator, Simulation
from simulated.data import PER_IMAGE, SHAPES, Shape, clustered, mean, numbers, owners, ratio, ratio_numbers

ALPHA = 0.05
"""1 − LEVEL."""
SIZES = (MIN_ITEMS, 20, 100, 1_000)
TOO_FEW = MIN_ITEMS - 1


def of_value(
    found: Ratio, unit: str, truth: float | None, items: Numbers | None = None, of: Range | None = None
) -> Draw:
    """A single value with its interval, as it is stored: the items say how lopsided its errors are."""
    interval = value_interval(found, unit, of or RANGES.get(unit, "any"), items)
    if interval is None:
        return Draw(found.value, found.stderr, truth=truth)
    return Draw(found.value, found.stderr, interval.low, interval.high, truth)


def of_difference(found: Distance, truth: float) -> Draw:
    """A difference with its interval, and whether it is called one although there is none."""
    interval, verdict = found.interval(), found.verdict(LEVEL, "lower")
    alarm = None if verdict is None or truth else verdict != "indistinguishable"
    if interval is None:
        return Draw(found.value, found.stderr, truth=truth, alarm=alarm)
    return Draw(found.value, found.stderr, interval.low, interval.high, truth, alarm)


# differences of means


def paired_mean(shape: Shape, n: int) -> Simulation:
    """Two checkpoints on the same items; the checkpoint's change of each has the shape."""

    def draw(random: Generator) -> Draw:
        base = random.standard_normal(n)
        own = base + shape(random, n)
        return of_difference(distance(mean(base), mean(own), (numbers(base), numbers(own))), 0.0)

    return draw


def paired_clusters(shape: Shape, images: int) -> Simulation:
    """Differences of which half is the image's, with `PER_IMAGE` captions of each."""
    groups = owners(images)

    def draw(random: Generator) -> Draw:
        base = random.standard_normal(len(groups))
        own = base + clustered(shape, random, images)
        sides = numbers(base, groups), numbers(own, groups)
        return of_difference(distance(mean(base, groups), mean(own, groups), sides), 0.0)

    return draw


def constant_shift(n: int, shift: float) -> Simulation:
    """Every item changes by as much: nothing is known of how much it varies."""

    def draw(random: Generator) -> Draw:
        base = random.integers(0, 64, n) / 64  # differences without rounding
        own = base + shift
        return of_difference(distance(mean(base), mean(own), (numbers(base), numbers(own))), shift)

    return draw


def sample_of_population(n: int, population: int) -> Simulation:
    """Items drawn without replacement; the truth is the mean over the population."""

    def draw(random: Generator) -> Draw:
        everything = random.standard_normal((2, population))
        everything[1] += everything[0]
        chosen = random.choice(population, n, replace=False)
        base, own = everything[:, chosen]
        truth = float(everything[1].mean() - everything[0].mean())
        sides = numbers(base), numbers(own)
        return of_difference(distance(mean(base), mean(own), sides, drawn_from=population), truth)

    return draw


def unpaired_mean(shape: Shape, n_a: int, n_b: int, scale: float = 1.0) -> Simulation:
    """Two independent samples; `scale` is of the second."""

    def draw(random: Generator) -> Draw:
        a, b = shape(random, n_a), scale * shape(random, n_b)
        return of_difference(distance(mean(a), mean(b)), 0.0)

    return draw


# single values


def single_mean(shape: Shape, n: int) -> Simulation:
    def draw(random: Generator) -> Draw:
        values = shape(random, n)
        return of_value(mean(values), "score", 0.0, numbers(values))

    return draw


LENGTH_SPREAD = 1.0
"""Standard deviation of the logarithm of a sequence's tokens."""


def losses(random: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses and tokens of n sequences: longer ones are easier, and their lengths are skewed."""
    logarithms = LENGTH_SPREAD * random.standard_normal(n)
    tokens = 20 * np.exp(logarithms)
    return tokens * (3 - 0.2 * logarithms + 0.5 * random.standard_normal(n)), tokens


MEAN_LOSS = 3 - 0.2 * LENGTH_SPREAD**2


def mean_loss(n: int) -> Simulation:
    def draw(random: Generator) -> Draw:
        items = ratio_numbers(*losses(random, n))
        return of_value(ratio(items), "nats/token", MEAN_LOSS, items)

    return draw


def mean_perplexity(n: int) -> Simulation:
    def draw(random: Generator) -> Draw:
        items = ratio_numbers(*losses(random, n))
        return of_value(perplexity(ratio(items)), "perplexity", math.exp(MEAN_LOSS), items)

    return draw


def loss_difference(n: int, unit: str) -> Simulation:
    """A loss, or its perplexity, of two checkpoints on the same sequences."""

    def draw(random: Generator) -> Draw:
        base, tokens = losses(random, n)
        own = base + tokens * 0.3 * random.standard_normal(n)
        sides = ratio_numbers(base, tokens), ratio_numbers(own, tokens)
        a, b = (perplexity(ratio(side)) if unit == "perplexity" else ratio(side) for side in sides)
        return of_difference(distance(a, b, sides, unit=unit), 0.0)

    return draw


def clustered_loss(images: int) -> Simulation:
    """The loss of captions, `PER_IMAGE` of an image, with half of the variance the image's."""
    groups = owners(images)

    def draw(random: Generator) -> Draw:
        values = 3 + 0.5 * clustered(SHAPES["normal"], random, images)
        tokens = random.integers(8, 30, len(values)).astype(float)
        items = ratio_numbers(values * tokens, tokens, groups)
        return of_value(ratio(items), "nats/token", 3.0, items)

    return draw


def share(n: int, band: tuple[float, float]) -> Simulation:
    """Right answers of n; the true share is drawn from the band, since coverage jumps from one share to the next."""

    def draw(random: Generator) -> Draw:
        truth = random.uniform(*band)
        right = random.random(n) < truth
        return of_value(mean(right), "fraction", truth, numbers(right))

    return draw


def share_of_clusters(images: int) -> Simulation:
    """Right answers to `PER_IMAGE` questions an image, which depend on the image."""
    groups = owners(images)

    def draw(random: Generator) -> Draw:
        chances = np.repeat(random.beta(2, 2, images), PER_IMAGE)
        right = random.random(len(groups)) < chances
        return of_value(mean(right, groups), "fraction", 0.5, numbers(right, groups))

    return draw


def weighted_share(n: int, truth: float) -> Simulation:
    """The share of a text's tokens on which two checkpoints agree, in texts of skewed lengths."""

    def draw(random: Generator) -> Draw:
        tokens = np.maximum(2, np.round(np.exp(3.4 + 0.8 * random.standard_normal(n))))
        agreeing = random.binomial(tokens.astype(int), random.beta(5 * truth, 5 - 5 * truth, n))
        items = ratio_numbers(agreeing.astype(float), tokens)
        return of_value(ratio(items), "fraction", truth, items)

    return draw


def skewed_mean(n: int, sigma: float) -> Simulation:
    """A mean over tokens of a number that cannot be negative and is rarely large: a KL, the mass of image ids."""

    def draw(random: Generator) -> Draw:
        tokens = np.maximum(2, np.round(np.exp(3.4 + 0.8 * random.standard_normal(n))))
        items = ratio_numbers(tokens * np.exp(sigma * random.standard_normal(n) - sigma * sigma / 2), tokens)
        return of_value(ratio(items), "nats/token", 1.0, items)

    return draw


def accuracy_pairs(n: int, differing: float = 0.15, lost: float = 0.0) -> Simulation:
    """Two checkpoints with other answers to `differing` of the questions; `lost` points are truly lost."""
    only_a, only_b = (differing + lost) / 2, (differing - lost) / 2

    def draw(random: Generator) -> Draw:
        place = random.random(n)
        a = (place < only_a) | (place > 0.5)
        b = ((place >= only_a) & (place < only_a + only_b)) | (place > 0.5)
        return of_difference(distance(mean(a), mean(b), (numbers(a), numbers(b)), unit="fraction"), -lost)

    return draw


BANDS = {"p near .5": (0.4, 0.6), "p near .95": (0.92, 0.98), "p near .99": (0.98, 1.0), "p near .02": (0.0, 0.04)}

PAIRED, UNPAIRED, SINGLE = "paired difference of means", "unpaired difference of means", "mean"
LOSS, ACCURACY, SHARE = "loss per token, skewed lengths", "0/1 answers, paired", "share"


def cells() -> Iterator[Cell]:
    yield from _paired()
    yield from _unpaired()
    yield from _single()
    yield from _losses()
    yield from _answers()


def _paired() -> Iterator[Cell]:
    before = {("normal", 20): ".939±.004 (n=20), .876 (n=5), .701 (n=2)", ("lognormal(1)", 20): ".85±.006, .57 (n=2)"}
    for name, shape in SHAPES.items():
        yield Cell(PAIRED, name, f"{TOO_FEW}", paired_mean(shape, TOO_FEW), 500, ALPHA, claims=False)
        for n in SIZES:
            reps = 8_000 if n <= 100 else 2_000
            yield Cell(PAIRED, name, f"{n}", paired_mean(shape, n), reps, ALPHA, before=before.get((name, n), ""))
    for name in ("normal", "lognormal(1)"):
        for images in (TOO_FEW, MIN_ITEMS, 60):
            clusters = paired_clusters(SHAPES[name], images)
            before_clusters = "false alarms .357±.008" if images == 60 and name == "normal" else ""
            size = f"{images} × {PER_IMAGE}"
            claims = images >= MIN_ITEMS
            yield Cell(PAIRED, f"clustered, {name}", size, clusters, 4_000, ALPHA, claims, before_clusters)
    for n, said in ((2, "worse ± 0, certain"), (TOO_FEW, "")):
        yield Cell(PAIRED, "constant shift", f"{n}", constant_shift(n, 0.25), 100, None, claims=False, before=said)
    for n, population in ((200, 1_000), (20, 25)):
        size = f"{n} of {population:,}"
        said = "coverage .99 (spread 1.18)" if n == 200 else ""
        yield Cell(PAIRED, "without replacement", size, sample_of_population(n, population), 4_000, before=said)


def _unpaired() -> Iterator[Cell]:
    for name, shape in SHAPES.items():
        yield Cell(UNPAIRED, name, f"{TOO_FEW}, 1000", unpaired_mean(shape, TOO_FEW, 1_000), 500, ALPHA, claims=False)
        for n_a, n_b in ((MIN_ITEMS, MIN_ITEMS), (20, 20), (100, 1_000)):
            yield Cell(UNPAIRED, name, f"{n_a}, {n_b}", unpaired_mean(shape, n_a, n_b), 4_000, ALPHA)
    for n_a, n_b, scale in ((MIN_ITEMS, 40, 0.2), (MIN_ITEMS, 40, 5.0), (20, 200, 0.2)):
        data = f"normal, of deviation 1 and {scale:g}"
        yield Cell(UNPAIRED, data, f"{n_a}, {n_b}", unpaired_mean(SHAPES["normal"], n_a, n_b, scale), 4_000, ALPHA)


def _single() -> Iterator[Cell]:
    for name, shape in SHAPES.items():
        for n in (TOO_FEW, *SIZES):
            yield Cell(SINGLE, name, f"{n}", single_mean(shape, n), 4_000 if n <= 100 else 1_000, claims=n >= MIN_ITEMS)


def _losses() -> Iterator[Cell]:
    before = {20: ".88±.005 (n=20), .75 (n=5), .54 (n=2)", 100: ".91 (n=50)", 300: ".94"}
    for n in (TOO_FEW, MIN_ITEMS, 20, 100, 300):
        claims = n >= MIN_ITEMS
        yield Cell(LOSS, "lognormal lengths", f"{n}", mean_loss(n), 4_000, None, claims, before.get(n, ""))
    for n in (TOO_FEW, MIN_ITEMS, 20, 100):
        claims, said = n >= MIN_ITEMS, "loss .932, perplexity .909" if n == 20 else ""
        yield Cell("perplexity", "lognormal lengths", f"{n}", mean_perplexity(n), 4_000, None, claims, said)
    for unit in ("nats/token", "perplexity"):
        for n in (TOO_FEW, MIN_ITEMS, 20, 100):
            claims, said = n >= MIN_ITEMS, "coverage .89" if n == 20 and unit == "nats/token" else ""
            family = f"difference of a loss in {unit}" if unit == "nats/token" else "difference of a perplexity"
            yield Cell(family, "lognormal lengths", f"{n}", loss_difference(n, unit), 4_000, ALPHA, claims, said)
    for images in (TOO_FEW, MIN_ITEMS, 60, 300):
        said = "coverage .647±.020, error .029 for a spread of .065" if images == 60 else ""
        size, claims = f"{images} × {PER_IMAGE}", images >= MIN_ITEMS
        yield Cell("loss of clustered captions", "normal", size, clustered_loss(images), 4_000, None, claims, said)


def _answers() -> Iterator[Cell]:
    for differing in (0.15, 0.5):
        for n in (MIN_ITEMS, 20, 50, 100, 300, 1_000):
            said = "4 lost, 0 gained of 200: worse, with an exact p of .125" if (n, differing) == (300, 0.15) else ""
            data, cell = f"{differing:.0%} differ", accuracy_pairs(n, differing)
            few = "an exact test of few differing answers has few levels" if n * differing <= 50 else ""
            yield Cell(ACCURACY, data, f"{n}", cell, 4_000 if n <= 300 else 2_000, ALPHA, True, said, few)
            lost = differing / 5
            cell = accuracy_pairs(n, differing, lost)
            yield Cell(ACCURACY, f"{data}, {lost:.0%} lost", f"{n}", cell, 4_000 if n <= 300 else 2_000, accepted=few)
    before = {
        ("p near .95", 20): ".639",
        ("p near .99", 50): ".395",
        ("p near .99", 300): ".799",
        ("p near .02", 50): ".635",
    }
    for name, band in BANDS.items():
        for n in (TOO_FEW, MIN_ITEMS, 20, 50, 300, 1_000):
            said = f"{text} (one p)" if (text := before.get((name, n))) else ""
            data, claims = f"{name}: {band[0]:g} to {band[1]:g}", n >= MIN_ITEMS
            yield Cell(SHARE, data, f"{n}", share(n, band), 4_000, None, claims, said)
    for truth in (0.9, 0.5):
        for n in (TOO_FEW, MIN_ITEMS, 20, 50):
            said = {(0.9, 8): ".832", (0.9, 20): ".878", (0.5, 8): ".866"}.get((truth, n), "")
            cell, claims = weighted_share(n, truth), n >= MIN_ITEMS
            yield Cell(SHARE, f"weighted by lognormal lengths, {truth:g}", f"{n}", cell, 4_000, None, claims, said)
    for sigma, said in ((1, ".887 (n=8)"), (2, ".69 (n=8), .82 (n=20), .90 (n=50)")):
        for n in (TOO_FEW, MIN_ITEMS, 20, 50, 200):
            tails = "few items do not show a tail as heavy as this" if sigma == 2 and n <= 50 else ""
            cell, claims = skewed_mean(n, sigma), n >= MIN_ITEMS
            data = f"lognormal({sigma}), of lognormal lengths"
            yield Cell("mean of numbers above 0", data, f"{n}", cell, 4_000, None, claims, said, tails)
    for images in (TOO_FEW, MIN_ITEMS, 60):
        yield Cell(
            SHARE, "clustered", f"{images} × {PER_IMAGE}", share_of_clusters(images), 4_000, None, images >= MIN_ITEMS
        )
