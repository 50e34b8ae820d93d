from pathlib import Path

import pytest
import torch
from tiny_vision import write_clip, write_dinov2
from torch import Tensor

from evalsvc.miniature import ROOT


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def digits_file() -> Path:
    return ROOT / "classifier.safetensors"


@pytest.fixture
def noise() -> Tensor:
    return torch.randint(0, 256, (5, 3, 40, 50), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
