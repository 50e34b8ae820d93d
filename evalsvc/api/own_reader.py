"""What the dashboard's pages read, by the functions of the routes, in the thread and the transaction of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.api.routes.artifacts import artifact_content, kept_artifact
from evalsvc.api.routes.compare import find_named, read_comparison, read_curves, tag_of, with_noise, with_sides
from evalsvc.api.routes.evaluations import evaluated_suite_view, read_evaluation
from evalsvc.api.routes.health import read_status
from evalsvc.api.routes.history import headline_of, headlines_of
from evalsvc.api.routes.history import tag_of as history_tag_of
from evalsvc.api.schemas import CompareQuery, CurvesQuery, HistoryQuery, SummaryQuery, check_name
from evalsvc.api.state import State
from evalsvc.client.evaluations import ArtifactContent
from evalsvc.errors import InternalError, InvalidRequest
from evalsvc.spec import documents
from evalsvc.spec.documents.document import Document
from evalsvc.store.artifacts import evaluation_artifacts, run_artifacts
from evalsvc.store.history.buckets import read_buckets
from evalsvc.store.history.headlines import Question
from evalsvc.store.history.reading import read_summary
from evalsvc.store.history.series import Window, listed_protocols, read_protocol
from evalsvc.store.lookup import find_checkpoint, find_evaluation, find_run
from evalsvc.store.pages import MAX_LIMIT, Filters, PageRequest
from evalsvc.store.results import read_completions
from evalsvc.store.runs.listing import run_view, runs_view
from evalsvc.store.tables import Run
from evalsvc.store.views import checkpoint_view, checkpoints_view, evaluations_view

D = TypeVar("D", bound=Document)
P = TypeVar("P", documents.Artifacts, documents.Checkpoints, documents.Evaluations, documents.Runs)


@dataclass(frozen=True)
class OwnReader:
    """Reader of the service's own store; see `client.reader.ServiceReader`."""

    state: State
    session: Session

    def artifact_content(self, artifact: int, form: str | None = None) -> ArtifactContent:
        if form is not None:
            raise InternalError("a page reads artifacts as they are stored, and links to other forms")
        row = kept_artifact(self.session, artifact)
        content = artifact_content(row, self.state.settings.artifacts_path)
        return ArtifactContent(content, row.media_type, row.sha256)

    def artifacts(self, run: str, kind: str | None = None, step: int | None = None) -> list[documents.Artifact]:
        row = self._run(run)
        pages = _pages(lambda page: run_artifacts(self.session, row, kind, step, page))
        return [artifact for page in pages for artifact in page.artifacts]

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
        given = {"metric": names, "variant": variant, "x": x, "from": first, "to": last, "points": points}
        query = HistoryQuery.model_validate(given)
        window = Window(query.x, query.first, query.last)
        name = self._run(run).name
        return self._kept(
            name,
            history_tag_of(self.session, name, query),
            lambda: read_buckets(self.session, name, query.metric, query.variant, window, points),
        )

    def checkpoint(self, checkpoint: int) -> documents.Checkpoint:
        return checkpoint_view(self.session, find_checkpoint(self.session, checkpoint))

    def checkpoints(
        self, run: str, *, variant: str | None = None, first: int | None = None, last: int | None = None
    ) -> Iterator[documents.ListedCheckpoint]:
        filters = Filters(run, variant, None, None, first, last)
        for page in _pages(lambda page: checkpoints_view(self.session, filters, page)):
            yield from page.checkpoints

    def compare(self, a: str, b: str, metrics: Sequence[str] = (), **options: object) -> documents.Comparison:
        asked = CompareQuery.model_validate({"a": a, "b": b, "metric": metrics, **options})
        query = with_sides(self.session, self.state, asked)
        folder = self.state.settings.items_path
        return self._kept(*tag_of(self.session, query), lambda: read_comparison(self.session, folder, query))

    def compare_runs(self, a: str, b: str, metrics: Sequence[str] = (), **options: object) -> documents.RunComparison:
        query = CurvesQuery.model_validate({"a": a, "b": b, "metric": metrics, **options})
        folder = self.state.settings.items_path
        return self._kept(*tag_of(self.session, query), lambda: read_curves(self.session, folder, query))

    def completions(self, run: str) -> list[documents.StepCompletions]:
        return read_completions(self.session, self.state.settings.items_path, self._run(run)).steps

    def evaluated_suite(self, evaluation: int) -> documents.EvaluatedSuite:
        return evaluated_suite_view(self.session, self.state.settings, evaluation)

    def evaluation(self, evaluation: int) -> documents.Evaluation:
        return read_evaluation(self.state, self.session, evaluation)

    def evaluation_artifacts(self, evaluation: int, kind: str | None = None) -> list[documents.Artifact]:
        find_evaluation(self.session, evaluation)
        pages = _pages(lambda page: evaluation_artifacts(self.session, evaluation, kind, page))
        return [artifact for page in pages for artifact in page.artifacts]

    def evaluations(
        self, run: str, *, first: int | None = None, last: int | None = None
    ) -> Iterator[documents.ListedEvaluation]:
        filters = Filters(run, None, None, None, first, last)
        for page in _pages(lambda page: evaluations_view(self.session, filters, page)):
            yield from page.evaluations

    def headline(self, run: str) -> documents.Headline:
        return headline_of(self.session, self.state, self._run(run).name)

    def headlines(
        self,
        runs: Sequence[str],
        metrics: Sequence[str] = (),
        *,
        points: int | None = None,
        last: int | None = None,
        compare: float = 0.0,
        strip: bool = False,
    ) -> list[documents.RunHeadlines]:
        question, cache = Question(tuple(metrics), points, last, strip), self.state.documents
        return headlines_of(self.session, self.state, runs, question, compare, cache, lambda headlines: headlines)

    def named(self, name: str) -> documents.NamedStep:
        return with_noise(self.session, self.state, find_named(self.session, self.state, name))

    def protocol(self, protocol: str) -> dict[str, object]:
        return dict(read_protocol(self.session, _checked("protocol_id", protocol)))

    def protocols(self, *, only: str | None = None) -> list[documents.ListedProtocol]:
        given = None if only is None else _checked("protocol_id", only)
        return listed_protocols(self.session, None, (), PageRequest(MAX_LIMIT), given).protocols

    def run(self, run: str, *, all_checkpoints: bool = True) -> documents.Run:
        document = run_view(self.session, self._run(run))
        if not all_checkpoints or document.checkpoint_count <= len(document.checkpoints):
            return document
        return document.model_copy(update={"checkpoints": list(self.checkpoints(run))})

    def run_names(self) -> list[str]:
        return list(self.session.scalars(select(Run.name).order_by(Run.name)))

    def runs(self) -> list[documents.RunSummary]:
        pages = _pages(lambda page: runs_view(self.session, page, self.state.answers.get))
        return [run for page in pages for run in page.runs]

    def status(self) -> documents.Status:
        return read_status(self.state)

    def summary(
        self, run: str, names: Sequence[str] = (), *, variant: str | None = None
    ) -> list[documents.SummarySeries]:
        query = SummaryQuery(metric=list(names), variant=variant)
        name = self._run(run).name
        tag = history_tag_of(self.session, name, query)
        return self._kept(name, tag, lambda: read_summary(self.session, name, names, variant)).series

    def _run(self, name: str) -> Run:
        return find_run(self.session, _checked("run", name))

    def _kept(self, run: str, tag: str, make: Callable[[], D]) -> D:
        document: D = self.state.documents.get(run, tag, make)
        return document


def _checked(parameter: str, name: str) -> str:
    """Return a name of a path, which no route admits in another form: PostgreSQL accepts no NUL in a query."""
    try:
        return check_name(name)
    except ValueError as error:
        raise InvalidRequest(f"{parameter}: {error}") from None


def _pages(read: Callable[[PageRequest], P]) -> Iterator[P]:
    page = read(PageRequest(MAX_LIMIT))
    yield page
    while page.next_cursor is not None:
        page = read(PageRequest(MAX_LIMIT, page.next_cursor))
        yield page
