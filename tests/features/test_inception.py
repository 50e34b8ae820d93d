"""FID's Inception against the libraries that the field uses, as evalsvc's own network and as those of the libraries.

NVIDIA's program is run if the file is that very one.
"""

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia_program import nvidia_program, small_tensors
from smoke_images import pixel_digest, read_smoke_images, torch_fidelity_weights
from torch import Tensor, nn

from evalsvc.assets import ASSETS
from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import CheckpointMismatch, InvalidRequest, NonFinite, NotACheckpoint
from evalsvc.features import clean_fid, inception_weights, load_extractor
from evalsvc.features.inception import Inception, fold_batch_norms, resize_pil_bicubic, resize_tf1_bilinear
from evalsvc.features.inception_weights import CLASSIFIER, NVIDIA_NAMES, PARTS, read_inception
from evalsvc.features.torch_fidelity import TorchFidelity
from evalsvc.metrics.frechet import Moments, frechet_distance
from evalsvc.metrics.reference_program import statistics_of
from evalsvc.metrics.torch_fidelity import TORCH_FIDELITY

GOLDEN = Path(__file__).parents[1] / "golden" / "fid" / "coco_smoke.json"
SIZES = [(256, 256), (32, 32), (427, 640), (1200, 1500), (299, 299), (7, 300), (1, 1)]
Features = Callable[[str, int], tuple[Tensor, Tensor]]

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def extractor(inception_path: Path) -> Inception:
    return Inception.from_path(inception_path)


@pytest.fixture(scope="module")
def pictures(shared: Path) -> tuple[Tensor, Tensor]:
    """85 images and their blurred copies."""
    return read_smoke_images(shared / "golden" / "coco_smoke" / "images")


@pytest.fixture(scope="module")
def smoke_features(extractor: Inception, pictures: tuple[Tensor, Tensor]) -> Features:
    """Of images and copies by resize and tap: of the last tap a quarter of a minute's work, done once."""

    @cache
    def features(resize: str, tap: int) -> tuple[Tensor, Tensor]:
        first, second = (extractor.features(images, resize, (tap,))[tap] for images in pictures)
        return first, second

    return features


@pytest.fixture(scope="module")
def state_dict_file(inception_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    return torch_fidelity_weights(inception_path, path)


def clean_fid_resize(images: Tensor) -> Tensor:
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


class TestParity:
    @pytest.mark.parametrize(
        ("resize", "tap", "program"),
        [
            ("tf1-bilinear", 64, "torch-fidelity/64"),
            ("tf1-bilinear", 2048, "torch-fidelity/2048"),
            pytest.param("pil-bicubic", 2048, "clean-fid/2048", marks=pytest.mark.long),
        ],
    )
    def test_distance_of_the_smoke_set(
        self, smoke_features: Features, pictures: tuple[Tensor, Tensor], resize: str, tap: int, program: str
    ) -> None:
        """From pixels to number, with our estimator and with the trace formula that both programs use."""
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        golden = json.loads(GOLDEN.read_text())
        assert pixel_digest(*pictures) == golden["pixels"], f"Pillow makes other images now; see {GOLDEN.parent}"
        first, second = smoke_features(resize, tap)
        statistics = [fid_features_to_statistics(features) for features in (first, second)]
        by_their_formula = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert by_their_formula == pytest.approx(golden[program], rel=1e-5)
        assert distance(first, second) == pytest.approx(golden[program], rel=1e-5)

    @pytest.mark.long
    def test_the_documented_example_of_torchmetrics(self, extractor: Inception, state_dict_file: Path) -> None:
        """FrechetInceptionDistance(feature=64) in its documentation, whose examples run after manual_seed(42).

        The example makes the network before the images, which draws its initial weights from the same generator.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        torch.manual_seed(42)
        FeatureExtractorInceptionV3("theirs", ["64", "2048"], feature_extractor_weights_path=str(state_dict_file))
        first = torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8)
        second = torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8)
        found = [extractor.features(images, "tf1-bilinear", (64,))[64] for images in (first, second)]
        assert round(distance(*found), 4) == 12.6388


def test_fused_equals_plain_and_the_small_tap_alone_is_the_same(
    extractor: Inception, inception_path: Path, noise: Tensor
) -> None:
    """Elsewhere than on a CPU, and with a torch that lacks oneDNN's operations, the plain form runs."""
    plain = Inception(read_inception(inception_path), fused=False)
    found, expected = (each.features(noise, "pil-bicubic") for each in (extractor, plain))
    assert all(relative_error(found[tap], expected[tap]) < 2e-6 for tap in found)
    convolutions = [module for module in extractor._network.modules() if isinstance(module, nn.Conv2d)]
    assert all(convolution._packed is not None for convolution in convolutions)
    alone = extractor.features(noise, "pil-bicubic", (64,))
    assert list(alone) == [64]
    assert torch.equal(alone[64], found[64])


@pytest.fixture(scope="module")
def classifier() -> Tensor:
    return torch.randn(1008, 2048, generator=torch.Generator().manual_seed(8)) / 45


def test_logits_are_torch_fidelitys_of_the_inception_score(
    extractor: Inception, state_dict_file: Path, classifier: Tensor, noise: Tensor, tmp_path: Path
) -> None:
    """Without the bias, though files hold one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "whole.pth"
    torch.save(torch.load(state_dict_file) | {"fc.weight": classifier, "fc.bias": torch.ones(1008)}, path)
    name = FeatureExtractorInceptionV3.get_default_feature_layer_for_metric("isc")
    theirs = FeatureExtractorInceptionV3("theirs", [name], feature_extractor_weights_path=str(path))
    ours = load_extractor("inception", path)
    assert ours.taps == (64, 2048, 2023, 1008)
    found = ours.features(noise, "tf1-bilinear", (1008,))
    assert list(found) == [1008]
    assert relative_error(found[1008], theirs(noise)[0]) < 1e-5
    assert ours.digest == ours.digest_of(2048) == extractor.digest, "FID does not depend on the classifier"
    assert ours.digest_of(1008) not in (ours.digest, Inception.from_path(state_dict_file).digest_of(64))
    with pytest.raises(InvalidRequest, match=r"has 64, 2048, 2023; these weights lack the classifier"):
        extractor.features(noise, "tf1-bilinear", (1008,))


def test_spatial_features_are_those_of_the_published_layer(
    extractor: Inception, state_dict_file: Path, noise: Tensor
) -> None:
    """TensorFlow's `mixed_6/conv` is torch-fidelity's first branch of Mixed_6d, with channels last."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(state_dict_file))
    kept: list[Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *call: kept.append(call[-1]))
    pooled = theirs(noise)[0]
    found = extractor.features(noise, "tf1-bilinear", (2023, 2048))
    assert relative_error(found[2023].unflatten(1, (17, 17, 7)).permute(0, 3, 1, 2), kept[0][:, :7]) < 1e-5
    assert relative_error(found[2048], pooled) < 1e-5, "and the others stay the same"


class TestFiles:
    def test_published_weights_and_their_state_dict(self, extractor: Inception, state_dict_file: Path) -> None:
        """With classifier and counters: another file, the same weights. A score by zeros would be 1 for every set."""
        loaded = load_extractor("inception", state_dict_file)
        assert loaded.digest == extractor.digest == ASSETS["inception"].tensors
        assert loaded.taps == (64, 2048, 2023)

    def test_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: Tensor) -> None:
        """NVIDIA's TorchScript file; the classifier is told by its shape, since it lies outside the layers."""
        expected = small_tensors()
        path = nvidia_program(expected, tmp_path / "inception.pt", classifier)
        monkeypatch.setattr(inception_weights, "PROGRAMS", (hashlib.sha256(path.read_bytes()).hexdigest(),))
        found = read_inception(path)
        assert list(found) == [*(f"{name}.{part}" for name in NVIDIA_NAMES.values() for part in PARTS), CLASSIFIER]
        assert all(torch.equal(found[name], tensor) for name, tensor in {**expected, CLASSIFIER: classifier}.items())

    def test_program_that_wants_to_run_something(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.system, (f"touch {tmp_path}/ran",)

        path = tmp_path / "inception.pt"
        for content in (pickle.dumps(Hostile(), protocol=2), b"", b"\x80\x02K\x01.", b"\x80\x02" + b"(" * 99):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/constants.pkl", b"")
                archive.writestr("archive/data.pkl", content)
            with pytest.raises(NotACheckpoint, match="is a TorchScript program"):
                read_inception(path)
        assert not (tmp_path / "ran").exists()

    def test_tensors_of_another_network(self, tmp_path: Path) -> None:
        tensors = small_tensors()
        torch.save(tensors, tmp_path / "a.pth")
        with pytest.raises(CheckpointMismatch, match="another network than FID's Inception"):
            load_extractor("inception", tmp_path / "a.pth")
        del tensors["Mixed_5b.branch1x1.bn.bias"]
        torch.save(tensors, tmp_path / "a.pth")
        with pytest.raises(CheckpointMismatch, match=r"1 missing: Mixed_5b\.branch1x1\.bn\.bias"):
            read_inception(tmp_path / "a.pth")
        tensors["Mixed_5b.branch1x1.conv.weight"][0] = torch.nan
        with pytest.raises(NonFinite, match=r"Mixed_5b\.branch1x1\.conv\.weight"):
            Inception(tensors)


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


class Means(nn.Module):
    """In the place of NVIDIA's layers: 2,048 features that are the means of the three channels over and over."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).repeat(1, 683)[:, :2048, None, None]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return nvidia_program(small_tensors(), tmp_path_factory.mktemp("program") / "it.pt", layers=Means()).read_bytes()


@pytest.fixture
def program(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program in a file, and taken for NVIDIA's."""
    path = tmp_path / "inception-2015-12-05.pt"
    path.write_bytes(content)
    monkeypatch.setattr(clean_fid, "INCEPTION_TORCHSCRIPT", hashlib.sha256(content).hexdigest())
    return path


def test_the_numbers_of_weights_are_checked(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are finite and of this network, and no file too large to be the program is read for it."""
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    assert inception_weights.published_program(program, [digest]) is not None
    monkeypatch.setattr(inception_weights, "MAX_PROGRAM", program.stat().st_size - 1)
    assert inception_weights.published_program(program, [digest]) is None
    monkeypatch.undo()
    tensors = small_tensors() | {"Conv2d_1a_3x3.conv.weight": torch.full((2, 1, 1, 1), torch.inf)}
    path = nvidia_program(tensors, tmp_path / "broken.pt", layers=Means())
    monkeypatch.setattr(clean_fid, "INCEPTION_TORCHSCRIPT", hashlib.sha256(path.read_bytes()).hexdigest())
    for load in (lambda: load_extractor("clean-fid", path), lambda: TorchFidelity(tensors)):
        with pytest.raises(NonFinite, match=r"in Conv2d_1a_3x3\.conv\.weight; pull them again"):
            load()
    with pytest.raises(CheckpointMismatch, match="another network than FID's Inception"):
        TorchFidelity(small_tensors())


def test_features_are_those_of_clean_fids_resizing(
    extractor: Inception, inception_path: Path, pictures: tuple[Tensor, Tensor]
) -> None:
    """Near evalsvc's own, whose resizing is within .005 grey levels."""
    found = load_extractor("clean-fid", inception_path)
    features = found.features(pictures[0][:4], "pil-bicubic")
    for tap, rows in extractor.features(pictures[0][:4], "pil-bicubic", found.taps).items():
        assert relative_error(rows, features[tap]) < 5e-6
    assert found.digest == extractor.digest
    assert found.program == {"program": "clean-fid 0.1.35", "network": "torch-fidelity 0.4.0, its layers"}


def test_nvidias_program_is_run(program: Path, content: bytes, noise: Tensor) -> None:
    found = load_extractor("clean-fid", program)
    assert found.taps == (2048,), "the program tells no others"
    digest = hashlib.sha256(content).hexdigest()
    assert found.program == {"program": "clean-fid 0.1.35", "network": f"TorchScript {digest}"}
    assert found.digest == tensor_digest(small_tensors())
    expected = ((clean_fid_resize(noise) - 128) / 128).mean((2, 3))
    rows = found.features(noise, "pil-bicubic")[2048]
    torch.testing.assert_close(rows[:, :3], expected)
    assert torch.equal(rows[:, 3:6], rows[:, :3])


def test_no_other_program_is_run(program: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more, and it is another program, which is not even read."""
    program.write_bytes(content + b"\0")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(NotACheckpoint, match="is a TorchScript program"):
        load_extractor("clean-fid", program)


def test_what_is_run_is_what_was_checked(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is exchanged between the check and the start of the program would run unchecked."""
    checked = clean_fid.published_program

    def exchange(path: Path, digests: Collection[str]) -> bytes | None:
        content = checked(path, digests)
        path.write_bytes(b"another program")
        return content

    monkeypatch.setattr(clean_fid, "published_program", exchange)
    assert load_extractor("clean-fid", program).digest == tensor_digest(small_tensors())


def test_is_torch_fidelitys_own_and_near_evalsvcs(
    extractor: Inception, inception_path: Path, pictures: tuple[Tensor, Tensor], state_dict_file: Path
) -> None:
    """From weights that torch-fidelity reads itself, bit for bit; the folded network rounds in another way."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = pictures[0][:4]
    theirs = FeatureExtractorInceptionV3("theirs", ["64", "2048"], feature_extractor_weights_path=str(state_dict_file))
    expected = dict(zip((64, 2048), theirs(images), strict=True))
    found = load_extractor("torch-fidelity", inception_path)
    features = found.features(images, "tf1-bilinear")
    assert all(torch.equal(features[tap], expected[tap]) for tap in (64, 2048))
    assert torch.equal(found.features(images, "tf1-bilinear", (64,))[64], expected[64])
    ours = extractor.features(images, "tf1-bilinear", (64, 2048))
    assert all(relative_error(rows, expected[tap]) < 4e-6 for tap, rows in ours.items())
    assert found.digest == extractor.digest
    assert found.program == {"program": "torch-fidelity 0.4.0"}


def test_finds_what_its_whole_program_found(inception_path: Path, pictures: tuple[Tensor, Tensor]) -> None:
    """`calculate_metrics` on the PNG files of the 85 images and of their blurred copies, with its 64 features."""
    extractor = load_extractor("torch-fidelity", inception_path)
    features = [extractor.features(images, "tf1-bilinear", (64,))[64].numpy() for images in pictures]
    found = TORCH_FIDELITY.distance(*(statistics_of(rows) for rows in features))
    assert found == pytest.approx(json.loads(GOLDEN.read_text())["torch-fidelity/64"], rel=1e-9)
