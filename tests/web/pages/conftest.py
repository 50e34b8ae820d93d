import pytest


@pytest.fixture(autouse=True)
def _whole_pages(many_cases: None) -> None:
    """Every test of this folder asks a service for whole pages, most of them several times."""
