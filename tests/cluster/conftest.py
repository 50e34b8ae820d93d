from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Laboratory
from machines import TTL, Machines


@pytest.fixture
def machines(tmp_path: Path, child_process: None) -> Iterator[Machines]:
    machines = Machines(tmp_path / "machines", EVALSVC_WORKER_TTL=str(TTL), EVALSVC_GRACE="20")
    yield machines
    machines.stop()


@pytest.fixture
def laboratory(tmp_path: Path) -> Iterator[Laboratory]:
    laboratory = Laboratory(tmp_path)
    yield laboratory
    laboratory.close()
