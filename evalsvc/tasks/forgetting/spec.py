"""The parameters of `forgetting`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from evalsvc.spec.benchmark import MAX_BENCHMARKS, BenchmarkSpec
from evalsvc.spec.bounds import MAX_TOKENS, Rows, Shards, TextPrefix, Word
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.language.spec import BenchmarkTask

Position = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
"""Position of an id in a text, counted from 1."""


class Forgetting(BenchmarkTask):
    """Comparison of a checkpoint with the run's base, on benchmarks and on a fixed text.

    The checkpoint's own metrics of the benchmarks are those of the task `language`, in the same series. Metrics of the
    comparison are called `<name>/…`: they are paired over documents and texts, and their protocol has the base's
    digest.
    """

    kind: ClassVar[str] = "forgetting"
    work: ClassVar[str] = "evalsvc.tasks.forgetting.work:ForgettingWork"
    text_work: ClassVar[str] = "evalsvc.tasks.forgetting.text_work:TextForgettingWork"
    needs: ClassVar[str] = "benchmarks or a text, the tokenizer of the layout, a base of the run"
    example: ClassVar[Mapping[str, Any]] = {
        "benchmarks": [{"name": "arc_easy", "data": "/path/to/arc_easy.jsonl"}],
        "text": "/path/to/text.jsonl",
    }

    benchmarks: tuple[BenchmarkSpec, ...] = Field(default=(), max_length=MAX_BENCHMARKS)
    """Benchmarks of lm-eval, as in the task `language`: names, or mappings with the keys below."""
    icl: bool | Annotated[tuple[Word, ...], Field(max_length=MAX_BENCHMARKS)] = False
    """Benchmarks, or `true` for all, that are asked twice more: with the first five examples solved before each
    question, and with none. The difference is what the checkpoint learns from its context."""
    text: DataPath | None = None
    """Text that both models read, one record at a time: a JSONL file with `text_ids` or `text`, or a safetensors file.
    `bos` is put before a `text`. Standard errors treat records with the same `document`, and equal texts, as one
    group."""
    text_limit: Rows | None = None
    """Number of records of `text` to use, from the beginning [all]."""
    text_prefix: TextPrefix = "bos"
    """What stands before a text of `text`: `bos` only the token of `bos`, if there is one, as before the questions of
    benchmarks; `layout` the tokens that stand before a caption in the layout's template."""
    icl_positions: tuple[Position, Position] = (50, 500)
    """Two positions in a text, counted from 1, whose losses are compared: a model that uses its context has a lower
    loss at the later position. Shorter texts do not count."""
    flipped: int = Field(default=100, ge=0, le=10_000)
    """Number of flipped questions of each benchmark to keep with their answers, in the artifact `forgetting.json`:
    questions that only the base or only the checkpoint gets right. Does not affect metrics."""
    text_shards: Shards | None = None
    """Number of shards for the text [one per 131,072 tokens]; does not affect metrics."""

    @model_validator(mode="after")
    def _check_parts(self) -> Forgetting:
        if not self.benchmarks and self.text is None:
            raise ValueError("neither `benchmarks` nor `text` is given; set at least one of them")
        if self.text is None and self.text_limit is not None:
            raise ValueError("`text_limit` is given without `text`; remove it, or set `text`")
        early, late = self.icl_positions
        if early >= late:
            raise ValueError(f"icl_positions: {early}, {late} must be two positions, the earlier one first")
        names = {spec.name: None for spec in self.benchmarks}
        if self.icl and not names:
            raise ValueError("icl: there are no `benchmarks`; set `benchmarks`, or remove `icl`")
        for name in self.icl if isinstance(self.icl, tuple) else ():
            if name not in names:
                raise ValueError(f"icl: {name!r} is not one of `benchmarks`; choose from {', '.join(names)}")
        return self

    def work_class(self) -> str:
        """Return the class that does the work; texts need no lm-eval."""
        return self.work if self.benchmarks else self.text_work
