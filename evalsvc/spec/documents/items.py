"""Documents of results per item, and of completions along a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import Count, Id, RunName, State, Step, Variant


class Items(Document):
    """Results per item of an evaluation's succeeded tasks."""

    evaluation: Annotated[Id, Field(examples=[40])]
    state: Annotated[State, Field(examples=["succeeded"])]
    items: Annotated[
        dict[str, list[dict[str, object]]],
        Field(
            examples=[{"loss": [{"index": 0, "n_text": 31, "nll_text": 74.2, "within_text": 73.9, "image_mass": 0.02}]}]
        ),
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
    """A completion of a prompt, with the base's completion. Fields of the base are null without a base."""

    index: Annotated[int, Field(examples=[0])] = 0
    prompt: Annotated[str, Field(examples=["cheese =>"])]
    way: Annotated[str, Field(examples=["greedy"])]
    """Seed that the completion was drawn with, or `greedy`."""
    protocol: Annotated[str | None, Field(examples=["35b02c7e9f5b2d10"])] = None
    """Id of the drawing protocol: completions with the same id are comparable."""
    text: Annotated[str, Field(examples=[" I love cheese"])] = ""
    ids: Annotated[list[int] | None, Field(examples=[[309, 2389, 12173]])] = None
    """Drawn ids, as rows of the table."""
    drawn: Annotated[int | None, Field(examples=[3])] = None
    """Number of ids in the completion."""
    image_ids: Annotated[int | None, Field(examples=[0])] = None
    """Number of image ids in the completion."""
    seq_rep_4: Annotated[float | None, Field(examples=[0.0])] = None
    """Share of 4-grams that repeat earlier ones."""
    distinct_1: Annotated[float | None, Field(examples=[1.0])] = None
    """Number of different ids / number of ids."""
    distinct_2: Annotated[float | None, Field(examples=[1.0])] = None
    """Number of different 2-grams / number of 2-grams."""
    ended: Annotated[int | None, Field(examples=[0])] = None
    """Whether the completion ended: 0 or 1; null if no id ends a text."""
    base: Annotated[str | None, Field(examples=[" fromage"])] = None
    """The base's completion of the prompt."""
    base_ids: Annotated[list[int] | None, Field(examples=[[1181, 382]])] = None
    same_as_base: Annotated[int | None, Field(examples=[0])] = None
    """Whether a greedy completion equals the base's: 0 or 1; null for seeded ones, which differ after any change."""
    base_nll: Annotated[float | None, Field(examples=[9.4])] = None
    """Loss of the base in nats, summed over the first `base_scored` text ids of the completion."""
    base_scored: Annotated[int | None, Field(examples=[3])] = None
    base_own_nll: Annotated[float | None, Field(examples=[2.1])] = None
    """Loss of the base on its own completion in nats, summed over `base_own_scored` ids."""
    base_own_scored: Annotated[int | None, Field(examples=[2])] = None
    previous: Change | None = None
    """Difference from the completion at the previous step; null at the first step."""


class StepCompletions(Document):
    """The completions of one checkpoint in one task."""

    step: Step
    variant: Variant
    task: Annotated[str, Field(examples=["completions"])]
    completions: list[Completion]


class Completions(Document):
    """Completions of fixed prompts by a run's current checkpoints, by step."""

    run: RunName
    steps: list[StepCompletions]
