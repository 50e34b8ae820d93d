"""The Python client of the service, for training jobs, notebooks and evalsvc's commands. Needs httpx2 and pydantic."""

from __future__ import annotations

import httpx2

from evalsvc.client.checkpoints import CheckpointMethods
from evalsvc.client.evaluations import ArtifactContent as ArtifactContent
from evalsvc.client.evaluations import ArtifactMethods, EvaluationMethods
from evalsvc.client.history import ComparisonMethods, HistoryMethods
from evalsvc.client.runs import RunMethods, SuiteMethods
from evalsvc.client.transport import MAX_PAGE as MAX_PAGE
from evalsvc.client.transport import Transport
from evalsvc.spec.documents.fields import OVER as OVER

DEFAULT_URL = "http://127.0.0.1:8321"


class Client(
    CheckpointMethods, EvaluationMethods, RunMethods, HistoryMethods, ComparisonMethods, SuiteMethods, ArtifactMethods
):
    """A connection to a running service. Methods return documents, and raise the service's errors as their own classes.

    Raises (all methods):
        ServiceUnreachable: nothing answers at the address, or the server there is no evaluation service.
        Unauthorized, Forbidden: the service asks for a token, or for a token of a larger scope.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout: float = 30.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Prepare a connection; the first request opens it. Use the client as a context manager, or call `close`.

        `token` is for a service that asks for one. `ca` is the PEM file of the authority that signed the service's
        certificate, where the system does not know that authority. `timeout` is in seconds. `transport` replaces the
        network, for tests.

        Raises:
            InvalidRequest: `ca` is no file of certificates.
        """
        self._transport = Transport(url, token, ca, timeout, transport)
        self.url = self._transport.url

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
