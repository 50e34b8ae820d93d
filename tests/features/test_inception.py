"""FID's Inception against the libraries that the field uses: resizes, features, distances."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from smoke_images import pixel_digest, read_smoke_images, torch_fidelity_weights
from torch import Tensor, nn

from evalsvc.assets import ASSETS
from evalsvc.errors import (
    CheckpointMismatch,
    CheckpointNotFound,
    InvalidData,
    InvalidRequest,
    NonFinite,
    NotACheckpoint,
    UnsafeCheckpoint,
)
from evalsvc.features import Inception, load_extractor
from evalsvc.features.inception import RESIZES, fold_batch_norms, resize_pil_bicubic, resize_tf1_bilinear
from evalsvc.inception_weights import NVIDIA_NAMES, PARTS, read_inception
from evalsvc.metrics.frechet import Moments, frechet_distance

GOLDEN = Path(__file__).parents[1] / "golden" / "fid" / "coco_smoke.json"
SIZES = [(256, 256), (32, 32), (427, 640), (1200, 1500), (299, 299), (7, 300), (1, 1)]
PARITY = 16

Features = Callable[[str], tuple[dict[int, Tensor], dict[int, Tensor]]]


@pytest.fixture(scope="module")
def extractor(inception_path: Path) -> Inception:
    return load_extractor(inception_path)


@pytest.fixture(scope="module")
def pictures(shared: Path) -> tuple[Tensor, Tensor]:
    """85 images and their blurred copies."""
    return read_smoke_images(shared / "golden" / "coco_smoke" / "images")


@pytest.fixture(scope="module")
def smoke_features(extractor: Inception, pictures: tuple[Tensor, Tensor]) -> Features:
    """Of images and copies by resize: half a minute's work, done once."""
    images, blurred = pictures
    return cache(lambda resize: (extractor.features(images, resize), extractor.features(blurred, resize)))


@pytest.fixture(scope="module")
def state_dict_file(inception_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in torch-fidelity's layout."""
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    return torch_fidelity_weights(inception_path, path)


@pytest.fixture(scope="module")
def theirs(state_dict_file: Path) -> nn.Module:
    """torch-fidelity's extractor with the same weights; its features are (64, 2048)."""
    return torch_fidelitys(state_dict_file)


def torch_fidelitys(weights: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("theirs", ["64", "2048"], feature_extractor_weights_path=str(weights))


@pytest.fixture
def noise() -> Tensor:
    return torch.randint(0, 256, (5, 3, 40, 50), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def clean_fid_resize(images: Tensor) -> Tensor:
    """By PIL, one channel of one image at a time."""
    from cleanfid.resize import build_resizer

    resizer = build_resizer("clean")
    arrays = [resizer(image.permute(1, 2, 0).numpy()) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def distance(first: Tensor, second: Tensor) -> float:
    one, two = Moments.of(first.numpy()), Moments.of(second.numpy())
    return frechet_distance(one.mean, one.covariance, two.mean, two.covariance)


class TestResize:
    @pytest.mark.parametrize("size", SIZES)
    def test_pil_bicubic_is_clean_fids(self, size: tuple[int, int]) -> None:
        images = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        assert (resize_pil_bicubic(images.float()) - clean_fid_resize(images)).abs().max() < 0.005

    @pytest.mark.parametrize("size", SIZES)
    def test_tf1_bilinear_is_torch_fidelitys_bit_for_bit(self, size: tuple[int, int]) -> None:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        images = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
        expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
        assert torch.equal(resize_tf1_bilinear(images.float()), expected)

    def test_pil_bicubic_of_photographs(self, pictures: tuple[Tensor, Tensor]) -> None:
        images = pictures[0][:PARITY]
        assert (resize_pil_bicubic(images.float()) - clean_fid_resize(images)).abs().max() < 0.005


class TestParity:
    def test_features_with_tf1_bilinear(
        self, smoke_features: Features, theirs: nn.Module, pictures: tuple[Tensor, Tensor]
    ) -> None:
        ours = smoke_features("tf1-bilinear")[0]
        for tap, expected in zip((64, 2048), theirs(pictures[0][:PARITY]), strict=True):
            assert ours[tap].dtype == torch.float32
            assert relative_error(ours[tap][:PARITY], expected) < 1e-5

    def test_features_with_pil_bicubic(
        self, smoke_features: Features, theirs: nn.Module, pictures: tuple[Tensor, Tensor]
    ) -> None:
        """clean-fid's resize before torch-fidelity's layers: the network is the same for both."""
        x = (clean_fid_resize(pictures[0][:PARITY]) - 128) / 128
        layers = [module for name, module in theirs.named_children() if name != "fc"]
        for layer in layers[:4]:
            x = layer(x)
        stem = x.mean((2, 3))
        for layer in layers[4:]:
            x = layer(x)
        ours = smoke_features("pil-bicubic")[0]
        assert relative_error(ours[64][:PARITY], stem) < 1e-5
        assert relative_error(ours[2048][:PARITY], x.flatten(1)) < 1e-5

    @pytest.mark.parametrize(
        ("resize", "tap", "program"),
        [
            ("tf1-bilinear", 64, "torch-fidelity/64"),
            ("tf1-bilinear", 2048, "torch-fidelity/2048"),
            ("pil-bicubic", 2048, "clean-fid/2048"),
        ],
    )
    def test_distance_of_the_smoke_set(
        self, smoke_features: Features, pictures: tuple[Tensor, Tensor], resize: str, tap: int, program: str
    ) -> None:
        """From pixels to number, with our estimator and with the trace formula that both programs use."""
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        golden = json.loads(GOLDEN.read_text())
        assert pixel_digest(*pictures) == golden["pixels"], f"Pillow makes other images now; see {GOLDEN.parent}"
        first, second = (features[tap] for features in smoke_features(resize))
        statistics = [fid_features_to_statistics(features) for features in (first, second)]
        by_their_formula = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert by_their_formula == pytest.approx(golden[program], rel=1e-5)
        assert distance(first, second) == pytest.approx(golden[program], rel=1e-5)

    @pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
    def test_distance_by_clean_fids_formula(self, smoke_features: Features) -> None:
        from cleanfid.fid import frechet_distance as theirs

        first, second = (features[64].numpy() for features in smoke_features("pil-bicubic"))
        expected = theirs(first.mean(0), np.cov(first.T), second.mean(0), np.cov(second.T))
        assert distance(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(expected, rel=1e-5)

    def test_the_documented_example_of_torchmetrics(self, extractor: Inception, state_dict_file: Path) -> None:
        """FrechetInceptionDistance(feature=64) in its documentation, whose examples run after manual_seed(42).

        The example makes the network before the images, which draws its initial weights from the same generator.
        """
        torch.manual_seed(42)
        torch_fidelitys(state_dict_file)
        first = torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8)
        second = torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8)
        found = [extractor.features(images, "tf1-bilinear", (64,))[64] for images in (first, second)]
        assert round(distance(*found), 4) == 12.6388


class TestFeatures:
    def test_one_by_one_equals_a_batch(self, extractor: Inception, noise: Tensor) -> None:
        together = extractor.features(noise, "pil-bicubic")
        for tap, expected in together.items():
            apart = torch.cat([extractor.features(image[None], "pil-bicubic")[tap] for image in noise])
            assert relative_error(apart, expected) < 1e-5

    def test_small_tap_alone(self, extractor: Inception, noise: Tensor) -> None:
        found = extractor.features(noise, "tf1-bilinear", (64,))
        assert list(found) == [64]
        assert torch.equal(found[64], extractor.features(noise, "tf1-bilinear")[64])

    def test_full_precision_whatever_is_allowed_elsewhere(self, extractor: Inception, noise: Tensor) -> None:
        """One caller's faster mode must not make its numbers incomparable with another's."""
        expected = extractor.features(noise, "pil-bicubic")[2048]
        before = torch.backends.mkldnn.conv.fp32_precision
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        try:
            with torch.autocast("cpu", torch.bfloat16):
                found = extractor.features(noise, "pil-bicubic")[2048]
            assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
        finally:
            torch.backends.mkldnn.conv.fp32_precision = before
        assert torch.equal(found, expected)

    def test_no_images(self, extractor: Inception) -> None:
        found = extractor.features(torch.empty(0, 3, 8, 8, dtype=torch.uint8), "pil-bicubic")
        assert {tap: tuple(rows.shape) for tap, rows in found.items()} == {64: (0, 64), 2048: (0, 2048)}

    @pytest.mark.parametrize(
        "images",
        [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)],
    )
    def test_what_is_no_image(self, extractor: Inception, images: Tensor) -> None:
        with pytest.raises(InvalidData, match=r"they must be uint8 \[B, 3, H, W\]"):
            extractor.features(images, "pil-bicubic")

    def test_unknown_tap_and_resize(self, extractor: Inception, noise: Tensor) -> None:
        with pytest.raises(InvalidRequest, match="it must be one of pil-bicubic, tf1-bilinear"):
            extractor.features(noise, "nearest")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="there are 64, 2048"):
            extractor.features(noise, "pil-bicubic", (192,))

    def test_resizes_are_different_metrics(self, smoke_features: Features) -> None:
        found = [distance(*(features[64] for features in smoke_features(resize))) for resize in RESIZES]
        assert abs(found[0] / found[1] - 1) > 0.01


def small_tensors() -> dict[str, Tensor]:
    """The right names with a few numbers each: enough for what reads files."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 1, 1, 1), (2,), (2,), (2,), (2,)]
    tensors = {}
    for name in NVIDIA_NAMES.values():
        for part, shape in zip(PARTS, shapes, strict=True):
            tensors[f"{name}.{part}"] = torch.rand(shape, generator=generator)
        tensors[f"{name}.bn.weight"] = torch.ones(2)
    return tensors


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def nvidia_program(tensors: dict[str, Tensor], path: Path) -> Path:
    """A TorchScript file with the tensors where NVIDIA's has them."""
    root = Plain()
    parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
    for theirs, ours in NVIDIA_NAMES.items():
        module: nn.Module = root
        for name in ("layers", *theirs.split(".")):
            if not hasattr(module, name):
                module.add_module(name, Plain())
            module = getattr(module, name)
        for part, attribute in parts.items():
            module.register_buffer(attribute, tensors[f"{ours}.{part}"])
    torch.jit.save(torch.jit.script(root), str(path))
    return path


class TestFiles:
    def test_digest_is_that_of_the_published_weights(self, extractor: Inception) -> None:
        assert extractor.digest == ASSETS["inception"].tensors

    def test_state_dict(self, extractor: Inception, state_dict_file: Path) -> None:
        """With classifier and counters: another file, the same weights."""
        assert load_extractor(state_dict_file).digest == extractor.digest

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_program(self, tmp_path: Path) -> None:
        """NVIDIA's TorchScript file: read and not run."""
        expected = small_tensors()
        found = read_inception(nvidia_program(expected, tmp_path / "inception.pt"))
        assert list(found) == [f"{name}.{part}" for name in NVIDIA_NAMES.values() for part in PARTS]
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_program_that_is_cut_off(self, tmp_path: Path) -> None:
        path = nvidia_program(small_tensors(), tmp_path / "inception.pt")
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(NotACheckpoint):
            read_inception(path)

    def test_program_that_wants_to_run_something(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.system, (f"touch {tmp_path}/ran",)

        path = tmp_path / "inception.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/constants.pkl", b"")
            archive.writestr("archive/data.pkl", pickle.dumps(Hostile(), protocol=2))
        with pytest.raises(UnsafeCheckpoint, match="evalsvc assets pull inception"):
            read_inception(path)
        assert not (tmp_path / "ran").exists()

    def test_program_with_nonsense(self, tmp_path: Path) -> None:
        for content in (b"", b"\x80\x02K\x01.", b"\x80\x02" + b"(" * 99):
            path = tmp_path / "inception.pt"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/constants.pkl", b"")
                archive.writestr("archive/data.pkl", content)
            with pytest.raises((NotACheckpoint, CheckpointMismatch)):
                read_inception(path)

    def test_tensors_that_are_missing(self, tmp_path: Path) -> None:
        tensors = small_tensors()
        del tensors["Mixed_5b.branch1x1.bn.bias"]
        torch.save(tensors, tmp_path / "a.pth")
        with pytest.raises(CheckpointMismatch, match=r"1 missing: Mixed_5b\.branch1x1\.bn\.bias"):
            read_inception(tmp_path / "a.pth")

    def test_another_network(self, tmp_path: Path) -> None:
        torch.save(small_tensors(), tmp_path / "a.pth")
        with pytest.raises(CheckpointMismatch, match="another network than FID's Inception"):
            load_extractor(tmp_path / "a.pth")

    def test_nan(self) -> None:
        tensors = small_tensors()
        tensors["Mixed_5b.branch1x1.conv.weight"][0] = torch.nan
        with pytest.raises(NonFinite, match=r"Mixed_5b\.branch1x1\.conv\.weight"):
            Inception(tensors)

    def test_nowhere(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointNotFound):
            load_extractor(tmp_path / "nowhere.pt")


def test_folding_keeps_the_function() -> None:
    generator = torch.Generator().manual_seed(5)
    convolution, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(4, generator=generator) + 0.1)
    named = {f"a.conv.{name}": value for name, value in convolution.state_dict().items()}
    named |= {f"a.bn.{name}": value for name, value in norm.state_dict().items()}
    x = torch.randn(2, 3, 8, 8, generator=generator)
    folded = fold_batch_norms(named)
    found = nn.functional.conv2d(x, folded["a.weight"], folded["a.bias"])
    torch.testing.assert_close(found, norm(convolution(x)), rtol=1e-5, atol=1e-6)
