from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "open_lm"


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of this folder runs on one thread."""


@pytest.fixture
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def epoch_file() -> Path:
    """A real epoch_N.pt of open_lm, with params.txt and its model JSON one folder above."""
    return GOLDEN / "14_all_defaults_ema_optimizer_t2i_vocab" / "checkpoints" / "epoch_1.pt"
