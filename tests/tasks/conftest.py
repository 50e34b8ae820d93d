from pathlib import Path

import pytest
from loss_task import LAYOUT

from evalsvc.checkpoints.reference import CheckpointRef


@pytest.fixture(autouse=True)
def data_dir(one_thread: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty data folder for each test. More threads than one only get in the way of small tensors."""
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def checkpoint(open_lm_case: Path) -> CheckpointRef:
    return CheckpointRef(str(open_lm_case / "checkpoints" / "epoch_1.pt"), layout=LAYOUT, label="run-a step 2")
