from collections.abc import Iterator
from pathlib import Path

import pytest
from app_in_process import App, app_in_process
from dashboard_history import Dashboard, dashboard_on_port
from told_run import fill

from evalsvc.client import Client


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data", roots=str(tmp_path)) as app:
        yield app


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    with Client("http://evalsvc", transport=app.transport) as client:
        yield client


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The application with the runs of `told_run`."""
    with app_in_process(tmp_path_factory.mktemp("told") / "data") as app:
        fill(app)
        yield app


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A service on a port of this process, with a small history of everything that the pages show."""
    with dashboard_on_port(tmp_path_factory.mktemp("dashboard") / "data") as dashboard:
        yield dashboard
