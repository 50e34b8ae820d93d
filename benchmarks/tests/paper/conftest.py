"""Material of the findings, written once a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study.material import miniature_material


@pytest.fixture
def material(tmp_path: Path) -> Any:
    return miniature_material(tmp_path, whole=False)


@pytest.fixture(autouse=True)
def _second_tier(many_cases: None) -> None:
    """Programs of benchmarks are no part of the package."""
