"""Thousands of requests made from the OpenAPI document: every answer is one that it has, and none is a bug.

What reaches the queue must not harm it either, so everything that was posted is worked off afterwards.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from app_in_process import app_on_port
from generated_requests import REFUSED_BY_MEANING, Found, generate
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

BOTH = ("sqlite", pytest.param("migrated_postgresql", id="postgresql"))

# Schemathesis leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

Service = Callable[..., tuple[str, Any]]


@pytest.fixture(autouse=True)
def _close_connections_here() -> Iterator[None]:
    """Else it closes them in any test that comes later, where that is an error."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an evaluation that waits, a stream would last for a quarter of an hour."""
    monkeypatch.setattr(events, "LIFETIME", 0.05)
    monkeypatch.setattr(events, "HEARTBEAT_EVERY", 0.02)


@pytest.fixture(autouse=True)
def _as_many_wrong_tokens_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "FAILURES", 1_000_000)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue(request.param))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service with something in it."""
    with ExitStack() as stack:

        def start(database_url: str = "") -> tuple[str, Any]:
            url, state = stack.enter_context(
                app_on_port(tmp_path / "data", database_url, rate_limit=0.0, upload_bytes=1_000)
            )
            enter(state.store, submission(), suite())
            evaluate_whole(state.store, metric(1.5), items=[{"index": 0, "acc": 1.0}])
            enter(state.store, submission(50), suite())
            return url, state

        yield start


def work_off(state: Any) -> None:
    """What was posted: none of it may stop the queue."""
    state.coordinator.work()
    with state.store.reading() as session:
        waiting = session.scalars(sa.select(Evaluation.id).where(Evaluation.state.in_(("queued", "running")))).all()
    assert waiting == []


def shown(found: Found) -> str:
    return "\n\n".join(f"{where}\n{what}" for where, what in found.failures.items())


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("database_url", BOTH if LONG else BOTH[:1], indirect=True)
def test_an_open_service(service: Service, database_url: str, weights: Path) -> None:
    url, state = service(database_url)
    found = generate(url, EXAMPLES, weights)
    assert not found.failures, shown(found)
    print(f"{found.cases} cases; {dict(found.statuses)}; {dict(found.checks)}")
    assert found.cases >= CASES
    assert not [status for status in found.statuses if status >= 500]
    assert {200, 201, 202, 404, 405, 409, 422} <= set(found.statuses), "the cases get past the first check"
    work_off(state)


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("database_url", BOTH if LONG else BOTH[1:], indirect=True)
def test_a_service_with_tokens(service: Service, database_url: str, weights: Path) -> None:
    """With a token that may do everything; and Schemathesis' own question whether any route ignores who asks."""
    url, state = service(database_url)
    with state.store.transaction() as session:
        token = create_token(session, "admin", "admin")
    headers = {"Authorization": f"Bearer {token}"}
    found = generate(url, max(1, EXAMPLES // 4), weights, seed=2, headers=headers, stateful=False)
    assert not found.failures, shown(found)
    print(f"{found.cases} cases; {dict(found.statuses)}; {dict(found.checks)}")
    assert found.cases >= CASES
    assert found.checks["ignored_auth"] >= 47
    assert not [status for status in found.statuses if status >= 500]
    work_off(state)


def test_the_exceptions_are_operations() -> None:
    """One that was renamed would be an exception for nothing."""
    document = create_app(Settings()).openapi()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert set(REFUSED_BY_MEANING) <= operations
