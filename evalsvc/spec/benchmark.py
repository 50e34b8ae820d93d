"""One benchmark of a suite's language tasks: an lm-eval task, and the selection of its documents."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evalsvc.spec.bounds import MAX_ROWS, Rows, Shots, Word
from evalsvc.spec.paths import DataPath

MAX_BENCHMARKS = 1000
"""Maximum number of benchmarks in a task."""


class BenchmarkSpec(BaseModel):
    """An entry of `benchmarks:`. A plain name is also accepted: `arc_easy` stands for `{name: arc_easy}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Word
    """Name in lm-eval: a task, or a group or tag, which stands for all of its tasks."""
    num_fewshot: Shots | None = None
    """Number of solved examples before each question [the task's `num_fewshot`, else the benchmark's own]."""
    limit: Rows | None = None
    """Number of documents to use, the first ones [the task's `limit`]."""
    samples: tuple[Annotated[int, Field(ge=0, lt=MAX_ROWS)], ...] | None = Field(
        default=None, min_length=1, max_length=10_000
    )
    """Documents to use, counted from 0 [all]."""
    sample: Rows | None = None
    """Number of documents to draw by strata: the place of the right answer and the length of the question [the task's
    `sample`]."""
    data: DataPath | None = None
    """A JSONL, JSON, CSV or parquet file that replaces the benchmark's dataset in every split. Its rows have the
    columns that lm-eval's benchmark expects; for a benchmark that ships with evalsvc, the columns of llm-foundry."""

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, content: object) -> object:
        return {"name": content} if isinstance(content, str) else content

    @model_validator(mode="after")
    def _check_selection(self) -> BenchmarkSpec:
        given = [f"`{name}`" for name in ("limit", "samples", "sample") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given[:2])} are both given; set only one of them")
        return self
