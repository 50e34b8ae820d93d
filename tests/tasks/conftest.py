from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty data folder for each test. More threads than one only get in the way of small tensors."""
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"
