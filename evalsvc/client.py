"""The service's client: what the commands `submit` and `history` use, and what a notebook may use. Needs httpx only."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import httpx

from evalsvc.connection_errors import service_unreachable, speaks_tls, without_password
from evalsvc.errors import (
    ChecksumMismatch,
    DatabaseUnusable,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    RateLimited,
    RunBehind,
    ServiceUnreachable,
    UploadConflict,
    UploadNotFound,
    leaves,
    os_reason,
)
from evalsvc.files.uploads.local import LocalFile, Report
from evalsvc.spec import documents
from evalsvc.spec.documents.fields import OVER as OVER
from evalsvc.spec.documents.reading import content_of, read

D = TypeVar("D", bound=documents.Document)
P = TypeVar(
    "P",
    documents.Runs,
    documents.Checkpoints,
    documents.Evaluations,
    documents.Artifacts,
    documents.Protocols,
    documents.Suites,
    documents.History,
)

DEFAULT_URL = "http://127.0.0.1:8321"

MAX_PAGE = 1000
"""Rows that a request for a page of a list may ask for."""

HEADLINE_RUNS = 50
"""Runs that a request for headlines may name."""

SILENCE = 60.0
"""Seconds without a sign of life after which a stream of events is given up and asked for again."""

MAX_RETRY_AFTER = 3600
"""Seconds that a service can ask for before the next try."""
PART_BYTES = 8 << 20
"""Bytes of a part of an upload: what a broken connection costs at most."""

UPLOAD_PATIENCE = 600.0
"""Seconds without progress after which an upload is given up."""

FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
"""Seconds until a request of an upload is tried again: the first time, and at most. Each delay is twice the one before,
times a random factor between 0.5 and 1.5."""

DIGEST_SPEED = 50_000_000
"""Bytes per second that a service at least hashes, when it compares the digest of a whole file."""

_PASSING = (ServiceUnreachable, DatabaseUnusable, NotReady, RateLimited, UploadConflict)
"""Errors after which a request of an upload is sent again."""

_RESUMED = (*_PASSING, UploadNotFound, ChecksumMismatch)
"""Errors of a part after which the upload resumes from the offset that the service names."""

_ERRORS = {leaf.code: leaf for leaf in leaves()}


@dataclass(frozen=True)
class ArtifactContent:
    """An artifact as an evaluation left it."""

    content: bytes
    media_type: str
    sha256: str


class Client:
    """A running service. Every method returns a document, and raises the service's errors as their own classes.

    Raises (all methods):
        ServiceUnreachable: nothing answers at the address, or something else does.
        Unauthorized, Forbidden: the service asks for a token, or for one of a larger scope.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`token` is for a service that asks for one; `ca`, a file of certificates, for https by one of your own."""
        self.url = url.rstrip("/")
        self._shown = without_password(self.url)
        self._ca = ca
        self._is_direct = transport is None
        # The service is reached directly: a proxy for the internet would take 127.0.0.1 for its own. Redirects are not
        # followed, so the token goes to no other address.
        self._http = httpx.Client(
            timeout=timeout,
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            # By http nobody shows a certificate, and to read those of the world's authorities takes longer than to ask.
            verify=_trusting(ca) if ca else not self.url.lower().startswith("http://"),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        run: str | None,
        step: int | None,
        uri: str,
        *,
        variant: str | None = None,
        suites: Sequence[str] | None = None,
        model: str | Mapping[str, object] | None = None,
        layout: str | Mapping[str, object] | None = None,
        tokens_seen: int | None = None,
        sha256: str | None = None,
        spool: str = "none",
        priority: int = 0,
        tags: Mapping[str, str] | None = None,
        replace: bool = False,
        patience: float = 0.0,
        upload: bool = False,
        report: Report | None = None,
    ) -> documents.Posted:
        """Post a checkpoint, and have it evaluated. Posting the same again changes nothing.

        For up to `patience` seconds, a post that is refused since the run is behind (`when_behind: refuse`) is repeated
        after the seconds that the service asks for.

        `uri` may be an expression over checkpoints of the service, `lerp(run@0, run@5000, 0.3)`; then run and step have
        defaults: the run that is named first, and its last step in the expression.

        With `upload`, `uri` is a file of this machine that the service cannot read. The file is sent to the service,
        see `upload`, unless the service has the file already. Give `model`: nothing lies next to an uploaded file.
        """
        body = {
            "run": run,
            "step": step,
            "uri": uri,
            "variant": variant,
            "suites": suites,
            "model": model,
            "layout": layout,
            "tokens_seen": tokens_seen,
            "sha256": sha256,
            "spool": spool,
            "priority": priority,
            "tags": tags or {},
            "replace": replace,
        }
        given = {key: value for key, value in body.items() if value is not None}
        if upload:
            return self._submit_upload(uri, given, patience, report)
        return self._post_patiently(given, patience)

    def _post_patiently(self, body: Mapping[str, object], patience: float) -> documents.Posted:
        """Post a checkpoint; repeat a post that is refused since the run is behind, for up to `patience` seconds."""
        until = time.monotonic() + patience
        while True:
            try:
                return self._fetch(documents.Posted, "POST", "/v1/checkpoints", body)
            except RunBehind as error:
                wait = max(1, error.retry_after or 0)
                if time.monotonic() + wait > until:
                    raise
            time.sleep(wait)

    def upload(
        self,
        path: str,
        *,
        sha256: str | None = None,
        patience: float = UPLOAD_PATIENCE,
        report: Report | None = None,
    ) -> documents.Upload:
        """Send a file to the service, and resume what an earlier call, also of another process, has sent.

        A checkpoint of the file is then posted with the uri `upload:` and the file's SHA-256. Give `sha256` where it is
        known; else the file is read twice. After `patience` seconds without progress the upload is given up, and what
        was sent stays for a day. `report` gets what is being done (`reading` or `sending`), the bytes done, and all.

        Raises:
            InvalidRequest: the file cannot be read, or is empty or a folder.
            CheckpointChanged: the file changed while it was sent.
            Forbidden: the service takes no uploads.
            StorageFull: the file does not fit.
        """
        with LocalFile(path) as file:
            self._require_uploads()
            return self._send_file(file, (sha256 or file.sha256(report)).lower(), patience, report)

    def uploads(self, sha256: str | None = None) -> list[documents.Upload]:
        """Return the uploads of this token that are not posted yet, or those of the file with a digest."""
        return self._get(documents.Uploads, "/v1/uploads", query=_query(sha256=sha256)).uploads

    def delete_upload(self, upload: str) -> None:
        """Delete an upload with its bytes."""
        self._require_success(self._request("DELETE", f"/v1/uploads/{_part(upload)}"))

    def checkpoint(self, checkpoint: int) -> documents.Checkpoint:
        """Return a checkpoint; `in_use` says whether its file is still needed."""
        return self._get(documents.Checkpoint, f"/v1/checkpoints/{checkpoint}")

    def delete_checkpoint(self, checkpoint: int, *, confirm: str, cancel: bool = False) -> documents.DeletedCheckpoint:
        """Delete a checkpoint with its evaluations and what they measured, for good.

        `confirm` is the checkpoint's name, RUN@STEP or RUN@STEP:VARIANT. `cancel`: also where evaluations wait or run.
        """
        query = _query(confirm=confirm, cancel=cancel)
        return self._fetch(documents.DeletedCheckpoint, "DELETE", f"/v1/checkpoints/{checkpoint}", query=query)

    def evaluate(self, checkpoint: int, suite: str, priority: int = 0) -> documents.Evaluation:
        """Evaluate a posted checkpoint with a suite."""
        body = {"checkpoint": checkpoint, "suite": suite, "priority": priority}
        return self._fetch(documents.Evaluation, "POST", "/v1/evaluations", body)

    def evaluation(self, evaluation: int) -> documents.Evaluation:
        """Return an evaluation with its state, its progress and the results of its tasks."""
        return self._get(documents.Evaluation, f"/v1/evaluations/{evaluation}")

    def evaluated_suite(self, evaluation: int) -> documents.EvaluatedSuite:
        """Return the suite that an evaluation began with, whether or not the suite was replaced or deleted since."""
        return self._get(documents.EvaluatedSuite, f"/v1/evaluations/{evaluation}/suite")

    def interim(self, evaluation: int) -> dict[str, documents.Interim]:
        """Return what the tasks that go on have found so far, by task.

        The next look replaces an interim result, and none enters the history. A task that is over, or was not looked at
        yet, has none.
        """
        return {task.name: task.interim for task in self.evaluation(evaluation).tasks if task.interim is not None}

    def wait(
        self,
        evaluation: int,
        *,
        every: float = 1.0,
        timeout: float | None = None,
        report: Callable[[documents.Evaluation], None] | None = None,
    ) -> documents.Evaluation:
        """Return the evaluation once it is over, succeeded or not; `report` gets the evaluation at each look.

        Raises:
            DeadlineExceeded: it was not over within `timeout` seconds.
        """
        begun = time.monotonic()
        while True:
            found = self.evaluation(evaluation)
            if report is not None:
                report(found)
            if found.state in OVER:
                return found
            if timeout is not None and time.monotonic() - begun > timeout:
                raise DeadlineExceeded(f"evaluation {evaluation} is {found.state} after {timeout:g} s; it goes on")
            time.sleep(every)

    def events(self, evaluation: int, *, after: int = 0, patience: float = 60.0) -> Iterator[documents.Event]:
        """Yield the events of an evaluation as they happen; the last event is `end`.

        After a lost connection or a restart of the service, the client asks for the events after the last one that it
        read. `after` is the id of the last event that the caller has.

        Raises:
            ServiceUnreachable: it did not answer for `patience` seconds.
        """
        heard = time.monotonic()
        while True:
            try:
                for event in self._stream(evaluation, after):
                    heard = time.monotonic()
                    after = event.id or after
                    yield event
                    if event.event == "end":
                        return
            except (ServiceUnreachable, DatabaseUnusable, RateLimited):
                if time.monotonic() - heard > patience:
                    raise
            except _Complete:
                return
            time.sleep(min(2.0, patience))

    def cancel(self, evaluation: int) -> documents.Evaluation:
        """Cancel a queued or running evaluation; finished shards keep their results."""
        return self._fetch(documents.Evaluation, "POST", f"/v1/evaluations/{evaluation}/cancel")

    def retry(self, evaluation: int) -> documents.Evaluation:
        """Queue failed and cancelled shards again; finished shards keep their results."""
        return self._fetch(documents.Evaluation, "POST", f"/v1/evaluations/{evaluation}/retry")

    def history(
        self,
        run: str,
        names: Sequence[str] = (),
        *,
        variant: str | None = None,
        x: str = "step",
        first: int | None = None,
        last: int | None = None,
    ) -> documents.History:
        """Return a run's series as columns along `x` (`step` or `tokens`), from `first` to `last`.

        NaN and infinities are strings. Names may be patterns, `arc_*/acc`.
        """
        query = _query(x=x, metric=names, variant=variant, to=last, **{"from": first})
        return self._get(documents.History, f"/v1/runs/{_part(run)}/metrics", query=query)

    def buckets(
        self,
        run: str,
        names: Sequence[str] = (),
        *,
        points: int,
        variant: str | None = None,
        x: str = "step",
        first: int | None = None,
        last: int | None = None,
    ) -> documents.Buckets:
        """Return what `history` returns with each series in at most `points` buckets of equal width.

        A bucket has the `min`, `max` and `mean` of its values, and the `last` of them.
        """
        query = _query(x=x, metric=names, variant=variant, points=points, to=last, **{"from": first})
        return self._get(documents.Buckets, f"/v1/runs/{_part(run)}/metrics", query=query)

    def history_pages(
        self, run: str, names: Sequence[str] = (), *, limit: int, variant: str | None = None, x: str = "step"
    ) -> Iterator[documents.History]:
        """Yield pages of `history`, each with at most `limit` values; a series may continue on the next page."""
        query = _query(x=x, metric=names, variant=variant)
        yield from self._pages(documents.History, f"/v1/runs/{_part(run)}/metrics", query, limit)

    def summary(
        self, run: str, names: Sequence[str] = (), *, variant: str | None = None
    ) -> list[documents.SummarySeries]:
        """Return the `latest` and the `best` value of each series of a run."""
        query = _query(metric=names, variant=variant)
        return self._get(documents.Summary, f"/v1/runs/{_part(run)}/summary", query=query).series

    def headline(self, run: str) -> documents.Headline:
        """Return the metrics of a run to show first, and those that could not be measured."""
        return self._get(documents.Headline, f"/v1/runs/{_part(run)}/headline")

    def headlines(
        self,
        runs: Sequence[str],
        metrics: Sequence[str] = (),
        *,
        points: int | None = None,
        last: int | None = None,
        compare: float = 0.0,
    ) -> list[documents.RunHeadlines]:
        """Return the headline metrics of several runs, or the metrics that are named, in the order of `runs`.

        With `points`, each series has at most so many values along training. Values of steps after `last` are left out.
        `compare` is the time in seconds that the service may take for verdicts on the newest values, for each
        `HEADLINE_RUNS` runs.
        """
        query = _query(metric=metrics, points=points, to=last, compare=compare)
        headlines: list[documents.RunHeadlines] = []
        for start in range(0, len(runs), HEADLINE_RUNS):
            part = [*query, *_query(run=runs[start : start + HEADLINE_RUNS])]
            headlines += self._get(documents.Headlines, "/v1/headlines", query=part).runs
        return headlines

    def import_values(
        self, run: str, source: str, series: Sequence[Mapping[str, object]], *, replace: bool = False
    ) -> documents.ImportOutcome:
        """Enter values that other programs measured, all or none.

        A series is `{"metric", "step": […], "value": […]}`, with `stderr`, `n`, `unit`, `direction`, `variant` and
        `protocol` (in words) where they are known. `source` says where the values are from.
        """
        body = {"source": source, "series": list(series), "replace": replace}
        return self._fetch(documents.ImportOutcome, "POST", f"/v1/runs/{_part(run)}/metrics", body)

    def status(self) -> documents.Status:
        """Return the state of the service: what is missing, its workers, the queue, what runs and what failed last."""
        return self._get(documents.Status, "/v1/status")

    def runs(self) -> list[documents.RunSummary]:
        """Return all runs, by name."""
        return [run for page in self._pages(documents.Runs, "/v1/runs") for run in page.runs]

    def run(self, run: str) -> documents.Run:
        """Return a run with all of its checkpoints, its plan and its base."""
        found = self._get(documents.Run, f"/v1/runs/{_part(run)}")
        if found.checkpoint_count <= len(found.checkpoints):
            return found
        return replace(found, checkpoints=list(self.checkpoints(run)))

    def checkpoints(
        self,
        run: str | None = None,
        *,
        variant: str | None = None,
        state: str | None = None,
        first: int | None = None,
        last: int | None = None,
        page_size: int = MAX_PAGE,
    ) -> Iterator[documents.ListedCheckpoint]:
        """Yield the checkpoints that were not replaced, by run, step and variant, `page_size` in a request.

        `state` keeps checkpoints with an evaluation in that state, `first` and `last` those of a range of steps.
        """
        query = _query(run=run, variant=variant, state=state, to=last, **{"from": first})
        for page in self._pages(documents.Checkpoints, "/v1/checkpoints", query, page_size):
            yield from page.checkpoints

    def evaluations(
        self,
        run: str | None = None,
        *,
        suite: str | None = None,
        state: str | None = None,
        first: int | None = None,
        last: int | None = None,
        page_size: int = MAX_PAGE,
    ) -> Iterator[documents.ListedEvaluation]:
        """Yield the evaluations, the newest first, `page_size` in a request.

        `first` and `last` keep the evaluations of checkpoints in a range of steps.
        """
        query = _query(run=run, suite=suite, state=state, to=last, **{"from": first})
        for page in self._pages(documents.Evaluations, "/v1/evaluations", query, page_size):
            yield from page.evaluations

    def protocols(
        self, run: str | None = None, metrics: Sequence[str] = (), *, page_size: int = MAX_PAGE
    ) -> Iterator[documents.ListedProtocol]:
        """Yield the protocols, by id; with `run` or `metrics`, those that the run or the metrics have values by."""
        query = _query(run=run, metric=metrics)
        for page in self._pages(documents.Protocols, "/v1/protocols", query, page_size):
            yield from page.protocols

    def rename_run(self, run: str, name: str) -> documents.Run:
        """Give a run another name, wherever it is named."""
        return self._fetch(documents.Run, "PATCH", f"/v1/runs/{_part(run)}", {"name": name})

    def delete_run(self, run: str, *, cancel: bool = False) -> documents.Deleted:
        """Delete a run with all that came of it, for good; `cancel`: also where evaluations wait or run."""
        query = _query(confirm=run, cancel=cancel)
        return self._fetch(documents.Deleted, "DELETE", f"/v1/runs/{_part(run)}", query=query)

    def plan(self, run: str) -> documents.Plan:
        """Return the suites that the checkpoints of a run get."""
        return self._get(documents.Plan, f"/v1/runs/{_part(run)}/plan")

    def put_plan(self, run: str, plan: documents.Plan | Mapping[str, object]) -> documents.Plan:
        """Say which suites the checkpoints of a run get: `{"suites": [{"suite", "every"}], "when_behind"}`.

        `when_behind` is `all`, `newest` or `refuse`, the last with `at_most`.
        """
        body = content_of(plan) if isinstance(plan, documents.Plan) else plan
        return self._fetch(documents.Plan, "PUT", f"/v1/runs/{_part(run)}/plan", body)

    def set_base(self, run: str, step: int, *, of: str | None = None, variant: str = "raw") -> documents.Base:
        """Say what a run's checkpoints are compared with: a checkpoint of this run, or of the run `of`."""
        body = {"step": step, "variant": variant, **({} if of is None else {"run": of})}
        return self._fetch(documents.Base, "PUT", f"/v1/runs/{_part(run)}/base", body)

    def results(
        self, run: str, step: int, *, variant: str = "raw", suite: str | None = None
    ) -> documents.CheckpointResult:
        """Return what is known of a checkpoint, by the newest evaluation of each suite.

        `state` is `succeeded` once all of them are. Of several suites, those of one, where `suite` names it.
        """
        query = _query(variant=variant, suite=suite or None)
        return self._get(documents.CheckpointResult, f"/v1/runs/{_part(run)}/results/{step}", query=query)

    def items(
        self,
        evaluation: int,
        *,
        task: str | None = None,
        benchmark: str | None = None,
        columns: Sequence[str] = (),
    ) -> documents.Items:
        """Return an evaluation's results per item, of the tasks that have succeeded.

        `columns` chooses keys of the items. `pandas.DataFrame(found.items[task])` is a table of them.
        """
        query = _query(task=task, benchmark=benchmark, columns=columns)
        return self._get(documents.Items, f"/v1/evaluations/{evaluation}/items", query=query)

    def compare(
        self,
        a: str,
        b: str,
        metrics: Sequence[str] = (),
        *,
        tasks: Sequence[str] = (),
        suite: str | None = None,
        level: float = 0.95,
        force: bool = False,
        flipped: int = 0,
        family: str = "none",
    ) -> documents.Comparison:
        """Return how far the checkpoints `a` and `b`, each RUN@STEP or RUN@STEP:VARIANT, are apart.

        `family` is `none` for verdicts that hold each by itself, or `holm` for verdicts on all metrics together.
        `expected_by_chance` metrics would be better, worse or different if nothing had changed.
        """
        of = {"metric": metrics, "task": tasks, "suite": suite}
        query = _query(a=a, b=b, **of, level=level, force=force, flipped=flipped, family=family)
        return self._get(documents.Comparison, "/v1/compare", query=query)

    def compare_runs(
        self,
        a: str,
        b: str | None = None,
        metrics: Sequence[str] = (),
        *,
        tasks: Sequence[str] = (),
        suite: str | None = None,
        level: float = 0.95,
        band: str = "pointwise",
        force: bool = False,
    ) -> documents.RunComparison:
        """Return how far two runs are apart along their steps, or a run from its base, and where that is within noise.

        `band` is `pointwise`, or `simultaneous` for intervals that hold at all steps together; results for several
        steps, such as `apart_from` and `sign_changes`, always use the latter.
        `pandas.DataFrame({"x": curve.x, "difference": curve.difference, "low": curve.low, "high": curve.high})` is a
        curve to be drawn.
        """
        query = _query(a=a, b=b, metric=metrics, task=tasks, suite=suite, level=level, band=band, force=force)
        return self._get(documents.RunComparison, "/v1/compare/curves", query=query)

    def table(
        self, runs: Sequence[str] = (), metrics: Sequence[str] = (), *, variant: str | None = None
    ) -> dict[str, list[object]]:
        """Return the history of runs as columns for `pandas.DataFrame`, a row per value; NaN and infinities are floats.

        The columns are the fields of `documents.TableColumns`.
        """
        query = _query(run=runs, metric=metrics, variant=variant)
        columns = self._get(documents.Table, "/v1/table", query=query).columns
        return vars(replace(columns, value=list(map(float, columns.value))))

    def completions(
        self, run: str, *, variant: str | None = None, prompt: str | None = None
    ) -> list[documents.StepCompletions]:
        """Return what a run's checkpoints made of fixed prompts, by step.

        A completion's `previous` says how it differs from that of the step before.
        """
        query = _query(variant=variant, prompt=prompt)
        return self._get(documents.Completions, f"/v1/runs/{_part(run)}/completions", query=query).steps

    def suites(self) -> list[documents.SuiteSummary | documents.BrokenSuite]:
        """Return all suites, by name."""
        return [suite for page in self._pages(documents.Suites, "/v1/suites") for suite in page.suites]

    def suite(self, suite: str) -> documents.Suite:
        """Return a suite with its tasks and all their parameters."""
        return self._get(documents.Suite, f"/v1/suites/{_part(suite)}")

    def put_suite(
        self, suite: str, content: str | Mapping[str, object], *, replace_shipped: bool = False
    ) -> documents.Suite:
        """Keep a suite, given as YAML text or as a mapping.

        `replace_shipped`: also under the name of a suite that comes with evalsvc, for all who name it.
        """
        path = f"/v1/suites/{_part(suite)}" + ("?replace_shipped=true" if replace_shipped else "")
        if isinstance(content, str):
            return self._fetch(documents.Suite, "PUT", path, text=content)
        return self._fetch(documents.Suite, "PUT", path, content)

    def delete_suite(self, suite: str) -> documents.DeletedSuite:
        """Delete a suite that was put; a suite of the folder or of evalsvc that the deleted one hid has the name again.

        Evaluations keep the suite that they began with.
        """
        return self._fetch(documents.DeletedSuite, "DELETE", f"/v1/suites/{_part(suite)}")

    def artifacts(self, run: str, kind: str | None = None, step: int | None = None) -> list[documents.Artifact]:
        """Return the artifacts of a run, by step; the content is at `/v1/artifacts/{id}`."""
        pages = self._pages(documents.Artifacts, f"/v1/runs/{_part(run)}/artifacts", _query(kind=kind, step=step))
        return [artifact for page in pages for artifact in page.artifacts]

    def evaluation_artifacts(self, evaluation: int, kind: str | None = None) -> list[documents.Artifact]:
        """Return the artifacts of an evaluation, in the order of its tasks."""
        pages = self._pages(documents.Artifacts, f"/v1/evaluations/{evaluation}/artifacts", _query(kind=kind))
        return [artifact for page in pages for artifact in page.artifacts]

    def artifact_content(self, artifact: int) -> ArtifactContent:
        """Return the content of an artifact, checked against its digest.

        Raises:
            UnknownName: there is no such artifact, or its file is lost.
            ArtifactPruned: the content was removed by the rule of its run.
            ServiceUnreachable: the content has another digest than the service says.
        """
        path = f"/v1/artifacts/{artifact}"
        try:
            response = self._http.get(self.url + path)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        digest = response.headers.get("ETag", "").strip('"')
        if not response.is_success:
            self._read(response)
        if hashlib.sha256(response.content).hexdigest() != digest:
            raise ServiceUnreachable(f"{path} at {self._shown} came damaged, or what answers is no evalsvc; try again")
        return ArtifactContent(response.content, response.headers.get("Content-Type", ""), digest)

    def retention(self, run: str) -> documents.Retention:
        """Return which artifacts of a run are kept."""
        return self._get(documents.Retention, f"/v1/runs/{_part(run)}/retention")

    def put_retention(self, run: str, keep: Mapping[str, object] | None) -> documents.Retention:
        """Say which artifacts of a run are kept, by `last`, `every`, `days` and `best`; None: by the service's rule."""
        body = {"keep": None if keep is None else dict(keep)}
        return self._fetch(documents.Retention, "PUT", f"/v1/runs/{_part(run)}/retention", body)

    def prune(self, run: str | None = None, *, dry_run: bool = False) -> documents.Pruned:
        """Prune artifacts by the rules, of all runs or of one."""
        return self._fetch(documents.Pruned, "POST", "/v1/prune", query=_query(run=run, dry_run=dry_run))

    def protocol(self, protocol: str) -> dict[str, object]:
        """Return what a protocol's id stands for."""
        return self._ask("GET", f"/v1/protocols/{_part(protocol)}")

    def _submit_upload(
        self, path: str, body: Mapping[str, object], patience: float, report: Report | None
    ) -> documents.Posted:
        with LocalFile(path) as file:
            self._require_uploads()
            sha256 = str(body.get("sha256") or file.sha256(report)).lower()
            body = {**body, "uri": f"upload:{sha256}"}

            def post() -> documents.Posted:
                return self._post_patiently(body, patience)

            try:
                # Whatever is wrong with the post is said before the file is sent.
                return post()
            except UploadNotFound:
                self._send_file(file, sha256, UPLOAD_PATIENCE, report)
            return _persistently(post, UPLOAD_PATIENCE)

    def _require_uploads(self) -> None:
        """Raise what keeps the service from taking uploads, before a large file is read."""
        self._require_success(self._request("OPTIONS", "/v1/uploads"))

    def _send_file(self, file: LocalFile, sha256: str, patience: float, report: Report | None) -> documents.Upload:
        """Send a file in parts, each from the offset that the service names, until the service has the whole file."""

        def find_or_begin() -> documents.Upload:
            return self._find_or_begin_upload(file, sha256)

        upload = _persistently(find_or_begin, patience)
        heard, delay = time.monotonic(), FIRST_DELAY
        while not upload.complete:
            if report is not None:
                report("sending", upload.offset, file.size)
            try:
                upload = self._send_part(file, upload)
                heard, delay = time.monotonic(), FIRST_DELAY
            except _RESUMED:
                if time.monotonic() - heard > patience:
                    raise
                time.sleep(delay * (0.5 + random.random()))
                delay = min(2 * delay, LONGEST_DELAY)
                upload = _persistently(find_or_begin, patience)
        file.require_unchanged()
        return upload

    def _find_or_begin_upload(self, file: LocalFile, sha256: str) -> documents.Upload:
        for upload in self.uploads(sha256):
            if upload.length == file.size:
                return upload
        metadata = {"sha256": sha256, "filename": file.name}
        pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items())
        headers = {"Upload-Length": str(file.size), "Upload-Metadata": ",".join(pairs)}
        response = self._request("POST", "/v1/uploads", headers=_TUS | headers)
        return self._document(documents.Upload, self._read(response), "POST", "/v1/uploads")

    def _send_part(self, file: LocalFile, upload: documents.Upload) -> documents.Upload:
        """Send the next part; of an upload whose bytes are all there, an empty one, which has the digest compared."""
        part = file.part(upload.offset, PART_BYTES)
        digest = base64.b64encode(hashlib.sha256(part).digest()).decode()
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(upload.offset),
            "Upload-Checksum": f"sha256 {digest}",
        }
        timeout = self._http.timeout
        if upload.offset + len(part) == upload.length and timeout.read is not None:
            timeout = httpx.Timeout(**timeout.as_dict() | {"read": timeout.read + upload.length / DIGEST_SPEED})
        path = f"/v1/uploads/{_part(upload.id)}"
        response = self._request("PATCH", path, headers=_TUS | headers, content=part, timeout=timeout)
        self._require_success(response)
        offset = response.headers.get("upload-offset", "")
        if not offset.isdigit():
            self._stranger(response)
        return replace(upload, offset=int(offset), complete=int(offset) == upload.length)

    def _require_success(self, response: httpx.Response) -> None:
        """Raise the error of an answer without a document."""
        if response.status_code == httpx.codes.REQUEST_TIMEOUT:
            raise ServiceUnreachable(f"the connection to {self._shown} stalled while a part was sent")
        is_ours = response.headers.get("content-type", "").startswith("application/problem+json")
        if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE and not is_ours:
            raise InvalidRequest(
                f"a proxy in front of {self._shown} refuses requests of {PART_BYTES:,} bytes (413); have its limit "
                "raised, e.g. `client_max_body_size 16m` of nginx"
            )
        if not response.is_success:
            self._read(response)

    def _stream(self, evaluation: int, after: int) -> Iterator[documents.Event]:
        """One stream of events, until it ends or breaks off; _Complete where there is nothing after `after`."""
        path, query = f"/v1/evaluations/{evaluation}/events", {"last_event_id": after} if after else {}
        # Silent streams say that they are there every 15 s.
        timeout = httpx.Timeout(self._http.timeout.connect, read=SILENCE)
        try:
            with self._http.stream("GET", self.url + path, params=query, timeout=timeout) as response:
                if response.status_code == httpx.codes.NO_CONTENT:
                    raise _Complete
                if not response.is_success:
                    response.read()
                    self._read(response)
                for event in _parse_events(response.iter_lines()):
                    yield self._document(documents.Event, event, "GET", path)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None

    def _pages(
        self, kind: type[P], path: str, query: Sequence[tuple[str, str]] = (), page_size: int = MAX_PAGE
    ) -> Iterator[P]:
        """Yield the pages of a list, each asked for with the cursor of the page before."""
        cursor: str | None = None
        while True:
            page = self._get(kind, path, query=[*query, *_query(limit=page_size, cursor=cursor)])
            yield page
            if (cursor := page.next_cursor) is None:
                return

    def _get(self, kind: type[D], path: str, *, query: Sequence[tuple[str, str]] = ()) -> D:
        return self._fetch(kind, "GET", path, query=query)

    def _fetch(
        self,
        kind: type[D],
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        text: str | None = None,
    ) -> D:
        """Return the document that the service answers with."""
        return self._document(kind, self._ask(method, path, body, query=query, text=text), method, path)

    def _document(self, kind: type[D], content: object, method: str, path: str) -> D:
        try:
            return read(kind, content)
        except ValueError as problem:
            raise ServiceUnreachable(
                f"what answers at {self._shown} is no evalsvc of this version ({method} {path}: {problem}); "
                "check --url (EVALSVC_URL), or install the version of the service"
            ) from None

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        text: str | None = None,
    ) -> dict[str, object]:
        arguments: dict[str, Any] = {"params": list(query)} if query else {}
        if body is not None:
            arguments["json"] = body
        if text is not None:
            arguments |= {"content": text.encode(), "headers": {"Content-Type": "application/yaml"}}
        return self._read(self._request(method, path, **arguments))

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, self.url + path, **arguments)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        """Return the error to raise where no answer came; see `service_unreachable`."""
        is_cut_off = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)
        if is_cut_off and self._is_direct and self.url.lower().startswith("http://") and speaks_tls(self.url):
            return ServiceUnreachable(
                f"no evaluation service answers at {self._shown} (it speaks https, not http); "
                f"give https://{self._shown.partition('://')[2]} by --url (EVALSVC_URL)"
            )
        return service_unreachable(error, self.url, self._ca, self._http.timeout.read)

    def _read(self, response: httpx.Response) -> dict[str, object]:
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            self._stranger(response)
        if response.is_success:
            return content
        error = _ERRORS.get(str(content.get("code")))
        if error is None:
            self._stranger(response)
        problem = error(str(content.get("detail")))
        waiting = response.headers.get("retry-after", "")
        if waiting.isascii() and waiting.isdecimal():
            problem.retry_after = min(int(waiting[:9]), MAX_RETRY_AFTER)
        raise problem

    def _stranger(self, response: httpx.Response) -> NoReturn:
        raise ServiceUnreachable(
            f"what answers at {self._shown} is no evalsvc of this version "
            f"({response.status_code} {response.reason_phrase}); check --url (EVALSVC_URL)"
        )


_TUS = {"Tus-Resumable": "1.0.0"}

T = TypeVar("T")


def _persistently(ask: Callable[[], T], patience: float) -> T:
    """Return what `ask` returns, asking again, after ever longer delays, while the error may pass."""
    begun, delay = time.monotonic(), FIRST_DELAY
    while True:
        try:
            return ask()
        except _PASSING:
            if time.monotonic() - begun > patience:
                raise
        # Clients that lost one service at the same moment must not all come back at the same moment.
        time.sleep(delay * (0.5 + random.random()))
        delay = min(2 * delay, LONGEST_DELAY)


class _Complete(Exception):
    """There are no more events."""


def _parse_events(lines: Iterable[str]) -> Iterator[dict[str, object]]:
    """Server-sent events as this service writes them: comments, and one line for each field."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield {"id": number, "event": fields["event"], "data": json.loads(fields["data"])}
        fields = {}


def _trusting(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # what is wrong with the content is one too
        reason = os_reason(error)
        raise InvalidRequest(
            f"EVALSVC_HTTPS_CA {ca} is no file of certificates: {reason}; give the PEM file of the authority that has "
            "signed the service's certificate"
        ) from None


def _query(**given: str | float | Sequence[str] | None) -> list[tuple[str, str]]:
    """The parameters that were given, those with several values repeated."""
    pairs: list[tuple[str, str]] = []
    for name, value in given.items():
        if isinstance(value, (str, int, float)):
            pairs.append((name, str(value).lower() if isinstance(value, bool) else str(value)))
        else:
            pairs += [(name, one) for one in value or ()]
    return pairs


def _part(name: str) -> str:
    return quote(name, safe="")
