"""Text of a run: completions over steps with what changed, and what the run has forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client import Client
from evalsvc.spec.documents.items import Completion, StepCompletions
from evalsvc.spec.documents.reading import read
from evalsvc.spec.documents.results import Artifact
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.forgetting import read_forgetting
from evalsvc.web.page import Content, Page
from evalsvc.web.pages.run import RunName
from evalsvc.web.words import Piece, word_diff

MAX_SHOWN = 100
"""Maximum number of completions that are shown: the newest."""


@dataclass(frozen=True)
class Shown:
    """A completion with its difference from another text."""

    step: int
    variant: str
    pieces: Sequence[Piece]
    completion: Completion
    note: str
    """Why there is no difference; empty if there is one."""


class TextPage(Page):
    """Completions of one prompt over steps, and forgetting at one step."""

    template: ClassVar = "text.html"

    run: RunName
    prompt: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Number of the prompt."""
    way: Annotated[str, Field(max_length=64)] = "greedy"
    """How the completion was drawn: `greedy`, or a seed."""
    against: Annotated[str, Field(max_length=128)] = "previous"
    """What a completion is compared with: that of the step before, the base's, or that of another run."""
    step: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """Step whose forgetting is shown; by default, the last."""

    def content(self, client: Client) -> Content:
        """Return the completions and the forgetting.

        Raises:
            UnknownName: there is no such run.
        """
        run = client.run(self.run)
        drawn = list(_completions(client.completions(self.run)))
        prompts = list(dict.fromkeys(completion.prompt for _, _, completion in drawn))
        ways = list(dict.fromkeys(completion.way for _, _, completion in drawn))
        prompt = prompts[min(self.prompt, len(prompts) - 1)] if prompts else ""
        own = [each for each in drawn if each[2].prompt == prompt and each[2].way == self.way]
        pages = [page for page in client.artifacts(self.run, "forgetting") if page.pruned_at is None]
        values = {
            "query": self,
            "run": run,
            "prompts": prompts,
            "prompt": prompt,
            "ways": ways,
            "shown": list(self._compared(client, own, prompt))[-MAX_SHOWN:],
            "left_out": max(0, len(own) - MAX_SHOWN),
            "others": [other.name for other in client.runs() if other.name != self.run],
            "forgetting": [read_forgetting(client, page) for page in self._of_step(pages)],
            "forgetting_steps": sorted({page.step for page in pages}),
        }
        return Content(f"{self.run}: text", values)

    def _compared(self, client: Client, own: Sequence[tuple[int, str, Completion]], prompt: str) -> Iterator[Shown]:
        """Yield the completions of one prompt by step, with what changed."""
        others = {} if self.against in ("previous", "base") else self._texts_of(client, self.against, prompt)
        before: dict[str, str] = {}
        for step, variant, completion in own:
            if self.against == "previous":
                other, missing = before.get(variant), "the first step"
            elif self.against == "base":
                other, missing = completion.base, "the base has no completion that was drawn this way"
            else:
                other, missing = others.get(step), f"{self.against} has no completion at this step"
            pieces = [Piece("same", completion.text)] if other is None else word_diff(other, completion.text)
            yield Shown(step, variant, pieces, completion, missing if other is None else "")
            before[variant] = completion.text

    def _texts_of(self, client: Client, run: str, prompt: str) -> Mapping[int, str]:
        """Return the completions of a prompt by another run, by step."""
        return {
            step: completion.text
            for step, _, completion in _completions(client.completions(run))
            if completion.way == self.way and completion.prompt == prompt
        }

    def _of_step(self, pages: Sequence[Artifact]) -> Sequence[Artifact]:
        """Return the pages of the asked step, or of the last one."""
        step = self.step if self.step is not None else max((page.step for page in pages), default=None)
        return [page for page in pages if page.step == step]


def _completions(steps: Sequence[StepCompletions]) -> Iterator[tuple[int, str, Completion]]:
    """Yield the completions with their step and variant. Results of a task that have other fields are left out."""
    for step in steps:
        for item in step.completions:
            try:
                yield step.step, step.variant, read(Completion, item)
            except ValueError:
                continue
