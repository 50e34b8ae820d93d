"""Loop of a watcher, which posts new complete checkpoints and waits for a service that is down."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from evalsvc.checkpoints.reference import Spool, hash_files
from evalsvc.client import Client
from evalsvc.errors import (
    CheckpointError,
    DatabaseUnusable,
    EvalsvcError,
    Forbidden,
    InputError,
    InvalidRequest,
    RateLimited,
    RunBehind,
    ServiceUnreachable,
    SourceUnreachable,
    StorageFull,
    Unauthorized,
    UnknownName,
    first_few,
)
from evalsvc.families.reading import sent_model
from evalsvc.spec.documents import Checkpoint, EvaluationSummary, RunCheckpoint
from evalsvc.watch.completeness import BY_NAME, Classifier, Verdict
from evalsvc.watch.folders import Candidate, LocalFolder, RemoteFolder, look_at
from evalsvc.watch.wide_table import require_layout

FIRST_DELAY, MAX_DELAY = 1.0, 60.0
"""Least and greatest seconds between two tries to reach a service that is down."""

DOWN = (ServiceUnreachable, DatabaseUnusable, RateLimited, RunBehind, StorageFull)
"""Errors that every other post would raise too, so that the watcher waits before it tries again."""

Place = LocalFolder | RemoteFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Posting:
    run: str
    suites: Sequence[str] | None = None
    """Names of suites; None for the suites of the run's plan."""
    spool: Spool = "link"
    model: Mapping[str, object] | None = None
    layout: Mapping[str, object] | None = None
    priority: int = 0
    tokens_per_step: int | None = None
    replace: bool = False
    upload: bool = False
    """Whether to send the files, since the service cannot read them."""


class Watcher:
    """Watcher that posts each checkpoint once, and no checkpoint that another client has posted."""

    def __init__(
        self, place: Place, client: Client, posting: Posting, classifier: Classifier, say: Say, complain: Say
    ) -> None:
        """`say` gets a line per post; `complain` gets lines about problems."""
        self._place, self._client, self._posting, self._classifier = place, client, posting, classifier
        self._say, self._complain = say, complain
        self._spool: Spool = "none" if posting.upload else posting.spool
        self._done: dict[str, str] = {}
        self._skipped: set[str] = set()
        """Reasons with names, of all numbers, that were named as not posted for what their names say."""
        self._last_complaints: dict[str, str] = {}
        """Text of the last complaint about a candidate, by URI."""
        self._known: dict[tuple[int, str], Checkpoint | RunCheckpoint] | None = None
        """Checkpoints of the run by step and variant; None if the service is to be asked."""
        self._suites: Sequence[str] | None = None
        """Suites that are given, or else those of the run's plan; None if the service is to be asked for them."""
        self._has_layout = posting.layout is not None
        """Whether the layout is given or known to be unnecessary."""
        self._delay: float | None = None
        """Seconds until the next try; None while the service answers."""
        self.refused = self._news = self._unchanged = 0
        """Numbers of refused posts, of lines about posts and evaluations, and of checkpoints with nothing to post."""

    def watch(self, every: float) -> None:
        while True:
            self.look()
            time.sleep(every if self._delay is None else self._delay)

    def post_all(self, every: float) -> None:
        """Post the checkpoints that exist now, and wait a while for checkpoints that are still being written."""
        settled_by = self._classifier.clock() + 2 * self._classifier.settle
        while (waiting := self._look_when_not_behind()) and self._classifier.clock() < settled_by:
            time.sleep(min(every, self._classifier.settle / 2))
        for name in waiting:
            self._complain(f"{name} is still being written and is not posted; run the command again later")
        if not (self._news or self.refused or waiting):
            reason = f"the service has all {self._unchanged} checkpoints" if self._unchanged else "no checkpoint is"
            self._complain(f"nothing to post: {reason} in {self._place}")

    def look(self, patient: bool = True) -> list[str]:
        """Post new complete checkpoints in the order of steps, and return the names of files that may become complete.
        With `patient`, a service or store that does not answer is asked again at the next look."""
        waiting: list[str] = []
        try:
            new = self._new(waiting)  # before the first request: files settle while the service is down
            self._require_suites()
            for candidate, verdict in new:
                self._post_one(candidate, verdict, patient)
        except (*DOWN, SourceUnreachable) as error:
            if not patient:
                raise
            self._wait_longer(error)
        else:
            if self._delay is not None:
                self._complain("the service accepts posts again")
            self._delay = None
        return waiting

    def _look_when_not_behind(self) -> list[str]:
        """Look once without patience. While the plan of the run refuses checkpoints, wait and look again."""
        while True:
            try:
                return self.look(patient=False)
            except RunBehind as error:
                self._wait_longer(error)
                time.sleep(self._delay or FIRST_DELAY)

    def _new(self, waiting: list[str]) -> list[tuple[Candidate, Verdict]]:
        if not self._place.exists():
            self._say_once(str(self._place), f"{self._place} does not exist yet")
            return []
        everything = self._place.list()
        self._classifier.memory.forget_others({candidate.uri for candidate in everything})
        new = []
        skipped: dict[str, list[Candidate]] = {}
        for candidate in everything:
            if self._done.get(candidate.uri) == candidate.mark:
                continue
            verdict = self._classifier.classify(candidate)
            if verdict.reason in BY_NAME:
                skipped.setdefault(verdict.reason, []).append(candidate)
            elif verdict.reason:
                self._say_once(candidate.uri, f"{candidate.name} {verdict.reason}")
            if verdict.kind == "checkpoint":
                new.append((candidate, verdict))
            elif verdict.kind == "no checkpoint":
                self._done[candidate.uri] = candidate.mark
            elif not verdict.reason:
                waiting.append(candidate.name)
        for reason, candidates in skipped.items():
            kinds = {item.name: reason + re.sub(r"\d+", "0", item.name) for item in candidates}
            if names := sorted(name for name, kind in kinds.items() if kind not in self._skipped):
                self._complain(f"{first_few(names, 5)}: {reason}")
            self._skipped.update(kinds.values())
        return sorted(new, key=lambda pair: (pair[1].step, pair[1].variant, pair[0].name))

    def _post_one(self, candidate: Candidate, verdict: Verdict, patient: bool) -> None:
        is_read_here = candidate.path is not None and not self._posting.upload
        sha256 = self._digest(candidate) if is_read_here else None
        if is_read_here and sha256 is None:
            return  # the file changed while it was read, so it is not complete
        known = self._known_checkpoint(candidate, verdict, sha256)
        if known is not None and not self._missing_suites(known) and not self._is_described_anew(known):
            self._unchanged += 1
        else:
            if not self._has_layout:
                require_layout(self._client, candidate.path, self._posting.model, self._suites or ())
                self._has_layout = True
            try:
                if known is None or self._posting.upload or self._is_described_anew(known):
                    self._post(candidate, verdict, sha256)
                else:
                    self._evaluate(candidate, known)
            except (*DOWN, Unauthorized, Forbidden):
                raise
            except (InputError, CheckpointError) as error:
                self.refused += 1
                self._complain(f"{candidate.name} is not posted: {error.told}")
            except EvalsvcError as error:
                if not patient:
                    raise
                text = f"{candidate.name} is not posted: {error.message}; evalsvc tries again"
                self._say_once(candidate.uri, text)
                return
        self._done[candidate.uri] = candidate.mark

    def _digest(self, candidate: Candidate) -> str | None:
        assert candidate.path is not None
        sha256 = self._classifier.memory.digest(candidate)
        if sha256 is not None:
            return sha256
        try:
            sha256 = hash_files(candidate.path)
        except OSError:
            return None
        now = look_at(candidate.path)
        if now is None or now.mark != candidate.mark:
            return None
        self._classifier.memory.keep_digest(candidate, sha256)
        return sha256

    def _known_checkpoint(
        self, candidate: Candidate, verdict: Verdict, sha256: str | None
    ) -> Checkpoint | RunCheckpoint | None:
        """Return the checkpoint of the service with the same step, variant and content; None if the service has none. A
        checkpoint that was posted without a digest counts as another one. To post a checkpoint twice does no harm."""
        known = self._history().get((verdict.step, verdict.variant))
        if known is None or sha256 is not None:
            return known if known is not None and known.sha256 == sha256 else None
        return known if self._classifier.memory.digest(candidate) == known.uri else None

    def _history(self) -> dict[tuple[int, str], Checkpoint | RunCheckpoint]:
        if self._known is None:
            try:
                checkpoints = self._client.run(self._posting.run).checkpoints
            except UnknownName:
                checkpoints = []
            self._known = {(item.step, item.variant): item for item in checkpoints}
        return self._known

    def _require_suites(self) -> None:
        if self._suites is not None:
            return
        run, names = self._posting.run, self._posting.suites
        if names is None:
            with suppress(UnknownName):
                names = [planned.suite for planned in self._client.plan(run).suites]
            if not names:
                known = first_few([suite.name for suite in self._client.suites()], 12)
                raise InvalidRequest(
                    f"run {run!r} has no plan, so no checkpoint would be evaluated; give --suite NAME, or set a plan: "
                    f"evalsvc plan {run} SUITE/EVERY; suites of the service: {known}"
                )
        for name in names:
            self._client.suite(name)
        self._suites = names

    def _missing_suites(self, known: Checkpoint | RunCheckpoint) -> list[str]:
        evaluated = {evaluation.suite for evaluation in known.evaluations}
        return [suite for suite in dict.fromkeys(self._posting.suites or ()) if suite not in evaluated]

    def _is_described_anew(self, known: Checkpoint | RunCheckpoint) -> bool:
        given = {"model": self._posting.model, "layout": self._posting.layout}
        if given == {"model": None, "layout": None}:
            return False
        posted = known if isinstance(known, Checkpoint) else self._client.checkpoint(known.id)
        return any(value is not None and dict(value) != getattr(posted, name) for name, value in given.items())

    def _evaluate(self, candidate: Candidate, known: Checkpoint | RunCheckpoint) -> None:
        checkpoints, self._known = self._history(), None
        evaluations = [
            self._client.evaluate(known.id, suite, self._posting.priority) for suite in self._missing_suites(known)
        ]
        new = [EvaluationSummary(id=item.id, suite=item.suite.name, state=item.state) for item in evaluations]
        evaluated = known.model_copy(update={"evaluations": [*known.evaluations, *new]})
        self._known = checkpoints | {(known.step, known.variant): evaluated}
        self._news += 1
        place = f"step {known.step} {known.variant} was posted before as checkpoint {known.id}"
        self._say(f"{candidate.name}: {place}; {', '.join(item.suite for item in new)}")

    def _post(self, candidate: Candidate, verdict: Verdict, sha256: str | None) -> None:
        try:
            self._submit(candidate, verdict, sha256, self._spool)
        except InvalidRequest:
            if self._spool != "link":
                raise
            self._submit(candidate, verdict, sha256, "copy")
            self._spool = "copy"  # only the link was refused

    def _submit(self, candidate: Candidate, verdict: Verdict, sha256: str | None, spool: Spool) -> None:
        posting, step, model = self._posting, verdict.step, self._posting.model
        if posting.upload and candidate.path is not None:
            model = sent_model(candidate.path, model)

        def report(activity: str, _done: int, size: int) -> None:
            if activity == "sending":
                self._say_once(candidate.uri, f"{candidate.name}: sending {size / 1e6:,.1f} MB")

        # If the post is refused or lost, ask the service again: another client may have posted meanwhile.
        known, self._known = self._history(), None
        posted = self._client.submit(
            posting.run,
            step,
            candidate.uri,
            variant=verdict.variant,
            suites=posting.suites,
            model=model,
            layout=posting.layout,
            tokens_seen=None if posting.tokens_per_step is None else posting.tokens_per_step * step,
            sha256=sha256,
            spool=spool,
            priority=posting.priority,
            replace=posting.replace,
            upload=posting.upload,
            report=report,
        )
        checkpoint = posted.checkpoint
        if sha256 is None:
            self._classifier.memory.keep_digest(candidate, checkpoint.uri)
        self._known = known | {(step, verdict.variant): checkpoint}
        self._news += 1
        suites = ", ".join(item.suite for item in posted.evaluations) or posted.note
        self._say(f"{candidate.name}: step {step} {verdict.variant} is checkpoint {checkpoint.id}; {suites}")

    def _wait_longer(self, error: EvalsvcError) -> None:
        if self._delay is None:
            self._complain(f"{error.message}; evalsvc tries again")
        longer = FIRST_DELAY if self._delay is None else min(2 * self._delay, MAX_DELAY)
        # The service says how long a run that is behind needs; a growing delay would wait longer.
        least = FIRST_DELAY if isinstance(error, RunBehind) else longer
        self._delay = max(least, error.retry_after or 0)
        self._known = None

    def _say_once(self, uri: str, text: str) -> None:
        if self._last_complaints.get(uri) != text:
            self._last_complaints[uri] = text
            self._complain(text)
