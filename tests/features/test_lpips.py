from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from tiny_vision import write_lpips
from torch import Tensor

from evalsvc.errors import CheckpointError, InvalidData, NonFinite
from evalsvc.features.lpips import LPIPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lpips(tmp_path_factory.mktemp("lpips"))


@pytest.fixture(scope="module")
def lpips(folder: Path) -> LPIPS:
    return LPIPS.from_path(folder)


def reference(folder: Path, image: Tensor, other: Tensor) -> float:
    """The distance of one pair as the paper writes it, in torchvision's own network and float64."""
    from torchvision.models import vgg

    weights = torch.load(folder / "vgg16-397923af.pth")
    network = vgg.make_layers(vgg.cfgs["D"]).double().requires_grad_(False)
    network.load_state_dict({name[9:]: tensor for name, tensor in weights.items() if name.startswith("features.")})
    heads = torch.load(folder / "vgg.pth")
    mean, deviation = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).double()[..., None, None]
    total = 0.0
    for stage, last in enumerate((3, 8, 15, 22, 29)):
        sides = [network[: last + 1]((side / 127.5 - 1 - mean) / deviation) for side in (image, other)]
        x, y = (side / torch.linalg.vector_norm(side, dim=0) for side in sides)
        total += float((heads[f"lin{stage}.model.1.weight"][0].double() * (x - y) ** 2).sum(0).mean())
    return total


def test_is_the_papers(folder: Path, lpips: LPIPS, noise: Tensor) -> None:
    """More pairs than are computed together, and each as if it were alone."""
    images = torch.cat([noise, noise.flip(3)])
    others = images.roll(1, 0)
    found = lpips(images, others)
    expected = [reference(folder, image, other) for image, other in zip(images[:3], others[:3], strict=True)]
    assert found[:3].tolist() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(torch.cat([lpips(images[n : n + 1], others[n : n + 1]) for n in range(10)]), found)
    assert lpips(images, images).tolist() == [0] * 10


def without(file: str, name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        weights = torch.load(folder / file)
        torch.save({key: tensor for key, tensor in weights.items() if key != name}, folder / file)

    return change


def replaced(file: str, name: str, tensor: Any) -> Callable[[Path], object]:
    return lambda folder: torch.save({**torch.load(folder / file), name: tensor}, folder / file)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no heads": (lambda folder: (folder / "vgg.pth").unlink(), "there is no checkpoint at"),
    "a head less": (
        without("vgg.pth", "lin4.model.1.weight"),
        r"1 missing: lin4\.model\.1\.weight; give torch",
    ),
    "another width": (
        replaced("vgg.pth", "lin2.model.1.weight", torch.ones(1, 384, 1, 1)),
        r"1 wrongly shaped: lin2\.model\.1\.weight",
    ),
    "whole numbers": (replaced("vgg16-397923af.pth", "features.0.bias", torch.ones(64).long()), "1 wrongly shaped"),
    "infinite": (replaced("vgg.pth", "lin0.model.1.weight", torch.full((1, 64, 1, 1), torch.inf)), "NaN or infinity"),
    "text": (lambda folder: (folder / "vgg.pth").write_text("no weights"), "vgg.pth"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_of_something_else(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    change(write_lpips(tmp_path))
    with pytest.raises((CheckpointError, NonFinite), match=message):
        LPIPS.from_path(tmp_path)


def test_images_that_are_too_small(lpips: LPIPS, noise: Tensor) -> None:
    message = "LPIPS needs images of 16x16 pixels or more, not [12, 50]; remove `lpips`"
    assert refusal(InvalidData, lpips, noise[:, :, :12], noise[:, :, :12]) == message
