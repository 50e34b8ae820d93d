"""Text of a run: completions over steps with what changed, and what the run has forgotten."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client import Client
from evalsvc.spec.documents.items import Completion
from evalsvc.spec.documents.reading import read
from evalsvc.spec.documents.results import Artifact
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.page import Content, Page
from evalsvc.web.pages.run import RunName
from evalsvc.web.panel import Table
from evalsvc.web.words import Piece, word_diff

SHOWN_FLIPS = 30

KINDS = ("table", "flipped")
"""Artifacts of the forgetting task that the page reads."""

MAX_ARTIFACT = 4 << 20
"""Bytes of a table or a list of flipped questions that a page reads."""


@dataclass(frozen=True)
class Shown:
    """A completion with its difference from another text."""

    step: int
    variant: str
    pieces: Sequence[Piece]
    completion: Completion


@dataclass(frozen=True)
class Forgetting:
    """What a checkpoint has forgotten, from the artifacts of the forgetting task."""

    step: int
    task: str
    page: Artifact
    table: Table
    flipped: Sequence[Mapping[str, object]]


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
        completions = [
            (step.step, step.variant, read(Completion, item))
            for step in client.completions(self.run)
            for item in step.completions
        ]
        prompts = list(dict.fromkeys(completion.prompt for _, _, completion in completions))
        ways = list(dict.fromkeys(completion.way for _, _, completion in completions))
        prompt = prompts[min(self.prompt, len(prompts) - 1)] if prompts else ""
        own = [each for each in completions if each[2].prompt == prompt and each[2].way == self.way]
        pages = [page for page in client.artifacts(self.run, "forgetting") if page.pruned_at is None]
        values = {
            "query": self,
            "run": run,
            "prompts": prompts,
            "prompt": prompt,
            "ways": ways,
            "shown": list(self._compared(client, own, prompt)),
            "others": [other.name for other in client.runs() if other.name != self.run],
            "forgetting": [_forgetting(client, page) for page in self._of_step(pages)],
            "forgetting_steps": sorted({page.step for page in pages}),
        }
        return Content(f"{self.run}: text", values)

    def _compared(self, client: Client, own: Sequence[tuple[int, str, Completion]], prompt: str) -> Iterator[Shown]:
        """Yield the completions of one prompt by step, with what changed."""
        others = {} if self.against in ("previous", "base") else self._texts_of(client, self.against, prompt)
        before: dict[str, str] = {}
        for step, variant, completion in own:
            if self.against == "previous":
                other = before.get(variant)
            else:
                other = completion.base if self.against == "base" else others.get(step)
            pieces = [Piece("same", completion.text)] if other is None else list(word_diff(other, completion.text))
            yield Shown(step, variant, pieces, completion)
            before[variant] = completion.text

    def _texts_of(self, client: Client, run: str, prompt: str) -> Mapping[int, str]:
        """Return the completions of a prompt by another run, by step."""
        return {
            completion.step: text
            for completion in client.completions(run)
            for text in (_text(item, prompt, self.way) for item in completion.completions)
            if text is not None
        }

    def _of_step(self, pages: Sequence[Artifact]) -> Sequence[Artifact]:
        """Return the pages of the asked step, or of the last one."""
        step = self.step if self.step is not None else max((page.step for page in pages), default=None)
        return [page for page in pages if page.step == step]


def _text(item: Mapping[str, object], prompt: str, way: str) -> str | None:
    """Return the text of a completion if it has the prompt and was drawn the same way."""
    completion = read(Completion, item)
    return completion.text if (completion.prompt, completion.way) == (prompt, way) else None


def _forgetting(client: Client, page: Artifact) -> Forgetting:
    near = [
        artifact
        for artifact in client.evaluation_artifacts(page.evaluation)
        if artifact.task == page.task and artifact.size <= MAX_ARTIFACT and artifact.pruned_at is None
    ]
    by_kind = {artifact.kind: _content(client, artifact) for artifact in near if artifact.kind in KINDS}
    rows = list(csv.reader(io.StringIO(by_kind.get("table", ""))))
    lines = by_kind.get("flipped", "").splitlines()[:SHOWN_FLIPS]
    table = Table(rows[0], rows[1:]) if rows else Table([], [])
    return Forgetting(page.step, page.task, page, table, [json.loads(line) for line in lines])


def _content(client: Client, artifact: Artifact) -> str:
    return client.artifact_content(artifact.id).content.decode(errors="replace")
