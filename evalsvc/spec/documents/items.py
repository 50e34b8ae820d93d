"""Documents of results per item, and of completions along a run."""

from __future__ import annotations

from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, Id, RunName, State, Step, Variant


class Items(Document):
    """Results per item of an evaluation's succeeded tasks."""

    evaluation: Annotated[Id, Example(40)]
    state: Annotated[State, Example("succeeded")]
    items: Annotated[
        dict[str, list[dict[str, object]]],
        Example({"loss": [{"index": 0, "n_text": 31, "nll_text": 74.2, "within_text": 73.9, "image_mass": 0.02}]}),
    ]
    """Results by task, in the order of the data. The fields of a result depend on the kind of task."""


class Change(Document):
    """The difference between a completion and the completion at the previous step that was drawn the same way."""

    step: Step
    same: bool
    """Whether both completions have identical ids."""
    common_prefix: Count
    """Number of ids in the common prefix."""
    edit_distance: Count
    """Number of ids to insert, delete or replace to turn one completion into the other."""


class Completion(Document):
    """Fields of a completion in `StepCompletions`. Older versions of the task give fewer fields."""

    prompt: str
    way: str
    """Seed that the completion was drawn with, or `greedy`."""
    text: str = ""
    drawn: int | None = None
    """Number of ids in the completion."""
    image_ids: int | None = None
    """Number of image ids in the completion."""
    seq_rep_4: float | None = None
    """Share of 4-grams that repeat earlier ones."""
    base_nll: float | None = None
    """Loss of the base in nats, summed over the first `base_scored` text ids of the completion."""
    base_scored: int | None = None
    base: str | None = None
    """The base's completion of the prompt."""
    base_ids: list[int] | None = None
    base_own_nll: float | None = None
    """Loss of the base on its own completion in nats, summed over `base_own_scored` ids."""
    base_own_scored: int | None = None
    previous: Change | None = None


class StepCompletions(Document):
    """The completions of one checkpoint in one task."""

    step: Step
    variant: Variant
    task: Annotated[str, Example("completions")]
    completions: Annotated[
        list[dict[str, object]],
        Example(
            [
                {
                    "index": 0,
                    "prompt": "cheese =>",
                    "way": "greedy",
                    "text": " I love cheese",
                    "ids": [309, 2389, 12173],
                    "base": " fromage",
                    "previous": {"step": 2000, "same": False, "common_prefix": 1, "edit_distance": 2},
                }
            ]
        ),
    ]
    """The task's results per item (see `Completion`), each with `previous` (see `Change`), which is null at the first
    step."""


class Completions(Document):
    """Completions of fixed prompts by a run's current checkpoints, by step."""

    run: RunName
    steps: list[StepCompletions]
