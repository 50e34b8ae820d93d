from typing import Any

import pytest
from app_in_process import App
from dashboard_history import Dashboard

# A test of this folder that asks a service asks for whole pages, most of them several times.


@pytest.fixture
def app(many_cases: None, app: App) -> App:
    return app


@pytest.fixture(scope="module")
def told(many_cases: None, told: App) -> Any:
    return told


@pytest.fixture(scope="module")
def dashboard(many_cases: None, dashboard: Dashboard) -> Dashboard:
    return dashboard
