"""The parameters of the tasks that ask a checkpoint lm-eval's benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from evalsvc.metrics.definitions import may_return, plain_names
from evalsvc.spec.benchmark import MAX_BENCHMARKS, BenchmarkSpec
from evalsvc.spec.bounds import Rows, ShardSize, Shots, Word, first_repeated
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.text_task import TextTask


class BenchmarkTask(TextTask):
    """What the tasks that ask benchmarks have in common."""

    benchmarks: tuple[BenchmarkSpec, ...] = Field(min_length=1, max_length=MAX_BENCHMARKS)
    """Benchmarks of lm-eval: names of tasks, groups or tags, or mappings with the keys below."""
    include_path: tuple[DataPath, ...] = Field(default=(), max_length=16)
    """Folders of lm-eval YAML files. Their benchmarks take the place of lm-eval's own benchmarks of the same name."""
    num_fewshot: Shots | None = None
    """Number of solved examples before each question [the benchmark's own]."""
    fewshot: Literal["configured", "first"] = "configured"
    """Choice of the solved examples: as the benchmark says, or the first rows, the same for every question."""
    limit: Rows | None = None
    """Number of documents of each benchmark to use, the first ones [all]."""
    sample: Rows | None = None
    """Number of documents of each benchmark to draw by strata [all]: the place of the right answer and the length of
    the question. The documents are the same for every checkpoint and number of solved examples; a larger sample holds a
    smaller one. Members of a group weigh as much as all of their documents."""
    shard_size: ShardSize = 1024
    """Number of documents in a shard; moves no number."""

    @model_validator(mode="after")
    def _check_benchmarks(self) -> BenchmarkTask:
        if (twice := first_repeated(spec.name for spec in self.benchmarks)) is not None:
            raise ValueError(f"the benchmark {twice!r} is there twice; put one of them into a task of its own")
        if self.limit is not None and self.sample is not None:
            raise ValueError("`limit` and `sample` are both given; give the one or the other")
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
        """Say whether the metric may be one that begins with the name of the task."""
        return super().may_measure(metric)


class Language(BenchmarkTask):
    """Benchmarks of lm-eval: accuracies, perplexities, what else they measure, and bits per byte of right answers.

    Metrics are called `<benchmark>/<metric>`, those within text ids `<benchmark>/<metric>_within`. Use two tasks to
    ask a benchmark at two numbers of solved examples.
    """

    kind: ClassVar[str] = "language"
    work: ClassVar[str] = "evalsvc.tasks.language.work:LanguageWork"
    needs: ClassVar[str] = "benchmarks and their rows, the tokenizer of the layout"
    example: ClassVar[Mapping[str, Any]] = {"benchmarks": [{"name": "arc_easy", "data": "/path/to/arc_easy.jsonl"}]}

    mean: tuple[Word, ...] = Field(default=(), max_length=64)
    """Metrics whose plain mean over the benchmarks is reported as `<name>/mean`; of each benchmark, the first of the
    metrics counts that the benchmark has. A group that aggregates its members counts as one benchmark."""

    def _may_measure_itself(self, metric: str) -> bool:
        return bool(self.mean) and metric in (f"{self.name}/mean", f"{self.name}/mean_within")
