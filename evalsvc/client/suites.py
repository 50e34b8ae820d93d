"""Methods of the client for suites."""

from __future__ import annotations

from collections.abc import Mapping

from evalsvc.client.transport import MethodGroup, query_of, segment
from evalsvc.spec import documents


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
        """Delete a suite that a client put. A suite of the folder or of evalsvc with that name is used again.

        Evaluations that have started keep the deleted suite.
        """
        return self._transport.fetch(documents.DeletedSuite, "DELETE", f"/v1/suites/{segment(suite)}")
