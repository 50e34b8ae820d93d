from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from app_in_process import App, app_in_process


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """The application on an empty database; checkpoints may lie in the test's own folder only."""
    with app_in_process(tmp_path / "data", roots=str(tmp_path)) as app:
        yield app


@pytest.fixture
def start_app(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Starts the application on an empty database, with settings of the test's own."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(app_in_process(tmp_path / "started", **settings))
