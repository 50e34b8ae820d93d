"""Results of benchmarks as `language.results` makes them, from right and wrong answers that a test writes out."""

from collections.abc import Mapping, Sequence
from typing import Any

from evalsvc.language.results import Results
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.protocol import MetricValue, Protocol

BYTES = 10


def results(chances: Any = None, within: Any = True, drawn_from: int | None = None, **columns: Any) -> Results:
    """As a benchmark task finds them: an accuracy per benchmark over documents, 0 or 1. `within`: whether there are
    accuracies within text, or what they are made of; `drawn_from`: the size of the population of documents."""
    other = within if isinstance(within, Mapping) else {}
    metrics, items = [], []
    for benchmark, values in columns.items():
        by_key = {"acc": values, **({"acc_within": other.get(benchmark, values)} if within else {})}
        for key, answers in by_key.items():
            accuracy = ratio_of_sums(answers, [1] * len(answers))
            assert accuracy is not None
            protocol, chance = Protocol({"benchmark": benchmark}), (chances or {}).get(benchmark, 0.25)
            found = accuracy.value, accuracy.stderr, accuracy.n, "fraction", "higher"
            metric = MetricValue(f"{benchmark}/{key}", *found, protocol, chance, (key,), drawn_from=drawn_from)  # type: ignore[arg-type]
            metrics.append(metric)
        for index in range(len(values)):
            answers_to = {key: answers[index] for key, answers in by_key.items()}
            items.append({"benchmark": benchmark, "index": index, **answers_to})
    return Results(metrics, items, {})


def with_bits(found: Results, benchmark: str, bits: Sequence[float], within: Sequence[float], mass: Any = 0) -> Results:
    """Also bits per byte of the right answers, of 10 bytes each, and the mass on image ids of each token."""
    items = iter(zip(bits, within, strict=True))
    for item in found.items:
        if item["benchmark"] == benchmark:
            item["bits"], item["bits_within"] = next(items)
            item |= {"bytes": BYTES, "image_mass": mass, "tokens": 1}
    protocol = Protocol({"benchmark": benchmark})
    made = {"bits_per_byte": ("bits", "bytes"), "bits_per_byte_within": ("bits_within", "bytes")}
    for name, keys in {**made, "image_mass": ("image_mass", "tokens")}.items():
        some = [item for item in found.items if item["benchmark"] == benchmark]
        ratio = ratio_of_sums(*([item[key] for item in some] for key in keys))
        assert ratio is not None
        number = ratio.value, ratio.stderr, ratio.n, "bits/byte", "lower"
        found.metrics.append(MetricValue(f"{benchmark}/{name}", *number, protocol, items=keys))  # type: ignore[arg-type]
    return found


def by_name(metrics: Sequence[MetricValue]) -> dict[str, MetricValue]:
    return {metric.name: metric for metric in metrics}
