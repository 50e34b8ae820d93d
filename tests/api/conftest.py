from collections.abc import Iterator
from pathlib import Path

import pytest
from app_in_process import App, app_in_process


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """The application on an empty database; checkpoints may lie in the test's own folder only."""
    with app_in_process(tmp_path / "data", roots=str(tmp_path)) as app:
        yield app


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file to post; no request looks into it."""
    path = tmp_path / "epoch_1.pt"
    path.write_bytes(b"weights")
    return path
