"""The parameters of tasks that ask lm-eval's benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from evalsvc.metrics.definitions import may_return, plain_names
from evalsvc.spec.benchmark import MAX_BENCHMARKS, BenchmarkSpec
from evalsvc.spec.bounds import Rows, ShardSize, Shots, Word, first_repeated
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.task import TextTask


class BenchmarkTask(TextTask):
    """Common parameters of tasks that ask benchmarks."""

    stages: ClassVar[tuple[str, ...]] = ("model", "scoring")

    benchmarks: tuple[BenchmarkSpec, ...] = Field(min_length=1, max_length=MAX_BENCHMARKS)
    """Benchmarks of lm-eval: names of tasks, groups or tags, or mappings with the keys below."""
    include_path: tuple[DataPath, ...] = Field(default=(), max_length=16)
    """Folders of lm-eval YAML files. Their benchmarks replace lm-eval's own benchmarks of the same name."""
    num_fewshot: Shots | None = None
    """Number of solved examples before each question [the benchmark's own]; see `fewshot` for errors."""
    fewshot: Literal["configured", "first"] = "configured"
    """Choice of the solved examples: `configured` follows the benchmark, `first` uses the first rows for every
    question. No standard error covers the choice of examples that all questions share."""
    limit: Rows | None = None
    """Number of documents of each benchmark to use, from the beginning [all]."""
    sample: Rows | None = None
    """Number of documents of each benchmark to draw, stratified by the position of the right answer and the length of
    the question [all]. The documents are the same for every checkpoint and every number of solved examples; a larger
    sample contains a smaller one. Members of a group are weighted by their full number of documents."""
    shard_size: ShardSize = 1024
    """Number of documents in a shard; does not affect metrics."""

    @model_validator(mode="after")
    def _check_benchmarks(self) -> BenchmarkTask:
        if (twice := first_repeated(spec.name for spec in self.benchmarks)) is not None:
            raise ValueError(f"the benchmark {twice!r} is listed twice; move one to another task")
        if self.limit is not None and self.sample is not None:
            raise ValueError("`limit` and `sample` are both given; set only one of them")
        return self

    def may_measure(self, metric: str) -> bool:
        """Say whether the metric is of a benchmark, of a member of a group (`mmlu_anatomy/acc`), or of the task."""
        first, _, second = metric.partition("/")
        is_of_benchmark = any(first == spec.name or first.startswith(f"{spec.name}_") for spec in self.benchmarks)
        return (is_of_benchmark and may_return("language", second)) or self._may_measure_itself(metric)

    def usual_metrics(self) -> list[str]:
        """Return the usual metrics of the first benchmarks, then those of the task."""
        names = [name for name in plain_names("language") if name != "mean"]
        of_benchmarks = [f"{spec.name}/{name}" for spec in self.benchmarks[:32] for name in names]
        return [*of_benchmarks, *filter(self._may_measure_itself, super().usual_metrics())]

    def _may_measure_itself(self, metric: str) -> bool:
        return super().may_measure(metric)


class Language(BenchmarkTask):
    """Benchmarks of lm-eval: accuracies, perplexities and other measures, and bits per byte of right answers.

    Metrics are called `<benchmark>/<metric>`, and `<benchmark>/<metric>_within` within text ids. Use two tasks to ask a
    benchmark with two numbers of solved examples.
    """

    kind: ClassVar[str] = "language"
    work: ClassVar[str] = "evalsvc.tasks.language.work:LanguageWork"
    needs: ClassVar[str] = "benchmarks and their rows, the tokenizer of the layout"
    example: ClassVar[Mapping[str, Any]] = {"benchmarks": [{"name": "arc_easy", "data": "/path/to/arc_easy.jsonl"}]}

    mean: tuple[Word, ...] = Field(default=(), max_length=64)
    """Metrics whose unweighted mean over the benchmarks is reported as `<name>/mean`; each benchmark contributes the
    first of these metrics that it has. A group that aggregates its members counts as one benchmark."""

    def _may_measure_itself(self, metric: str) -> bool:
        return bool(self.mean) and metric in (f"{self.name}/mean", f"{self.name}/mean_within")
