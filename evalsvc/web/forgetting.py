"""What a checkpoint has forgotten, read from the artifacts of a forgetting task.

The artifacts are files that a worker, or a plug-in's task, has written. Reading is bounded, and a file that cannot be
read leaves a note in its place.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from evalsvc.client import Client
from evalsvc.errors import EvalsvcError
from evalsvc.spec.documents.results import Artifact

MAX_BYTES = 4 << 20
"""Maximum size of a file that is read."""

MAX_ROWS = 400
"""Maximum number of numbers that are shown."""

MAX_FLIPS = 30
"""Maximum number of flipped questions that are shown."""

MAX_TEXT = 4000
"""Maximum number of characters that are shown of a question or an answer."""

SCOPES = {"all": "all ids", "text": "text ids only"}

METRICS = {"acc": "right answers", "bits_per_byte": "bits per byte of the right answers", "loss": "loss"}

VERDICTS = {
    "lost": "worse than the base",
    "gained": "better than the base",
    "indistinguishable": "no difference seen",
    "too few": "too few items to tell",
}

COLOURS = {"lost": "worse", "gained": "better"}
"""Style classes of verdicts."""

FLIPS = {"lost": "only the base was right", "gained": "only the checkpoint is right"}


@dataclass(frozen=True)
class Row:
    """One number of the base and the checkpoint, in words."""

    what: str
    metric: str
    scope: str
    n: str
    base: str
    checkpoint: str
    change: str
    retained: str
    lost: str
    gained: str
    p: str
    verdict: str
    colour: str
    """Style class of the verdict; empty for a verdict without a direction."""


@dataclass(frozen=True)
class Answer:
    """An answer to a flipped question."""

    who: str
    text: str


@dataclass(frozen=True)
class Flipped:
    """A question that only the base, or only the checkpoint, gets right."""

    benchmark: str
    kind: str
    question: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Forgetting:
    """What a checkpoint has forgotten by one task."""

    page: Artifact
    """The report as plain text."""
    base: str
    rows: Sequence[Row]
    flipped: Sequence[Flipped]
    notes: Sequence[str] = field(default_factory=list)
    """Sentences about files that cannot be read, and about what is left out."""

    @property
    def benchmarks(self) -> Sequence[tuple[str, Sequence[Row]]]:
        """The rows by what they measure, in the order of the table."""
        names = dict.fromkeys(row.what for row in self.rows)
        return [(name, [row for row in self.rows if row.what == name]) for name in names]


def read_forgetting(client: Client, page: Artifact) -> Forgetting:
    """Return the content of the task that left `page`."""
    notes: list[str] = []
    texts = {
        artifact.kind: _text_of(client, artifact, notes)
        for artifact in client.evaluation_artifacts(page.evaluation)
        if artifact.task == page.task and artifact.kind in ("table", "flipped")
    }
    rows = _rows(texts.get("table", ""), notes)
    flipped = _flipped(texts.get("flipped", ""), notes)
    return Forgetting(page, _short((page.details or {}).get("base", "")), rows, flipped, notes)


def _text_of(client: Client, artifact: Artifact, notes: list[str]) -> str:
    """Return the text of a file; empty, with a note, if the file cannot be read."""
    if artifact.pruned_at is not None:
        notes.append(f"{artifact.name} was removed by the retention rule of the run.")
    elif artifact.size > MAX_BYTES:
        notes.append(f"{artifact.name} is too large for this page: {artifact.size:,} bytes.")
    else:
        try:
            return client.artifact_content(artifact.id).content.decode(errors="replace")
        except EvalsvcError as error:
            notes.append(f"{artifact.name} cannot be read: {error.message}")
    return ""


def _rows(text: str, notes: list[str]) -> list[Row]:
    """Return the rows of `forgetting.csv`."""
    rows: list[Row] = []
    try:
        for values in csv.DictReader(io.StringIO(text)):
            if len(rows) == MAX_ROWS:
                notes.append(f"The table shows the first {MAX_ROWS} numbers; the file has all.")
                break
            # A line with more cells than the head has them as a list; one with fewer has None.
            rows.append(_row({name: value for name, value in values.items() if isinstance(value, str)}))
    except csv.Error as error:
        notes.append(f"The table ends where the file is no CSV: {error}.")
    return rows


def _row(values: Mapping[str, str]) -> Row:
    def get(name: str) -> str:
        return _short(values.get(name, ""))

    metric, scope, verdict = get("metric"), get("scope"), get("verdict")
    unit = get("unit")
    name = METRICS.get(metric, metric) + (f", {unit}" if unit not in ("", "fraction", "bits/byte") else "")
    return Row(
        get("what"),
        name,
        SCOPES.get(scope, scope),
        get("n"),
        _with_error(get("base"), get("base_stderr")),
        _with_error(get("checkpoint"), get("checkpoint_stderr")),
        _with_interval(get("change"), get("change_low"), get("change_high"), "+"),
        _with_interval(get("retained"), get("retained_low"), get("retained_high"), "-"),
        get("lost"),
        get("gained"),
        _number(get("p_corrected"), ".2g"),
        VERDICTS.get(verdict, verdict),
        COLOURS.get(verdict, ""),
    )


def _number(text: str, form: str) -> str:
    """Return a number of the file in a format; a text that is no number as it is, and a dash for an empty one."""
    try:
        return format(float(text), form)
    except ValueError:
        return text or "–"


def _with_error(value: str, stderr: str) -> str:
    return _number(value, ".4g") + (f" ± {_number(stderr, '.2g')}" if stderr else "")


def _with_interval(value: str, low: str, high: str, sign: str) -> str:
    interval = f" [{_number(low, sign + '.3g')}, {_number(high, sign + '.3g')}]" if low and high else ""
    return _number(value, sign + ".3g") + interval


def _flipped(text: str, notes: list[str]) -> list[Flipped]:
    """Return the questions of `flipped.jsonl`."""
    lines = [line for line in text.split("\n") if line.strip()]
    read = [flip for line in lines[:MAX_FLIPS] for flip in _flip(line)]
    if len(lines) > MAX_FLIPS:
        notes.append(f"The first {MAX_FLIPS} of {len(lines)} flipped questions are shown; the file has all.")
    if len(read) < min(len(lines), MAX_FLIPS):
        notes.append(f"{min(len(lines), MAX_FLIPS) - len(read)} lines of the flipped questions cannot be read.")
    return read


def _flip(line: str) -> Iterator[Flipped]:
    """Yield the question of a line; nothing if the line holds no question."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        return
    over_all, within = values.get("flip"), values.get("flip_within")
    kinds = [
        f"{FLIPS[str(kind)]}, {SCOPES[ids]}"
        for kind, ids in ((over_all, "all"), (within, "text"))
        if str(kind) in FLIPS
    ]
    right = values.get("right")
    answers = [Answer("right", " | ".join(map(_short, right)) if isinstance(right, list) else _short(right))]
    for who in ("base", "checkpoint"):
        answers.append(Answer(who, _short(values.get(who))))
        answer = values.get(f"{who}_within")
        if over_all != within and answer != values.get(who):
            answers.append(Answer(f"{who}, text ids only", _short(answer)))
    yield Flipped(_short(values.get("benchmark")), "; ".join(kinds), _short(values.get("question")), answers)


def _short(value: object) -> str:
    """Return a value as text, cut at MAX_TEXT characters. Half of a surrogate pair becomes a question mark."""
    text = "" if value is None else str(value).encode(errors="replace").decode()
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
