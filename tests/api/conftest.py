from collections.abc import Iterator
from pathlib import Path

import pytest
from app_in_process import App, app_in_process


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """The application on an empty database; checkpoints may lie in the test's own folder only."""
    with app_in_process(tmp_path / "data", roots=str(tmp_path)) as app:
        yield app
