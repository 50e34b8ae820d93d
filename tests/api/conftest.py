from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from app_in_process import App, app_in_process

from evalsvc.api.middleware import authentication


@pytest.fixture
def fresh_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was created or revoked is known at once."""
    monkeypatch.setattr(authentication, "LIFETIME", -1.0)


@pytest.fixture
def app(tmp_path: Path, fresh_tokens: None) -> Iterator[App]:
    """The application on an empty database; checkpoints may lie in the test's own folder only."""
    with app_in_process(tmp_path / "data", roots=str(tmp_path)) as app:
        yield app


@pytest.fixture
def start_app(tmp_path: Path, fresh_tokens: None) -> Iterator[Callable[..., App]]:
    """Starts the application on an empty database, with settings of the test's own."""
    numbers = count()
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(app_in_process(tmp_path / f"started-{next(numbers)}", **given))
