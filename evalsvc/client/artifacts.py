"""Methods of the client that list, read and prune artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from evalsvc.client.transport import MethodGroup, query_of, segment
from evalsvc.errors import ServiceUnreachable
from evalsvc.spec import documents


@dataclass(frozen=True)
class ArtifactContent:
    """The content of an artifact."""

    content: bytes
    media_type: str
    sha256: str
    """SHA-256 of the content in hexadecimal digits."""


class ArtifactMethods(MethodGroup):
    """Methods for artifacts: grids, tables and other files that evaluations write for people to look at."""

    def artifacts(self, run: str, kind: str | None = None, step: int | None = None) -> list[documents.Artifact]:
        """Return the artifacts of a run, by step; see `artifact_content` for the content."""
        return self._listed(f"/v1/runs/{segment(run)}/artifacts", query_of(kind=kind, step=step))

    def evaluation_artifacts(self, evaluation: int, kind: str | None = None) -> list[documents.Artifact]:
        """Return the artifacts of an evaluation, in the order of its tasks."""
        return self._listed(f"/v1/evaluations/{evaluation}/artifacts", query_of(kind=kind))

    def artifact_content(self, artifact: int, form: str | None = None) -> ArtifactContent:
        """Return the content of an artifact, checked against its digest.

        Args:
            artifact: the id.
            form: the form to render a report in: `text` or `csv`. None returns the content as it is stored.

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
