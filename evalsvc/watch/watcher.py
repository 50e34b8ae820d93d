"""The loop of a watcher: looks at its place, posts what is new and complete, and outlives a service that is down."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
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
    Unauthorized,
    UnknownName,
    first_few,
)
from evalsvc.spec.documents import Checkpoint, EvaluationSummary, RunCheckpoint
from evalsvc.watch.completeness import Classifier, Verdict
from evalsvc.watch.local_folder import Candidate, LocalFolder, look_at
from evalsvc.watch.remote_folder import RemoteFolder
from evalsvc.watch.wide_table import require_layout

FIRST_DELAY, MAX_DELAY = 1.0, 60.0
"""Seconds between the tries to reach a service that is down."""

DOWN = (ServiceUnreachable, DatabaseUnusable, RateLimited, RunBehind)
"""No other checkpoint would be taken either."""

IN_STORE = "posted"
"""Stands for the digest of an object in a store, which is not read: that this very object was posted."""

Place = LocalFolder | RemoteFolder
"""What is watched."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Posting:
    """What every post says."""

    run: str
    suites: Sequence[str] | None = None
    """None: those that the run's plan has due."""
    spool: Spool = "link"
    model: Mapping[str, object] | None = None
    layout: Mapping[str, object] | None = None
    priority: int = 0
    tokens_per_step: int | None = None
    replace: bool = False


class Watcher:
    """Posts each checkpoint once: what the service has is not posted again, by whomever it was posted."""

    def __init__(
        self, place: Place, client: Client, posting: Posting, classifier: Classifier, say: Say, complain: Say
    ) -> None:
        """`say` gets a line per post, `complain` what somebody may have to do something about."""
        self._place = place
        self._client = client
        self._posting = posting
        self._classifier = classifier
        self._say = say
        self._complain = complain
        self._spool = posting.spool
        self._done: dict[str, str] = {}
        """By uri: the mark of what needs no more looking at."""
        self._said: dict[str, str] = {}
        self._known: dict[tuple[int, str], Checkpoint | RunCheckpoint] | None = None
        """The service's checkpoints of the run by step and variant; None: to be asked for."""
        self._suites = posting.suites
        """The suites that are given, or else those of the run's plan; None: the plan is to be asked for."""
        self._has_layout = posting.layout is not None
        """Whether nothing is left to ask about the layout."""
        self._delay: float | None = None
        """Seconds to the next try; None: the service answers."""
        self.refused = 0
        """Posts that the service answered with what is to be done about them."""
        self._news = 0
        """Lines said of posts and evaluations."""
        self._unchanged = 0
        """Checkpoints of which the service has everything."""

    def watch(self, every: float) -> None:
        """Look every so many seconds, for ever.

        Raises:
            InvalidRequest: see `look`.
            Unauthorized, Forbidden: the service lets nobody in by this token.
        """
        while True:
            self.look()
            time.sleep(every if self._delay is None else self._delay)

    def post_all(self, every: float) -> None:
        """Post what is there now, with what is still being written for as long as that takes to settle.

        Raises:
            EvalsvcError: see `look`; or the service does not answer, or lets nobody in.
        """
        settled_by = self._classifier.clock() + 2 * self._classifier.settle
        while (waiting := self._look_when_not_behind()) and self._classifier.clock() < settled_by:
            time.sleep(min(every, self._classifier.settle / 2))
        for name in waiting:
            self._complain(f"{name} is still being written, and is not posted")
        if not (self._news or self.refused or waiting):
            what = f"the service has all {self._unchanged} checkpoints" if self._unchanged else "no checkpoint is"
            self._complain(f"nothing to post: {what} in {self._place}")

    def look(self, patient: bool = True) -> list[str]:
        """Post what is new and complete, in the order of steps; the names of what may be so soon.

        Where `patient`, a service or store that does not answer is asked again at a later look.

        Raises:
            InvalidRequest: no suite is given and the run has no plan, or a layout is needed and not given.
            Unauthorized, Forbidden: and, where not `patient`, ServiceUnreachable and its like.
        """
        waiting: list[str] = []
        try:
            new = self._new(waiting)  # files settle while the service is down
            self._require_suites()
            for candidate, verdict in new:
                self._post_one(candidate, verdict, patient)
        except (*DOWN, SourceUnreachable) as error:
            if not patient:
                raise
            self._wait_longer(error)
        else:
            if self._delay is not None:
                self._complain("the service takes posts again")
            self._delay = None
        return waiting

    def _look_when_not_behind(self) -> list[str]:
        """Look once without patience; wait and look again where the plan of the run refuses checkpoints for now."""
        while True:
            try:
                return self.look(patient=False)
            except RunBehind as error:
                self._wait_longer(error)
                time.sleep(self._delay or FIRST_DELAY)

    def _new(self, waiting: list[str]) -> list[tuple[Candidate, Verdict]]:
        """What is to be posted; puts the names of what is not complete yet into `waiting`."""
        if not self._place.exists():
            self._say_once(str(self._place), "", f"{self._place} is not there yet")
            return []
        everything = self._place.list()
        self._classifier.memory.forget_others({candidate.uri for candidate in everything})
        new = []
        for candidate in everything:
            if self._done.get(candidate.uri) == candidate.mark:
                continue
            verdict = self._classifier.classify(candidate)
            if verdict.reason:
                self._say_once(candidate.uri, candidate.mark, f"{candidate.name} {verdict.reason}")
            if verdict.kind == "checkpoint":
                new.append((candidate, verdict))
            elif verdict.kind == "no checkpoint":
                self._done[candidate.uri] = candidate.mark
            elif not verdict.reason:
                waiting.append(candidate.name)
        return sorted(new, key=lambda pair: (pair[1].step, pair[1].variant, pair[0].name))

    def _post_one(self, candidate: Candidate, verdict: Verdict, patient: bool) -> None:
        sha256 = None if candidate.path is None else self._digest(candidate)
        if candidate.path is not None and sha256 is None:
            return  # it changed meanwhile, and is not complete after all
        known = self._known_checkpoint(candidate, verdict, sha256)
        if known is not None and self._is_done(known):
            self._unchanged += 1
        else:
            self._check_layout(candidate)
            try:
                if known is None or self._is_described_anew(known):
                    self._post(candidate, verdict, sha256)
                else:
                    self._evaluate(candidate, known)
                if candidate.path is None:
                    self._classifier.memory.keep_digest(candidate, IN_STORE)
            except (*DOWN, Unauthorized, Forbidden):
                raise
            except (InputError, CheckpointError) as error:
                self.refused += 1
                self._complain(f"{candidate.name} is not posted: {error.message}")
            except EvalsvcError as error:
                if not patient:
                    raise
                text = f"{candidate.name} is not posted: {error.message}; trying again"
                self._say_once(candidate.uri, candidate.mark, text)
                return
        self._done[candidate.uri] = candidate.mark

    def _digest(self, candidate: Candidate) -> str | None:
        """The SHA-256 of its content; None where it changed while that was made."""
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
        """Return the service's checkpoint with this very content at this step, under whatever name it was posted.

        Of one that was posted without a digest it cannot be told: posting it again does no harm.
        """
        known = self._history().get((verdict.step, verdict.variant))
        if known is None:
            return None
        if sha256 is None:
            was_posted = self._classifier.memory.digest(candidate) == IN_STORE
            return known if was_posted and known.uri == candidate.uri else None
        return known if known.sha256 == sha256 else None

    def _history(self) -> dict[tuple[int, str], Checkpoint | RunCheckpoint]:
        if self._known is None:
            try:
                checkpoints = self._client.run(self._posting.run).checkpoints
            except UnknownName:
                checkpoints = []
            self._known = {(item.step, item.variant): item for item in checkpoints}
        return self._known

    def _require_suites(self) -> None:
        """Raise InvalidRequest where no post could lead to an evaluation."""
        run = self._posting.run
        if self._suites or self._posting.suites is not None:
            return
        try:
            self._suites = [planned.suite for planned in self._client.plan(run).suites]
        except UnknownName:
            self._suites = []
        if not self._suites:
            names = first_few([suite.name for suite in self._client.suites()], 12)
            raise InvalidRequest(
                f"run {run!r} has no plan, so no checkpoint would be evaluated; give --suite NAME, or give the run a "
                f"plan first (PUT /v1/runs/{run}/plan); suites of the service: {names}"
            )

    def _check_layout(self, candidate: Candidate) -> None:
        """Raise InvalidRequest where the first checkpoint of this machine needs a layout; see `require_layout`."""
        if self._has_layout or candidate.path is None:
            return
        require_layout(self._client, candidate.path, self._posting.model, self._suites or ())
        self._has_layout = True

    def _is_done(self, known: Checkpoint | RunCheckpoint) -> bool:
        """Whether the service has all that a post of this content would tell it."""
        return not self._missing_suites(known) and not self._is_described_anew(known)

    def _missing_suites(self, known: Checkpoint | RunCheckpoint) -> list[str]:
        """Return the suites that are given and have not evaluated the checkpoint."""
        evaluated = {evaluation.suite for evaluation in known.evaluations}
        return [suite for suite in dict.fromkeys(self._posting.suites or ()) if suite not in evaluated]

    def _is_described_anew(self, known: Checkpoint | RunCheckpoint) -> bool:
        """Whether a model or layout is given that is not the one that the checkpoint was posted with."""
        given = {"model": self._posting.model, "layout": self._posting.layout}
        if given == {"model": None, "layout": None}:
            return False
        posted = known if isinstance(known, Checkpoint) else self._client.checkpoint(known.id)
        return any(value is not None and dict(value) != getattr(posted, name) for name, value in given.items())

    def _evaluate(self, candidate: Candidate, known: Checkpoint | RunCheckpoint) -> None:
        """Evaluate a checkpoint that was posted before with the suites that are missing."""
        checkpoints, self._known = self._history(), None
        asked = [
            self._client.evaluate(known.id, suite, self._posting.priority) for suite in self._missing_suites(known)
        ]
        new = [EvaluationSummary(id=item.id, suite=item.suite.name, state=item.state) for item in asked]
        evaluated = dataclasses.replace(known, evaluations=[*known.evaluations, *new])
        self._known = checkpoints | {(known.step, known.variant): evaluated}
        self._news += 1
        place = f"step {known.step} {known.variant} was posted before as checkpoint {known.id}"
        self._say(f"{candidate.name}: {place}; {', '.join(item.suite for item in new)}")

    def _post(self, candidate: Candidate, verdict: Verdict, sha256: str | None) -> None:
        """Post a checkpoint, by a link where that can be, else by a copy."""
        try:
            self._submit(candidate, verdict, sha256, self._spool)
        except InvalidRequest:
            if self._spool != "link":
                raise
            self._submit(candidate, verdict, sha256, "copy")
            self._spool = "copy"  # the link was refused, and nothing else

    def _submit(self, candidate: Candidate, verdict: Verdict, sha256: str | None, spool: Spool) -> None:
        posting, step = self._posting, verdict.step
        # What others have posted meanwhile is asked for again, should this be refused or lost.
        known, self._known = self._history(), None
        posted = self._client.submit(
            posting.run,
            step,
            candidate.uri,
            variant=verdict.variant,
            suites=posting.suites,
            model=posting.model,
            layout=posting.layout,
            tokens_seen=None if posting.tokens_per_step is None else posting.tokens_per_step * step,
            sha256=sha256,
            spool=spool,
            priority=posting.priority,
            replace=posting.replace,
        )
        checkpoint = posted.checkpoint
        self._known = known | {(step, verdict.variant): checkpoint}
        self._news += 1
        suites = ", ".join(item.suite for item in posted.evaluations) or "no suite is due"
        self._say(f"{candidate.name}: step {step} {verdict.variant} is checkpoint {checkpoint.id}; {suites}")

    def _wait_longer(self, error: EvalsvcError) -> None:
        if self._delay is None:
            self._complain(f"{error.message}; trying again")
        longer = FIRST_DELAY if self._delay is None else min(2 * self._delay, MAX_DELAY)
        # A run that is behind catches up at a pace of which the service knows more.
        least = FIRST_DELAY if isinstance(error, RunBehind) else longer
        self._delay = max(least, error.retry_after or 0)
        self._known = None

    def _say_once(self, uri: str, mark: str, text: str) -> None:
        if self._said.get(uri) != mark + text:
            self._said[uri] = mark + text
            self._complain(text)
