"""What holds for every feature extractor of the catalog."""

import sys
from pathlib import Path

import pytest
import torch
from refusals import refusal
from safetensors.torch import save_file
from torch import Tensor

from evalsvc.errors import (
    CheckpointError,
    CheckpointMismatch,
    InvalidData,
    InvalidModelConfig,
    InvalidRequest,
    MissingPackage,
    UnknownName,
)
from evalsvc.features import FeatureExtractor, load_extractor
from evalsvc.features.digit_classifier import DigitClassifier, features, kernel
from evalsvc.installation import missing_package
from evalsvc.spec import catalog

FOLDERS = {
    "clean-fid": "inception_path",
    "clip": "clip_folder",
    "digits": "digits_file",
    "dinov2": "dinov2_folder",
    "inception": "inception_path",
    "torch-fidelity": "inception_path",
}
"""By kind, the fixture with weights of it. A new kind needs a line, and is tested with that."""
SLOW = [pytest.mark.full]
"""Inception takes seconds a test, which is for the second tier."""
KINDS = [
    pytest.param(kind, marks=SLOW if FOLDERS.get(kind) == "inception_path" else [])
    for kind in catalog.names("features")
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(kind: str, request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(FOLDERS[kind])
    return found


@pytest.fixture(scope="module")
def extractor(kind: str, path: Path) -> FeatureExtractor:
    return load_extractor(kind, path)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class TestContract:
    def test_says_what_it_gives(self, extractor: FeatureExtractor, kind: str, noise: Tensor) -> None:
        assert extractor.kind == kind
        for resize in extractor.resizes:
            found = extractor.features(noise, resize)
            assert set(found) == set(extractor.taps)
            for tap, rows in found.items():
                assert (tuple(rows.shape), rows.dtype) == ((len(noise), tap), torch.float32)
                assert bool(rows.isfinite().all())

    def test_cut_into_batches(
        self, extractor: FeatureExtractor, noise: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = extractor.features(noise, extractor.resizes[-1])
        for count in (1, 2):
            monkeypatch.setattr(extractor, "images_at_once", count)
            for tap, found in extractor.features(noise, extractor.resizes[-1]).items():
                assert relative_error(found, expected[tap]) < 1e-5
        none = extractor.features(noise[:0], extractor.resizes[0])
        assert {tap: tuple(rows.shape) for tap, rows in none.items()} == {tap: (0, tap) for tap in extractor.taps}

    def test_wrong_arguments(self, extractor: FeatureExtractor, noise: Tensor) -> None:
        for images in (noise.float(), noise[0], noise[:, :1], noise[:, :, :0]):
            with pytest.raises(InvalidData, match=r"give uint8 \[B, 3, H, W\]"):
                extractor.features(images, extractor.resizes[0])
        with pytest.raises(InvalidRequest, match=f"give one of {', '.join(extractor.resizes)}"):
            extractor.features(noise, "nearest")
        for taps in ((17,), ()):
            with pytest.raises(InvalidRequest, match=f"{extractor.kind} has {extractor.taps[0]}"):
                extractor.features(noise, extractor.resizes[0], taps)

    def test_full_precision_whatever_is_allowed_elsewhere(self, extractor: FeatureExtractor, noise: Tensor) -> None:
        """One caller's faster mode must not make its numbers incomparable with another's."""
        expected = extractor.features(noise, extractor.resizes[0])
        for switch in (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul):
            switch.fp32_precision = "bf16"
        with torch.autocast("cpu", torch.bfloat16):
            found = extractor.features(noise, extractor.resizes[0])
        assert all(torch.equal(found[tap], expected[tap]) for tap in extractor.taps)

    def test_digest_is_of_the_weights_that_are_there(
        self, extractor: FeatureExtractor, kind: str, path: Path, tmp_path: Path
    ) -> None:
        again = load_extractor(kind, path)
        assert (again.digest, len(again.digest)) == (extractor.digest, 64)
        assert all(again.digest_of(tap) == extractor.digest_of(tap) for tap in extractor.taps)
        with pytest.raises((CheckpointError, InvalidModelConfig), match="nowhere"):
            load_extractor(kind, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("group", "name", "package", "extra", "what"),
    [
        ("decoder_engines", "diffusers", "diffusers", "reference", "engine 'diffusers'"),
        ("features", "dinov2", "transformers", "features", "feature 'dinov2'"),
        ("models", "transformers", "transformers", "features", "model 'transformers'"),
    ],
)
def test_without_the_library_the_message_installs_it(
    group: str, name: str, package: str, extra: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (catalog.COMPONENTS[group][name].partition(":")[0], "evalsvc.features.vision_folder"):
        monkeypatch.delitem(sys.modules, module, raising=False)  # as in a new process
    monkeypatch.setitem(sys.modules, package, None)
    said = refusal(MissingPackage, catalog.load, group, name)
    assert said == missing_package(package, what, extra).message
    with pytest.raises(UnknownName, match="did you mean 'dinov2'"):
        catalog.load("features", "dino-v2")


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Ten points, each of which speaks for one class."""
    points = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    return {"points": points, "coefficients": torch.eye(10), "gamma": torch.tensor(0.5)}


def as_images(points: Tensor) -> Tensor:  # [n, 64] in [0, 1] → uint8 [n, 3, 32, 32]
    grey = (points * 255).round().to(torch.uint8).view(-1, 1, 8, 8)
    return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def test_the_nearest_point_decides(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Where the classifier is: on a GPU the points once stayed on the CPU, and every image of the miniature failed."""
    save_file(tensors, tmp_path / "classifier.safetensors")
    classifier = DigitClassifier.from_path(tmp_path / "classifier.safetensors")
    order = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    assert classifier.predict(as_images(tensors["points"][order])).equal(order)
    assert classifier.digest != DigitClassifier(**{**tensors, "gamma": torch.tensor(0.25)}).digest
    elsewhere = DigitClassifier.from_path(tmp_path / "classifier.safetensors", device="meta")
    for device in ("cpu", "meta"):
        images = as_images(tensors["points"]).to(device)
        assert elsewhere.extract(images, "mean-8x8", [10])[10].device.type == "meta"


def test_features_are_means_over_channels_and_squares_and_the_kernel_is_gaussian() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = features(images).view(2, 8, 8)
    expected = images[1, :, 2:4, 12:16].double().mean() / 255
    assert found[1, 1, 3] == pytest.approx(float(expected), abs=1e-6)
    left, right = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert torch.allclose(kernel(left, right, torch.tensor(0.1)), torch.tensor([[1.0, 0.0820850]]))


def test_another_file_is_refused_and_not_quoted(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    save_file({**tensors, "points": tensors["points"][:, :32].contiguous()}, path)
    assert "no classifier of digits" in refusal(CheckpointMismatch, DigitClassifier.from_path, path)
    save_file({"hunter2 is my (secret)": torch.zeros(1)}, path)
    assert "it holds something that is no name" in refusal(CheckpointMismatch, DigitClassifier.from_path, path)
