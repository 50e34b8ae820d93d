"""Metrics, items, notes and artifacts of the alignment task, from the measures of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import JsonValue

from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.alignment.shards import AlignmentOutput, AlignmentShard, LearnedOutput
from evalsvc.tasks.alignment.spec import Alignment
from evalsvc.tasks.task import TaskResult

NATS = "nats/pair"

HALF = "half"
"""Name in the protocol of training pairs that are half of the task's own data."""


def training_protocol(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the learned protocol that affects the rows, not only their measurement."""
    measuring = {"batch", "batches_seed"}
    if content["learned"]["data"] != HALF:
        measuring |= {"data", "limit"}
    return {key: value for key, value in content.items() if key not in measuring}


def part_result(task: Alignment, shard: AlignmentShard, output: AlignmentOutput) -> TaskResult:
    """Return the result of one part from its output."""
    columns = {f"{shard.prefix}{name}": values for name, values in output.columns.items()}
    items = [
        {"index": place, **{name: values[row] for name, values in columns.items()}}
        for row, place in enumerate(output.places)
    ]
    metrics = list(_Part(task, shard, output).metrics())
    return TaskResult(metrics, items, _notes(shard, output), list(_artifacts(shard.prefix, output)))


@dataclass(frozen=True)
class _Part:
    task: Alignment
    shard: AlignmentShard
    output: AlignmentOutput

    def metrics(self) -> Iterator[MetricValue]:
        yield from self._losses()
        chance = self.output.chance
        for name in self.output.columns:
            if "_to_" in name:
                yield self._mean(name, "fraction", "higher", chance[name[name.index("at_") :]])
        yield self._mean("cosine_excess", "cosine", "higher", 0.0)
        for name in ("cosine_between", "cosine_text", "cosine_image"):
            yield self._mean(name, "cosine", "none")
        yield self._p_value("p_value", "pairs")
        for name, centred in (("neighbour_hits", False), ("neighbour_hits_centred", True)):
            how = {"neighbours": self.task.neighbours, "candidates": self.shard.candidates, "centred": centred}
            yield self._mean(name, "fraction", "higher", self.output.hit_chance[name], "neighbours", **how)
            yield self._p_value(name.replace("hits", "p_value"), name, **how)
        # The error is over codes; the directions of the text are treated as fixed.
        overlap = ratio_of_sums(self.output.overlap.inside, self.output.overlap.whole)
        if overlap is not None:
            how = {"candidates": self.shard.candidates}
            yield self._value("subspace_overlap", overlap, "fraction", "none", self.output.overlap_chance, (), **how)

    def _losses(self) -> Iterator[MetricValue]:
        nothing_known = math.log(self.shard.protocol["batch"])
        fitted = self._mean("loss_fitted", NATS, "lower", nothing_known, temperature="fitted")
        # At the factor 0 every pair has the loss ln B whatever its similarities, so the standard error is meaningless.
        yield fitted if self.output.fitted_scale else replace(fitted, stderr=None, items=())
        if not isinstance(self.output, LearnedOutput):
            return
        yield self._mean("loss", NATS, "lower", nothing_known, temperature="learned")
        losses = self.output.losses
        last = losses[-max(1, len(losses) // 10) :]
        ratio, content = _mean_of(last, [1.0] * len(last)), training_protocol(self.shard.protocol)
        name, baseline = f"{self.task.name}/learned_training_loss", math.log(content["learned"]["batch"])
        yield ratio.as_metric(name, NATS, "lower", Protocol(content), baseline)

    def _mean(
        self,
        name: str,
        unit: str,
        direction: Direction,
        baseline: float | None = None,
        over: str | None = None,
        **protocol: JsonValue,
    ) -> MetricValue:
        """Return the mean of the column `name`, or the ratio of its sum to that of the column `over`."""
        values = self.output.columns[name]
        ratio = _mean_of(values, [1.0] * len(values) if over is None else self.output.columns[over])
        items = tuple(f"{self.shard.prefix}{column}" for column in (name, over) if column)
        return self._value(name, ratio, unit, direction, baseline, items, **protocol)

    def _p_value(self, name: str, test: str, **protocol: JsonValue) -> MetricValue:
        ratio = Ratio(self.output.tests[test].p, None, len(self.output.places))
        how = {"permutations": self.task.permutations, "seed": self.task.seed, **protocol}
        return self._value(name, ratio, "probability", "none", None, (), **how)

    def _value(
        self,
        name: str,
        ratio: Ratio,
        unit: str,
        direction: Direction,
        baseline: float | None,
        items: tuple[str, ...],
        **protocol: JsonValue,
    ) -> MetricValue:
        content = Protocol({**self.shard.protocol, **protocol})
        return ratio.as_metric(f"{self.task.name}/{self.shard.prefix}{name}", unit, direction, content, baseline, items)


def _mean_of(values: Sequence[float], weights: Sequence[float]) -> Ratio:
    ratio = ratio_of_sums(values, weights)
    assert ratio is not None, "there are two pairs at least, and every weight is positive"
    return ratio


def _notes(shard: AlignmentShard, output: AlignmentOutput) -> dict[str, object]:
    notes: dict[str, object] = {
        "pairs": len(output.places),
        "batch": shard.protocol["batch"],
        "loss_floor": output.floor,
        "fitted_scale": output.fitted_scale,
        "permutations": {name: asdict(test) for name, test in output.tests.items()},
    }
    if not output.fitted_scale:
        notes["loss_fitted"] = (
            "pairs are no more alike than others, so that the loss is smallest at the factor 0, where it is ln batch "
            "for every pair: the loss has no standard error; p_value is the test"
        )
    if not isinstance(output, LearnedOutput):
        return {**notes, "pairs_left_out": shard.pairs - len(output.places)}
    return {
        **notes,
        "training_pairs": output.training_pairs,
        "pairs_in_both": output.pairs_in_both,
        "trained_codes": output.trained_codes,
        "scale": output.scale,
        "plateau": asdict(output.plateau),
    }


def _artifacts(prefix: str, output: AlignmentOutput) -> Iterator[Artifact]:
    page = output.nearest_tokens.encode()
    yield Artifact("nearest_tokens", f"{prefix}nearest_tokens.txt", "text/plain; charset=utf-8", page)
    if isinstance(output, LearnedOutput):
        rows = enumerate(zip(output.losses, output.scales, strict=True))
        table = "".join(f"{step},{loss!r},{1 / scale!r}\n" for step, (loss, scale) in rows)
        details = {"plateau": asdict(output.plateau)}
        content = f"step,loss,temperature\n{table}".encode()
        yield Artifact("loss_by_step", "learned_loss.csv", "text/csv", content, details)
        yield Artifact("image_rows", "image_rows.safetensors", "application/octet-stream", output.image_rows)
