"""Documents of results per item: those of an evaluation, and completions along a run."""

from __future__ import annotations

from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, Id, RunName, State, Step, Variant


class Items(Document):
    """Results per item of the tasks of an evaluation that have succeeded."""

    evaluation: Annotated[Id, Example(40)]
    state: Annotated[State, Example("succeeded")]
    items: Annotated[
        dict[str, list[dict[str, object]]],
        Example({"loss": [{"index": 0, "n_text": 31, "nll_text": 74.2, "within_text": 73.9, "image_mass": 0.02}]}),
    ]
    """By task, in the order of the data. The fields of an item are those of the task."""


class Change(Document):
    """How a completion differs from the one at the step before which was drawn in the same way."""

    step: Step
    same: bool
    """Whether both are the same to the last id."""
    common_prefix: Count
    """Ids that both begin with."""
    edit_distance: Count
    """Ids that must be put in, taken out or replaced to make one of the other."""


class Completion(Document):
    """The fields that a completion in `StepCompletions` may have; a task of an older version gave fewer."""

    prompt: str
    way: str
    """`greedy`, or the seed by which the completion was drawn."""
    text: str = ""
    drawn: int | None = None
    """Ids of the completion."""
    image_ids: int | None = None
    """Ids of images among them."""
    seq_rep_4: float | None = None
    """Share of 4-grams that repeat."""
    base_nll: float | None = None
    """Loss of the base in nats, summed over the `base_scored` ids of text that the completion begins with."""
    base_scored: int | None = None
    base: str | None = None
    """What the base made of the prompt."""
    base_ids: list[int] | None = None
    base_own_nll: float | None = None
    """Loss of the base on its own completion, as `base_nll`."""
    base_own_scored: int | None = None
    previous: Change | None = None


class StepCompletions(Document):
    """What a checkpoint made of the prompts of a task."""

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
    """The task's results per item (see `Completion`), with `previous` (see `Change`), null for the first."""


class Completions(Document):
    """What the current checkpoints of a run made of fixed prompts, by step."""

    run: RunName
    steps: list[StepCompletions]
