from collections.abc import Iterator

import pytest
from dashboard_history import Dashboard, dashboard_on_port


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A service on a port of this process, with a small history of everything that the pages show."""
    with dashboard_on_port(tmp_path_factory.mktemp("dashboard") / "data") as dashboard:
        yield dashboard
