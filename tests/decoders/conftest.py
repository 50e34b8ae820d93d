from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of this folder runs on one thread."""


@pytest.fixture
def flat_file() -> Path:
    """A flat state dict as it is published, with its configuration beside it."""
    return Path(__file__).parents[1] / "golden" / "movqgan" / "tiny_67M_like" / "movqgan_tiny_67M_like.ckpt"


@pytest.fixture
def lightning_file(flat_file: Path) -> Path:
    """A training checkpoint: raw and averaged weights, and a loss."""
    return flat_file.parents[1] / "micro_lightning_ema" / "step=5000-model.ckpt"
