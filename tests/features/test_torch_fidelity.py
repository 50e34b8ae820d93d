"""torch-fidelity's extractor on the weights that evalsvc pulls and reads."""

import json
import os
from pathlib import Path

import pytest
import torch
from nvidia_program import small_tensors
from smoke_images import pixel_digest, read_smoke_images, torch_fidelity_weights
from torch import Tensor

from evalsvc.errors import CheckpointMismatch, NonFinite, UnsafeCheckpoint
from evalsvc.features import load_extractor
from evalsvc.features.torch_fidelity import TorchFidelity

GOLDEN = Path(__file__).parents[1] / "golden" / "fid" / "coco_smoke.json"


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_is_torch_fidelitys_own_and_near_evalsvcs(inception_path: Path, shared: Path, tmp_path: Path) -> None:
    """From weights that torch-fidelity reads itself, bit for bit; the folded network rounds in another way."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = read_smoke_images(shared / "golden" / "coco_smoke" / "images")[0][:4]
    weights = torch_fidelity_weights(inception_path, tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("theirs", ["64", "2048"], feature_extractor_weights_path=str(weights))
    expected = dict(zip((64, 2048), theirs(images), strict=True))
    found = load_extractor("torch-fidelity", inception_path)
    features = found.features(images, "tf1-bilinear")
    assert all(torch.equal(features[tap], expected[tap]) for tap in (64, 2048))
    assert torch.equal(found.features(images, "tf1-bilinear", (64,))[64], expected[64])
    ours = load_extractor("inception", inception_path)
    assert all(
        relative_error(rows, expected[tap]) < 4e-6 for tap, rows in ours.features(images, "tf1-bilinear").items()
    )
    assert found.digest == ours.digest
    assert found.program == {"program": "torch-fidelity 0.4.0"}


def test_finds_what_its_whole_program_found(inception_path: Path, shared: Path) -> None:
    """`calculate_metrics` on the PNG files of the 85 images and of their blurred copies, with its 64 features."""
    from evalsvc.metrics.reference_program import statistics_of
    from evalsvc.metrics.torch_fidelity import TORCH_FIDELITY

    golden = json.loads(GOLDEN.read_text())
    pictures = read_smoke_images(shared / "golden" / "coco_smoke" / "images")
    assert pixel_digest(*pictures) == golden["pixels"], f"Pillow makes other images now; see {GOLDEN.parent}"
    extractor = load_extractor("torch-fidelity", inception_path)
    features = [extractor.features(images, "tf1-bilinear", (64,))[64].numpy() for images in pictures]
    found = TORCH_FIDELITY.distance(*(statistics_of(rows) for rows in features))
    assert found == pytest.approx(golden["torch-fidelity/64"], rel=1e-9)


def test_what_a_file_of_weights_wants_to_run_is_not_run(tmp_path: Path) -> None:
    """torch-fidelity itself unpickles whatever its file of weights holds."""

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"fc.weight": Hostile()}, tmp_path / "weights.pth")
    with pytest.raises(UnsafeCheckpoint):
        load_extractor("torch-fidelity", tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_finite() -> None:
    tensors = small_tensors()
    tensors["Mixed_5b.branch1x1.conv.weight"][0] = torch.nan
    with pytest.raises(NonFinite, match=r"in Mixed_5b\.branch1x1\.conv\.weight; pull them again"):
        TorchFidelity(tensors)


def test_weights_of_another_network() -> None:
    with pytest.raises(CheckpointMismatch, match="another network than FID's Inception"):
        TorchFidelity(small_tensors())
