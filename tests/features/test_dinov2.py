"""DINOv2 against the library's own processor and model, and its authors' embeddings of positions.

The library is imported where it is used: it takes seconds, in each process that collects tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from smoke_images import read_smoke_images
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import InvalidModelConfig
from evalsvc.features.vision_folder import resize_pil

if TYPE_CHECKING:
    from transformers import Dinov2Model

    from evalsvc.features.dinov2 import DINOv2


def read(folder: Path) -> DINOv2:
    from evalsvc.features.dinov2 import DINOv2

    return DINOv2.from_path(folder)


def resample(positions: Tensor, side: int) -> Tensor:
    from evalsvc.features.dinov2 import resample_positions

    return resample_positions(positions, side)


@pytest.fixture(scope="module")
def theirs(dinov2_folder: Path) -> Dinov2Model:
    from transformers import Dinov2Model

    return Dinov2Model.from_pretrained(dinov2_folder, local_files_only=True).eval()


@pytest.fixture(scope="module")
def images(shared: Path) -> Tensor:
    return read_smoke_images(shared / "golden" / "coco_smoke" / "images")[0][:4]


@pytest.fixture(scope="module")
def theirs_with_the_authors_positions(theirs: Dinov2Model) -> Dinov2Model:
    positions = theirs.embeddings.position_embeddings
    theirs.embeddings.position_embeddings = torch.nn.Parameter(resample(positions.data, 2))
    return theirs


@torch.inference_mode()
def test_middle_of_a_larger_image(
    dinov2_folder: Path, theirs_with_the_authors_positions: Dinov2Model, images: Tensor
) -> None:
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = kind.from_pretrained(dinov2_folder, local_files_only=True)
    inputs = processor(images=list(images), return_tensors="pt")
    expected = theirs_with_the_authors_positions(**inputs).pooler_output
    found = read(dinov2_folder).features(images, "pil-bicubic-crop")[32]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(expected.unique(dim=0)) == len(images)


@torch.inference_mode()
def test_whole_image_as_in_the_metrics_paper(
    dinov2_folder: Path, theirs_with_the_authors_positions: Dinov2Model, images: Tensor
) -> None:
    """Its code: torchvision's Resize of the PIL image to a square, ToTensor, Normalize."""
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize((28, 28), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = theirs_with_the_authors_positions(torch.stack([prepare(image) for image in images])).pooler_output
    extractor = read(dinov2_folder)
    torch.testing.assert_close(extractor.features(images, "pil-bicubic-square")[32], expected, rtol=1e-5, atol=1e-5)


class TestPositions:
    def test_of_the_size_of_training(self) -> None:
        positions = torch.randn(1, 17, 3)
        assert resample(positions, 4) is positions

    def test_are_not_the_librarys(self) -> None:
        """The authors' scale is 0.1 of a patch larger; the library's port differs there, and so do its features."""
        ramp = torch.arange(37.0).repeat(37, 1)
        positions = torch.cat([torch.zeros(1), ramp.flatten()])[None, :, None]
        found = resample(positions, 16)[0, 1:, 0].view(16, 16)
        library = functional.interpolate(ramp[None, None], size=(16, 16), mode="bicubic")[0, 0]
        middle = slice(2, -2)  # where the filter does not meet the border, a ramp stays one
        expected = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
        # Without antialiasing the cubic is not exact on a ramp: it is so to 0.05.
        torch.testing.assert_close(found[0, middle], expected[middle], rtol=0, atol=0.05)
        assert (library[0, middle] - expected[middle]).abs().max() > 0.1


def test_crop_that_is_no_whole_patches(dinov2_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dinov2_folder, tmp_path / "copy")
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"crop_size": {"height": 30, "width": 30}}))
    with pytest.raises(InvalidModelConfig, match="crops 30 pixels, no multiple of the patches' 14"):
        read(copy)


def test_resize_keeps_what_fits(images: Tensor) -> None:
    assert torch.equal(resize_pil(images, (256, 256)), images)
