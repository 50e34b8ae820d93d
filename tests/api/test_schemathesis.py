"""Thousands of requests made from the OpenAPI document: every answer is one that it has, and none is a bug.

What reaches the queue must not harm it either, so everything that was posted is worked off afterwards.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from app_in_process import app_on_port
from generated_requests import REFUSED_BY_MEANING, generate
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.api.app import create_app
from evalsvc.api.middleware import authentication
from evalsvc.api.routes import events
from evalsvc.config import Settings
from evalsvc.store.tables import Evaluation
from evalsvc.store.tokens import create_token

LONG = bool(os.environ.get("TESTS_LONG"))

EXAMPLES = 100 if LONG else 4
"""Made up for each operation, right and wrong ones, beside what is systematic."""

CASES = 2_000 if LONG else 1_000
"""At least, of an open service and of one with tokens."""


# Schemathesis leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _close_connections_here() -> Iterator[None]:
    """Else it closes them in any test that comes later, where that is an error."""
    yield
    gc.collect()


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(
    ("database", "with_token"),
    [
        pytest.param("sqlite", False, id="open-sqlite"),
        pytest.param("migrated_postgresql", True, id="tokens-postgresql"),
        pytest.param("migrated_postgresql", False, id="open-postgresql", marks=pytest.mark.long),
        pytest.param("sqlite", True, id="tokens-sqlite", marks=pytest.mark.long),
    ],
)
def test_every_answer_is_one_that_the_document_has(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    with_token: bool,
) -> None:
    """With a token that may do everything, also Schemathesis' own question whether any route ignores who asks."""
    monkeypatch.setattr(events, "LIFETIME", 0.05)  # of an evaluation that waits, a stream would last for long
    monkeypatch.setattr(events, "HEARTBEAT_EVERY", 0.02)
    monkeypatch.setattr(authentication, "FAILURES", 1_000_000)
    address = "" if database == "sqlite" else str(request.getfixturevalue(database))
    with app_on_port(tmp_path / "data", address, rate_limit=0.0, upload_bytes=1_000) as (url, state):
        enter(state.store, submission(), suite())
        evaluate_whole(state.store, metric(1.5), items=[{"index": 0, "acc": 1.0}])
        enter(state.store, submission(50), suite())
        if with_token:
            with state.store.transaction() as session:
                headers = {"Authorization": f"Bearer {create_token(session, 'admin', 'admin')}"}
            found = generate(url, max(1, EXAMPLES // 4), weights, seed=2, headers=headers, stateful=False)
            assert found.checks["ignored_auth"] >= 47
        else:
            found = generate(url, EXAMPLES, weights)
            assert {200, 201, 202, 404, 405, 409, 422} <= set(found.statuses), "the cases get past the first check"
        assert not found.failures, "\n\n".join(f"{where}\n{what}" for where, what in found.failures.items())
        assert found.cases >= CASES, f"{found.cases} cases; {dict(found.statuses)}; {dict(found.checks)}"
        assert not [status for status in found.statuses if status >= 500]
        state.coordinator.work()  # what was posted: none of it may stop the queue
        with state.store.reading() as session:
            waiting = session.scalars(sa.select(Evaluation.id).where(Evaluation.state.in_(("queued", "running")))).all()
    assert waiting == []


def test_the_exceptions_are_operations() -> None:
    """One that was renamed would be an exception for nothing."""
    document = create_app(Settings()).openapi()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert set(REFUSED_BY_MEANING) <= operations
