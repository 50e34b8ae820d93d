"""Methods of the client for runs, their plans and bases, the state of the service, and suites."""

from __future__ import annotations

from collections.abc import Mapping

from evalsvc.client.transport import MethodGroup, query_of, segment
from evalsvc.spec import documents


class RunMethods(MethodGroup):
    """Methods for runs, their plans and bases, and for the state of the service."""

    def status(self) -> documents.Status:
        """Return the state of the service: missing parts, workers, the queue, running tasks and the last failures."""
        return self._transport.get(documents.Status, "/v1/status")

    def runs(self) -> list[documents.RunSummary]:
        """Return all runs, by name."""
        return [run for page in self._transport.pages(documents.Runs, "/v1/runs") for run in page.runs]

    def run_names(self) -> list[str]:
        """Return the names of all runs, in order."""
        return [run.name for run in self.runs()]

    def run(self, run: str, *, all_checkpoints: bool = True) -> documents.Run:
        """Return a run with its checkpoints, its plan and its base.

        With `all_checkpoints=False` one request returns the 500 checkpoints of the highest steps.
        """
        document = self._transport.get(documents.Run, f"/v1/runs/{segment(run)}")
        if not all_checkpoints or document.checkpoint_count <= len(document.checkpoints):
            return document
        pages = self._transport.pages(documents.Checkpoints, "/v1/checkpoints", query_of(run=run))
        return document.model_copy(
            update={"checkpoints": [checkpoint for page in pages for checkpoint in page.checkpoints]}
        )

    def rename_run(self, run: str, name: str) -> documents.Run:
        """Rename a run, also in expressions over its checkpoints and where the run is the base of other runs."""
        return self._transport.fetch(documents.Run, "PATCH", f"/v1/runs/{segment(run)}", {"name": name})

    def delete_run(self, run: str, *, cancel: bool = False) -> documents.Deleted:
        """Delete a run with all results for good; `cancel` cancels evaluations that are queued or running."""
        query = query_of(confirm=run, cancel=cancel)
        return self._transport.fetch(documents.Deleted, "DELETE", f"/v1/runs/{segment(run)}", query=query)

    def plan(self, run: str) -> documents.Plan:
        """Return the plan of a run: the suites that its checkpoints are evaluated with."""
        return self._transport.get(documents.Plan, f"/v1/runs/{segment(run)}/plan")

    def put_plan(self, run: str, plan: documents.Plan | Mapping[str, object]) -> documents.Plan:
        """Set the plan of a run; see `documents.Plan`."""
        body = plan.model_dump() if isinstance(plan, documents.Plan) else plan
        return self._transport.fetch(documents.Plan, "PUT", f"/v1/runs/{segment(run)}/plan", body)

    def set_base(self, run: str, step: int, *, of: str | None = None, variant: str = "raw") -> documents.Base:
        """Set the base of a run: the checkpoint of this run, or of the run `of`, that checkpoints are compared with."""
        body = {"step": step, "variant": variant, **({} if of is None else {"run": of})}
        return self._transport.fetch(documents.Base, "PUT", f"/v1/runs/{segment(run)}/base", body)


class SuiteMethods(MethodGroup):
    """Methods for suites: those of evalsvc, those in the folder of the service, and those that clients put."""

    def suites(self) -> list[documents.SuiteSummary | documents.BrokenSuite]:
        """Return all suites, by name."""
        return [suite for page in self._transport.pages(documents.Suites, "/v1/suites") for suite in page.suites]

    def suite(self, suite: str) -> documents.Suite:
        """Return a suite with its tasks and all their parameters."""
        return self._transport.get(documents.Suite, f"/v1/suites/{segment(suite)}")

    def put_suite(
        self, suite: str, content: str | Mapping[str, object], *, replace_shipped: bool = False
    ) -> documents.Suite:
        """Store a suite in the service, as YAML text or as a mapping.

        `replace_shipped` allows the name of a suite that comes with evalsvc, and replaces that suite for all clients.
        """
        path, query = f"/v1/suites/{segment(suite)}", query_of(replace_shipped=replace_shipped or None)
        if isinstance(content, str):
            return self._transport.fetch(documents.Suite, "PUT", path, yaml=content, query=query)
        return self._transport.fetch(documents.Suite, "PUT", path, content, query=query)

    def delete_suite(self, suite: str) -> documents.DeletedSuite:
        """Delete a suite that a client put. A suite of the folder or of evalsvc with that name is used again."""
        return self._transport.fetch(documents.DeletedSuite, "DELETE", f"/v1/suites/{segment(suite)}")
