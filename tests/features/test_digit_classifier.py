from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evalsvc.errors import CheckpointMismatch
from evalsvc.features.digit_classifier import DigitClassifier, features, kernel


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Ten points, each of which speaks for one class."""
    generator = torch.Generator().manual_seed(0)
    return {
        "points": torch.rand(10, 64, generator=generator),
        "coefficients": torch.eye(10),
        "gamma": torch.tensor(0.5),
    }


def as_images(points: Tensor) -> Tensor:  # [n, 64] in [0, 1] → uint8 [n, 3, 32, 32]
    grey = (points * 255).round().to(torch.uint8).view(-1, 1, 8, 8)
    return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def test_the_nearest_point_decides(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "classifier.safetensors")
    classifier = DigitClassifier.from_path(tmp_path / "classifier.safetensors")
    order = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    assert classifier.predict(as_images(tensors["points"][order])).equal(order)


@pytest.mark.parametrize("images_on", ["cpu", "meta"])
def test_images_of_any_device_are_read_where_the_classifier_is(
    images_on: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    """On a GPU the points once stayed on the CPU, and every image of the miniature suite failed."""
    save_file(tensors, tmp_path / "classifier.safetensors")
    classifier = DigitClassifier.from_path(tmp_path / "classifier.safetensors", device="meta")
    images = as_images(tensors["points"]).to(images_on)
    assert classifier.extract(images, "mean-8x8", [10])[10].device.type == "meta"


def test_features_are_means_over_channels_and_squares() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = features(images).view(2, 8, 8)
    expected = images[1, :, 2:4, 12:16].double().mean() / 255
    assert found[1, 1, 3] == pytest.approx(float(expected), abs=1e-6)


def test_kernel_is_the_gaussian() -> None:
    left, right = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert torch.allclose(kernel(left, right, torch.tensor(0.1)), torch.tensor([[1.0, 0.0820850]]))


def test_the_digest_is_that_of_the_weights(tensors: dict[str, Tensor]) -> None:
    classifier = DigitClassifier(**tensors)
    other = DigitClassifier(**{**tensors, "gamma": torch.tensor(0.25)})
    assert classifier.digest == DigitClassifier(**tensors).digest
    assert classifier.digest != other.digest


def test_another_file_is_refused_and_not_quoted(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    save_file({**tensors, "points": tensors["points"][:, :32].contiguous()}, path)
    with pytest.raises(CheckpointMismatch, match="no classifier of digits"):
        DigitClassifier.from_path(path)
    save_file({"hunter2 is my (secret)": torch.zeros(1)}, path)
    with pytest.raises(CheckpointMismatch, match="it holds something that is no name") as caught:
        DigitClassifier.from_path(path)
    assert "hunter2" not in caught.value.message
