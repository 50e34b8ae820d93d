from pathlib import Path

import numpy as np
import pytest

FEATURES = Path(__file__).parents[1] / "golden" / "fid" / "coco_smoke_features.npz"


@pytest.fixture(scope="session")
def smoke_features() -> dict[str, np.ndarray]:
    """Inception's features of 85 photographs and of blurred copies, float32 [85, tap] by `images_2048` and so on;
    and `clean_fid_2048` and `torch_fidelity_2048`, the distances of the blurred ones that they find."""
    with np.load(FEATURES) as kept:
        return {name: kept[name].astype(np.float32) for name in kept.files}
