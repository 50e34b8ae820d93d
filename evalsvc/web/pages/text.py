"""Text of a run: completions over steps with what changed, and what the run has forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import EvalsvcError
from evalsvc.spec.documents.results import Artifact, Completion
from evalsvc.spec.documents.text_reports import FlippedQuestion, ForgettingReport, ForgettingRow
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.page import Content, Page
from evalsvc.web.pages.run import RunName
from evalsvc.web.word_diff import Piece, word_diff

MAX_SHOWN = 100
"""Maximum number of completions that are shown: the newest."""

MAX_BYTES = 32 << 20
"""Maximum size of a report of forgetting that is read; a plug-in's task may leave a file of any size."""

MAX_ROWS = 400
"""Maximum number of numbers of a report that are shown."""

MAX_FLIPS = 30
"""Maximum number of flipped questions of a report that are shown."""

MAX_TEXT = 4000
"""Maximum number of characters that are shown of a question or an answer."""

SCOPES = {"all": "all ids", "text": "text ids only"}

METRICS = {"acc": "right answers", "bits_per_byte": "bits per byte of the right answers", "loss": "loss"}

VERDICTS = {
    "lost": ("worse than the base", "worse"),
    "gained": ("better than the base", "better"),
    "indistinguishable": ("no difference seen", ""),
    "too few": ("too few items to tell", ""),
}
"""Words and style classes of verdicts."""

FLIPS = {"lost": "only the base was right", "gained": "only the checkpoint is right"}


@dataclass(frozen=True)
class Shown:
    """A completion with its difference from another text."""

    step: int
    variant: str
    pieces: Sequence[Piece]
    completion: Completion
    note: str
    """Why there is no difference; empty if there is one."""


@dataclass(frozen=True)
class Forgetting:
    """What a checkpoint has forgotten by one task."""

    artifact: Artifact
    report: ForgettingReport | None
    note: str = ""
    """Why there is no report; empty if there is one."""

    @property
    def benchmarks(self) -> Mapping[str, Sequence[ForgettingRow]]:
        """Rows that are shown, by what they measure, in the order of the report."""
        by_name: dict[str, list[ForgettingRow]] = {}
        for row in self.report.rows[:MAX_ROWS] if self.report else ():
            by_name.setdefault(row.what, []).append(row)
        return by_name

    @property
    def flipped(self) -> Sequence[tuple[str, FlippedQuestion]]:
        """Flipped questions with their benchmarks."""
        benchmarks = self.report.flipped if self.report else ()
        return [(flipped.benchmark, question) for flipped in benchmarks for question in flipped.questions]


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

    def content(self, client: ServiceReader) -> Content:
        """Return the completions and the forgetting."""
        run = client.run(self.run)
        drawn = list(_completions(client, self.run))
        prompts = list(dict.fromkeys(completion.prompt for _, _, completion in drawn))
        ways = list(dict.fromkeys(completion.way for _, _, completion in drawn))
        prompt = prompts[min(self.prompt, len(prompts) - 1)] if prompts else ""
        own = [each for each in drawn if each[2].prompt == prompt and each[2].way == self.way]
        artifacts = [each for each in client.artifacts(self.run, "forgetting") if each.pruned_at is None]
        step = self.step if self.step is not None else max((each.step for each in artifacts), default=None)
        values = {
            "query": self,
            "run": run,
            "prompts": prompts,
            "prompt": prompt,
            "ways": ways,
            "shown": list(self._compared(client, own, prompt))[-MAX_SHOWN:],
            "left_out": max(0, len(own) - MAX_SHOWN),
            "others": [other.name for other in client.runs() if other.name != self.run],
            "forgetting": [read_forgetting(client, each) for each in artifacts if each.step == step],
            "forgetting_steps": sorted({each.step for each in artifacts}),
            "max_rows": MAX_ROWS,
            "max_flips": MAX_FLIPS,
            "max_text": MAX_TEXT,
            "cells_of": _cells,
            "flip_in_words": _flip_in_words,
            "verdicts": VERDICTS,
        }
        return Content(f"{self.run}: text", values)

    def _compared(
        self, client: ServiceReader, own: Sequence[tuple[int, str, Completion]], prompt: str
    ) -> Iterator[Shown]:
        others: Mapping[int, str] = {}
        if self.against not in ("previous", "base"):
            others = {
                step: completion.text
                for step, _, completion in _completions(client, self.against)
                if completion.way == self.way and completion.prompt == prompt
            }
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


def read_forgetting(client: ServiceReader, artifact: Artifact) -> Forgetting:
    """Return the report in an artifact; a file that cannot be read leaves a note in its place."""
    if artifact.size > MAX_BYTES:
        return Forgetting(artifact, None, f"{artifact.name} is too large for this page: {artifact.size:,} bytes.")
    try:
        content = client.artifact_content(artifact.id).content
        return Forgetting(artifact, ForgettingReport.model_validate_json(content))
    except EvalsvcError as error:
        return Forgetting(artifact, None, f"{artifact.name} cannot be read: {error.message}")
    except ValidationError:
        return Forgetting(artifact, None, f"{artifact.name} is no report of forgetting.")


def _completions(client: ServiceReader, run: str) -> Iterator[tuple[int, str, Completion]]:
    for step in client.completions(run):
        yield from ((step.step, step.variant, completion) for completion in step.completions)


def _cells(row: ForgettingRow) -> list[str]:
    unit = "" if row.unit in ("", "fraction", "bits/byte") else f", {row.unit}"
    return [
        METRICS.get(row.metric, row.metric) + unit,
        SCOPES[row.scope],
        str(row.n),
        _with_error(row.base, row.base_stderr),
        _with_error(row.checkpoint, row.checkpoint_stderr),
        _with_interval(row.change, row.change_low, row.change_high, "+"),
        _with_interval(row.retained, row.retained_low, row.retained_high, "-"),
        str(row.lost),
        str(row.gained),
        "–" if row.p_corrected is None else f"{row.p_corrected:.2g}",
    ]


def _with_error(value: float, stderr: float | None) -> str:
    return f"{value:.4g}" + ("" if stderr is None else f" ± {stderr:.2g}")


def _with_interval(value: float | None, low: float | None, high: float | None, sign: str) -> str:
    if value is None:
        return "–"
    interval = "" if low is None or high is None else f" [{low:{sign}.3g}, {high:{sign}.3g}]"
    return f"{value:{sign}.3g}{interval}"


def _flip_in_words(flip: FlippedQuestion) -> tuple[str, list[tuple[str, str]]]:
    kinds = ((flip.flip, "all"), (flip.flip_within, "text"))
    kind = "; ".join(f"{FLIPS[flipped]}, {SCOPES[ids]}" for flipped, ids in kinds if flipped)
    answers = [("right", " | ".join(flip.right))]
    for who, answer, within in (
        ("base", flip.base, flip.base_within),
        ("checkpoint", flip.checkpoint, flip.checkpoint_within),
    ):
        answers.append((who, answer))
        if flip.flip != flip.flip_within and within != answer:
            answers.append((f"{who}, text ids only", within))
    return kind, [(who, answer if len(answer) <= MAX_TEXT else answer[:MAX_TEXT] + "…") for who, answer in answers]
