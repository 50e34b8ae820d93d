"""PNG files as other programs take them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from square_features import SquareFeatures

from evalsvc.errors import InvalidRequest
from evalsvc.verify.image_folders import image_folders


def noise(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_files_are_numbered_and_hold_every_pixel() -> None:
    images = noise(12)
    with image_folders(32) as folders:
        assert folders.write(images, images[:2]) == (12, 2)
        assert [file.name for file in sorted(folders.sampled.iterdir())] == [f"{n:06d}.png" for n in range(12)]
        with Image.open(folders.sampled / "000011.png") as file:
            assert np.array_equal(np.asarray(file).transpose(2, 0, 1), images[11].numpy())
    assert not folders.path.exists()


def test_features_come_in_the_order_of_the_images() -> None:
    images, extractor = noise(40), SquareFeatures((64,))
    with image_folders(32) as folders:
        folders.write(images, images)
        found = folders.features(folders.real, extractor, "pil-bicubic", [64])[64]  # type: ignore[arg-type]
    assert np.array_equal(found, extractor.features(images, "pil-bicubic", [64])[64].numpy())


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    """Other programs would take the files of another run for images of this one."""
    with image_folders(32) as folders:
        folders.write(noise(2), noise(2))
        folders.keep(tmp_path / "new")
        with pytest.raises(InvalidRequest, match="choose a new folder"):
            folders.keep(tmp_path / "new")
    assert len(list((tmp_path / "new" / "sampled").iterdir())) == 2
