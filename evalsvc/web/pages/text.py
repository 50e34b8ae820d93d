"""Text of a run: completions over steps with the words that changed, and what the run has forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import EvalsvcError
from evalsvc.spec.documents.results import Artifact, Completion
from evalsvc.spec.documents.text_reports import FlippedQuestion, ForgettingReport, ForgettingRow
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.page import Content, Page, run_trail
from evalsvc.web.pages.run import RunName

MAX_SHOWN, MAX_WORDS = 100, 3000
"""Maximum number of completions that are shown, the newest, and of words of each that are compared."""

MAX_BYTES = 32 << 20
"""Maximum size of a report of forgetting that is read; a plug-in's task may leave a file of any size."""

MAX_ROWS, MAX_FLIPS, MAX_TEXT = 400, 100, 2000
"""Maximum number of numbers, of flipped questions and of characters of a text that are shown of a report. Benchmarks
share the questions evenly."""

_WORD = re.compile(r"\s*(?:‹[^›]{1,40}›|\w+|[^\w\s])|\s+")

_IMAGE_IDS, _CHIP = re.compile(r"‹image \d+›(?:\s*‹image \d+›)*"), re.compile(r"‹(\d+ image tokens?)›")

Kind = Literal["same", "new", "gone"]
Drawn = tuple[int, str, Completion]
"""A completion with the step and the variant that it was drawn from."""
Flip = tuple[FlippedQuestion, Sequence[str], Sequence[str]]
"""A question that only one of two models gets right, with the answers of both."""

SCOPES = {"all": "all ids", "text": "text ids only"}
METRICS = {"acc": "right answers", "bits_per_byte": "bits per byte of the right answers", "loss": "loss"}
MARKS: Mapping[str | None, tuple[str, str]] = {None: ("", ""), "lost": ("✓ ", "✗ "), "gained": ("✗ ", "✓ ")}
"""Whether base and checkpoint are right, by the kind of flip."""
VERDICTS = {"lost": "worse", "gained": "better"}


@dataclass(frozen=True)
class Piece:
    kind: Kind
    text: str
    compared: bool = True
    """Whether the part was compared; false for the words after the first MAX_WORDS."""


@dataclass(frozen=True)
class Shown:
    step: int
    variant: str
    pieces: Sequence[Piece]
    completion: Completion
    note: str
    """Why there is no difference; empty if there is one."""


@dataclass(frozen=True)
class Forgetting:
    artifact: Artifact
    report: ForgettingReport | None
    note: str = ""
    """Why there is no report; empty if there is one."""

    @property
    def benchmarks(self) -> Mapping[str, Sequence[ForgettingRow]]:
        by_name: dict[str, list[ForgettingRow]] = {}
        for row in self.report.rows[:MAX_ROWS] if self.report else ():
            by_name.setdefault(row.what, []).append(row)
        return by_name

    def left(self, before: ForgettingReport | None) -> Iterator[tuple[str, list[ForgettingRow], list[Flip] | None]]:
        """Yield benchmarks with what is left, and questions that flipped; None where the reports have others."""
        reports = [report for report in (before, self.report) if report]
        names = dict.fromkeys([*self.benchmarks, *(each.benchmark for report in reports for each in report.flipped)])
        for name in list(names)[:MAX_FLIPS]:
            rows = [row for row in self.benchmarks.get(name, ()) if row.retained is not None]
            asked = {(report.base, *sorted(row.n for row in report.rows if row.what == name)) for report in reports}
            flips = list(_flips(before, reports[-1], name)) if len(asked) == 1 else None
            if rows or flips:
                yield name, rows, flips


class TextPage(Page):
    """Completions of one prompt over steps, and forgetting at one step."""

    template: ClassVar = "text.html"

    run: RunName
    prompt: Annotated[int, Field(ge=0, le=10_000)] = 0
    way: Annotated[str, Field(max_length=64)] = "greedy"
    """How the completion was drawn: `greedy`, or a seed."""
    against: Annotated[str, Field(max_length=128)] = "previous"
    """What a completion is compared with: that of the step before, the base's, or that of another run."""
    step: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """Step whose forgetting is shown; by default, the last."""
    since: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """Step from which questions have flipped; by default, the base."""

    def content(self, client: ServiceReader) -> Content:
        run = client.run(self.run)
        drawn = list(_completions(client, self.run))
        prompts = list(dict.fromkeys(completion.prompt for _, _, completion in drawn))
        ways = list(dict.fromkeys(completion.way for _, _, completion in drawn))
        prompt = prompts[min(self.prompt, len(prompts) - 1)] if prompts else ""
        own = [each for each in drawn if each[2].prompt == prompt and each[2].way == self.way]
        artifacts = [each for each in client.artifacts(self.run, "forgetting") if each.pruned_at is None]
        others = [name for name in client.run_names() if name != self.run]
        step = self.step if self.step is not None else max((each.step for each in artifacts), default=None)
        values = {
            "query": self,
            "run": run,
            "prompts": prompts,
            "prompt": prompt,
            "ways": ways,
            "shown": list(self._compared(client, own, prompt))[-MAX_SHOWN:],
            "left_out": max(0, len(own) - MAX_SHOWN),
            "others": others,
            "forgetting": [read_forgetting(client, each) for each in artifacts if each.step == step],
            "earlier": {
                (each.task, each.variant): read_forgetting(client, each).report
                for each in artifacts
                if each.step == self.since
            },
            "forgetting_steps": sorted({each.step for each in artifacts}),
            "max_rows": MAX_ROWS,
            "max_flips": MAX_FLIPS,
            "max_text": MAX_TEXT,
            "chips_of": _CHIP.split,
            "retained": _retained,
            "verdicts": VERDICTS,
            "scopes": SCOPES,
            "metrics": METRICS,
        }
        return Content(f"{self.run}: text", values, trail=run_trail(self.run, "/text", "Text", others=others))

    def _compared(self, client: ServiceReader, own: Sequence[Drawn], prompt: str) -> Iterator[Shown]:
        drawn = _completions(client, self.against) if self.against not in ("previous", "base") else ()
        same = [(step, each.text) for step, _, each in drawn if each.way == self.way and each.prompt == prompt]
        others = dict(same)
        before: dict[str, str] = {}
        for step, variant, completion in own:
            if self.against == "previous":
                other, missing = before.get(variant), "the first step"
            elif self.against == "base":
                other, missing = completion.base, "the base has no completion that was drawn this way"
            else:
                other, missing = others.get(step), f"{self.against} has no completion at this step"
            text = collapsed(completion.text)
            pieces = [Piece("same", text)] if other is None else word_diff(collapsed(other), text)
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


def _completions(client: ServiceReader, run: str) -> Iterator[Drawn]:
    for step in client.completions(run):
        yield from ((step.step, step.variant, completion) for completion in step.completions)


def _retained(row: ForgettingRow) -> tuple[str, list[str]]:
    """Return what is left in words, and as places on a bar: the interval around the value."""
    low, value, high = row.retained_low, row.retained or 0.0, row.retained_high
    interval = "" if low is None or high is None else f" [{100 * low:z.0f}, {100 * high:z.0f}]"
    places = [0.0 if low is None else low, value, 1.2 if high is None else high]
    words = f"{100 * value:z.0f} %{interval} of the ability above chance is left, {SCOPES[row.scope]}"
    return words.replace("-", "−"), [f"{100 * min(max(0.0, place), 1.2):.1f}" for place in places]


def collapsed(text: str) -> str:
    """Return a text with each run of image ids as one word, its number: no difference inside a run can be read."""
    return _IMAGE_IDS.sub(lambda run: f"‹{(n := run[0].count('‹'))} image token{'s' * (n > 1)}›", text)


def _flips(before: ForgettingReport | None, after: ForgettingReport, name: str) -> Iterator[Flip]:
    """Yield the questions of a benchmark that only one of two checkpoints gets right; the first is the base for None.

    A question that a report lacks has not flipped from the base. A report that left out questions tells up to its last.
    """
    sides = [[each for each in side.flipped if each.benchmark == name] if side else [] for side in (before, after)]
    old, new = ({question.index: question for each in side for question in each.questions} for side in sides)
    cut = [max((q.index for q in each.questions), default=-1) for side in sides for each in side if each.left_out > 0]
    for index in sorted(each for each in {*old, *new} if each <= min(cut, default=each)):
        one, other = old.get(index), new.get(index)
        known = other or old[index]
        kinds = [(each.flip, each.flip_within) if each else (None, None) for each in (one, other)]
        if any((was is None) != (now is None) for was, now in zip(*kinds, strict=True)):
            missing = "as the base" if before else ""
            yield known, _answers(one, known, missing), _answers(other, known, "as the base")


def _answers(own: FlippedQuestion | None, known: FlippedQuestion, missing: str) -> list[str]:
    side, asked = (1, own) if own else (0, known)
    over, within = (own.checkpoint, own.checkpoint_within) if own else (known.base, known.base_within)
    over, within = (over, within) if own or not missing else (missing, missing)
    answers = [MARKS[asked.flip][side] + over, MARKS[asked.flip_within][side] + within]
    if asked.flip == asked.flip_within or over == within:
        return [answers[0 if asked.flip else 1]]
    return [answers[0], f"text ids only: {answers[1]}"]


def word_diff(before: str, after: str) -> list[Piece]:
    """Return the pieces that lead from one text to the other, in order.

    The pieces that are `same` or `new` make up the text after; those that are `same` or `gone` make up the text before.
    Words and marks, each with the white space before it, and ids of images (`‹image 29›`) are compared whole.

    The diff is a longest common subsequence of words, from bit vectors as long as one of the texts (Hyyrö,
    "Bit-parallel LCS-length computation revisited", 2004): a row of the usual table is one integer, so thousands of
    words take milliseconds whatever the texts are.
    """
    old, old_rest = _words(before)
    new, new_rest = _words(after)
    changes = groupby(_changes(old, new), key=lambda change: change[0])
    pieces = [Piece(kind, "".join(word for _, word in run)) for kind, run in changes]
    rests: list[tuple[Kind, str]] = [("gone", old_rest), ("new", new_rest)]
    return [*pieces, *(Piece(kind, rest, compared=False) for kind, rest in rests if rest)]


def _words(text: str) -> tuple[list[str], str]:
    words = [match[0] for match in islice(_WORD.finditer(text), MAX_WORDS)]
    return words, text[sum(map(len, words)) :]


def _changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[Kind, str]]:
    rows = list(_rows(old, new))
    changes: list[tuple[Kind, str]] = []
    i, j = len(old), len(new)
    while i and j:
        if rows[j] >> (i - 1) & 1:  # the word adds nothing to the subsequence
            changes.append(("gone", old[i - 1]))
            i -= 1
        elif rows[j - 1] >> (i - 1) & 1:  # without this new word, the old word adds nothing either: they are a pair
            changes.append(("same", new[j - 1]))
            i, j = i - 1, j - 1
        else:
            changes.append(("new", new[j - 1]))
            j -= 1
    changes += [("gone", word) for word in reversed(old[:i])]
    changes += [("new", word) for word in reversed(new[:j])]
    changes.reverse()
    runs = (run for _, run in groupby(changes, key=lambda change: change[0] == "same"))
    return [change for run in runs for change in sorted(run, key=lambda change: change[0] == "new")]


def _rows(old: Sequence[str], new: Sequence[str]) -> Iterator[int]:
    """Yield a bit vector for no new word, for the first one, for the first two, and so on. Bit i is 0 if the longest
    common subsequence with the first i + 1 old words is longer than that with the first i."""
    places: dict[str, int] = {}
    for place, word in enumerate(old):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(old)) - 1
    row = every
    yield row
    for word in new:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
        yield row
