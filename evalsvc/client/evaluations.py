"""Methods of the client that start, follow and list evaluations, and read and prune their artifacts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx2

from evalsvc.client.transport import MAX_PAGE, MethodGroup, query_of, segment
from evalsvc.errors import DatabaseUnusable, DeadlineExceeded, RateLimited, ServiceUnreachable
from evalsvc.spec import documents
from evalsvc.spec.documents.fields import OVER

SILENCE = 60.0
"""Seconds without a byte after which a stream is given up and requested again; the service writes a comment every 15
seconds."""

RECONNECT_DELAY = 2.0
"""Seconds until a stream that ended early is requested again."""


@dataclass(frozen=True)
class ArtifactContent:
    """The content of an artifact."""

    content: bytes
    media_type: str
    sha256: str
    """SHA-256 of the content in hexadecimal digits."""

    def _repr_png_(self) -> bytes | None:
        """Return the picture that a notebook shows."""
        return self.content if self.media_type == "image/png" else None


def _parse_events(lines: Iterable[str]) -> Iterator[dict[str, object]]:
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


class EvaluationMethods(MethodGroup):
    """Methods that start, follow and list evaluations. An evaluation is one suite on one checkpoint."""

    def evaluate(self, checkpoint: int, suite: str, priority: int = 0) -> documents.Evaluation:
        """Evaluate a posted checkpoint with a suite."""
        body = {"checkpoint": checkpoint, "suite": suite, "priority": priority}
        return self._transport.fetch(documents.Evaluation, "POST", "/v1/evaluations", body)

    def evaluation(self, evaluation: int) -> documents.Evaluation:
        """Return an evaluation with its state, its progress and the results of its tasks."""
        return self._transport.get(documents.Evaluation, f"/v1/evaluations/{evaluation}")

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
        """Yield the evaluations of steps from `first` to `last`, the newest first, in pages of `page_size`."""
        query = query_of(run=run, suite=suite, state=state, to=last, **{"from": first})
        for page in self._transport.pages(documents.Evaluations, "/v1/evaluations", query, page_size):
            yield from page.evaluations

    def evaluated_suite(self, evaluation: int) -> documents.EvaluatedSuite:
        """Return the suite as it was when the evaluation started, even if the suite was replaced or deleted since."""
        return self._transport.get(documents.EvaluatedSuite, f"/v1/evaluations/{evaluation}/suite")

    def interim(self, evaluation: int) -> dict[str, documents.Interim]:
        """Return the results of the last look of each running task, by task; the history does not have them."""
        return {task.name: task.interim for task in self.evaluation(evaluation).tasks if task.interim is not None}

    def wait(
        self,
        evaluation: int,
        *,
        every: float = 1.0,
        timeout: float | None = None,
        report: Callable[[documents.Evaluation], None] | None = None,
    ) -> documents.Evaluation:
        """Ask for an evaluation `every` so many seconds until it has ended, and call `report` with each answer.

        Raises:
            DeadlineExceeded: the evaluation has not ended within `timeout` seconds.
        """
        begun = time.monotonic()
        while True:
            current = self.evaluation(evaluation)
            if report is not None:
                report(current)
            if current.state in OVER:
                return current
            if timeout is not None and time.monotonic() - begun > timeout:
                raise DeadlineExceeded(f"evaluation {evaluation} is {current.state} after {timeout:g} s; it goes on")
            time.sleep(every)

    def events(self, evaluation: int, *, after: int = 0, patience: float = 60.0) -> Iterator[documents.Event]:
        """Yield the events of an evaluation as they happen; the last event is `end`.

        After a lost connection or a restart of the service, the client asks for the events after the last one that it
        read. `after` is the id of the last event that the caller has.

        Raises:
            ServiceUnreachable: the service did not answer for `patience` seconds.
        """
        path, last_heard = f"/v1/evaluations/{evaluation}/events", time.monotonic()
        while True:
            try:
                query = query_of(last_event_id=after or None)
                with self._transport.stream(path, query, SILENCE) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return  # the service has no more events
                    if not response.is_success:
                        response.read()
                        self._transport.read(response)
                    for fields in _parse_events(response.iter_lines()):
                        event = self._transport.parse(documents.Event, fields, "GET", path)
                        last_heard = time.monotonic()
                        after = event.id or after
                        yield event
                        if event.event == "end":
                            return
            except (ServiceUnreachable, DatabaseUnusable, RateLimited):
                if time.monotonic() - last_heard > patience:
                    raise
            time.sleep(min(RECONNECT_DELAY, patience))

    def cancel(self, evaluation: int) -> documents.Evaluation:
        """Cancel a queued or running evaluation; finished shards keep their results."""
        return self._transport.fetch(documents.Evaluation, "POST", f"/v1/evaluations/{evaluation}/cancel")

    def retry(self, evaluation: int) -> documents.Evaluation:
        """Queue failed and cancelled shards again; finished shards keep their results."""
        return self._transport.fetch(documents.Evaluation, "POST", f"/v1/evaluations/{evaluation}/retry")

    def items(
        self, evaluation: int, *, task: str | None = None, benchmark: str | None = None, columns: Sequence[str] = ()
    ) -> documents.Items:
        """Return the results per item of the tasks that have succeeded; `columns` chooses keys of the items.

        `pandas.DataFrame(client.items(evaluation).items[task])` is a table of the items of a task.
        """
        query = query_of(task=task, benchmark=benchmark, columns=columns)
        return self._transport.get(documents.Items, f"/v1/evaluations/{evaluation}/items", query)


class ArtifactMethods(MethodGroup):
    """Methods for artifacts: grids, tables and other files that evaluations write for people to look at."""

    def artifacts(self, run: str, kind: str | None = None, step: int | None = None) -> list[documents.Artifact]:
        """Return the artifacts of a run, by step; see `artifact_content` for the content."""
        return self._listed(f"/v1/runs/{segment(run)}/artifacts", query_of(kind=kind, step=step))

    def evaluation_artifacts(self, evaluation: int, kind: str | None = None) -> list[documents.Artifact]:
        """Return the artifacts of an evaluation, in the order of its tasks."""
        return self._listed(f"/v1/evaluations/{evaluation}/artifacts", query_of(kind=kind))

    def artifact_content(self, artifact: int, form: str | None = None) -> ArtifactContent:
        """Return the content of an artifact, checked against its digest; `form` renders a report as `text` or `csv`.

        Raises:
            UnknownName: there is no such artifact, or its file is lost.
            InvalidRequest: artifacts of this kind cannot be rendered in this form.
            ArtifactPruned: the content was removed by the retention rule of the run.
            ServiceUnreachable: the content does not match the digest.
        """
        path = f"/v1/artifacts/{artifact}"
        response = self._transport.request("GET", path, query=query_of(form=form))
        if not response.is_success:
            self._transport.read(response)
        digest = response.headers.get("ETag", "").strip('"')
        if hashlib.sha256(response.content).hexdigest() != digest:
            raise ServiceUnreachable(
                f"{path} at {self._transport.shown_url} came damaged, or what answers is no evalsvc; try again"
            )
        return ArtifactContent(response.content, response.headers.get("Content-Type", ""), digest)

    def retention(self, run: str) -> documents.Retention:
        """Return the retention rule of a run: which artifacts are kept."""
        return self._transport.get(documents.Retention, f"/v1/runs/{segment(run)}/retention")

    def put_retention(self, run: str, keep: Mapping[str, object] | None) -> documents.Retention:
        """Set the retention rule of a run by `last`, `every`, `days` and `best`; None restores the service's rule."""
        body = {"keep": None if keep is None else dict(keep)}
        return self._transport.fetch(documents.Retention, "PUT", f"/v1/runs/{segment(run)}/retention", body)

    def prune(self, run: str | None = None, *, dry_run: bool = False) -> documents.Pruned:
        """Prune artifacts of all runs, or of one run, by the retention rules; `dry_run` only counts them."""
        return self._transport.fetch(documents.Pruned, "POST", "/v1/prune", query=query_of(run=run, dry_run=dry_run))

    def _listed(self, path: str, query: list[tuple[str, str]]) -> list[documents.Artifact]:
        pages = self._transport.pages(documents.Artifacts, path, query)
        return [artifact for page in pages for artifact in page.artifacts]
