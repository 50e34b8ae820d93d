from pathlib import Path

import pytest
from loss_task import LAYOUT

from evalsvc.checkpoints.reference import CheckpointRef


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of this folder runs on one thread."""


@pytest.fixture
def checkpoint(open_lm_case: Path) -> CheckpointRef:
    return CheckpointRef(str(open_lm_case / "checkpoints" / "epoch_1.pt"), layout=LAYOUT, label="run-a step 2")
