"""What pages, panels and commands read of a service, from anywhere: over HTTP, or in the process of the service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from evalsvc.client.evaluations import ArtifactContent
from evalsvc.errors import UnknownName
from evalsvc.spec import documents
from evalsvc.spec.names import NAMED, checkpoint_name, parse_checkpoint


class ServiceReader(Protocol):
    """The reading methods of `Client`, which documents them. `api.own_reader` has them for the service's own pages."""

    def artifact_content(self, artifact: int, form: str | None = None) -> ArtifactContent: ...
    def artifacts(self, run: str, kind: str | None = None, step: int | None = None) -> list[documents.Artifact]: ...
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
    ) -> documents.Buckets: ...
    def checkpoint(self, checkpoint: int) -> documents.Checkpoint: ...
    def checkpoints(
        self, run: str, *, variant: str | None = None, first: int | None = None, last: int | None = None
    ) -> Iterable[documents.ListedCheckpoint]: ...
    def compare(
        self,
        a: str,
        b: str,
        metrics: Sequence[str] = (),
        *,
        level: float = 0.95,
        family: str = "none",
        across: Sequence[str] = (),
        flipped: int = 0,
    ) -> documents.Comparison: ...
    def compare_runs(
        self, a: str, b: str, metrics: Sequence[str] = (), *, across: Sequence[str] = ()
    ) -> documents.RunComparison: ...
    def completions(self, run: str) -> list[documents.StepCompletions]: ...
    def evaluated_suite(self, evaluation: int) -> documents.EvaluatedSuite: ...
    def evaluation(self, evaluation: int) -> documents.Evaluation: ...
    def evaluation_artifacts(self, evaluation: int, kind: str | None = None) -> list[documents.Artifact]: ...
    def evaluations(
        self, run: str, *, first: int | None = None, last: int | None = None
    ) -> Iterable[documents.ListedEvaluation]: ...
    def headline(self, run: str) -> documents.Headline: ...
    def headlines(
        self,
        runs: Sequence[str],
        metrics: Sequence[str] = (),
        *,
        points: int | None = None,
        last: int | None = None,
        compare: float = 0.0,
        strip: bool = False,
    ) -> list[documents.RunHeadlines]: ...
    def named(self, name: str) -> documents.NamedStep: ...
    def protocol(self, protocol: str) -> dict[str, object]: ...
    def protocols(self, *, only: str | None = None) -> Iterable[documents.ListedProtocol]: ...
    def run(self, run: str, *, all_checkpoints: bool = True) -> documents.Run: ...
    def run_names(self) -> list[str]: ...
    def runs(self) -> list[documents.RunSummary]: ...
    def status(self) -> documents.Status: ...
    def summary(
        self, run: str, names: Sequence[str] = (), *, variant: str | None = None
    ) -> list[documents.SummarySeries]: ...


def locate(source: ServiceReader, name: str) -> tuple[str, int, str]:
    """Return run, step and variant of RUN@STEP[:VARIANT], or of a name such as RUN@best."""
    if NAMED.fullmatch(name) is None:
        return parse_checkpoint(name)
    named = source.named(name)
    return named.run, named.step, named.variant


def find_checkpoint(source: ServiceReader, name: str) -> documents.Checkpoint:
    """Return the checkpoint that RUN@STEP[:VARIANT], a name such as RUN@best, or an id names."""
    if name.isdecimal():
        return source.checkpoint(int(name))
    run, step, variant = locate(source, name)
    for checkpoint in source.checkpoints(run, variant=variant, first=step, last=step):
        return source.checkpoint(checkpoint.id)
    posted = [checkpoint_name(run, each.step, each.variant) for each in source.run(run).checkpoints]
    raise UnknownName.among("checkpoint", checkpoint_name(run, step, variant), posted)
