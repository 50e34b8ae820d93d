"""clean-fid's and torch-fidelity's extractors; NVIDIA's program is run if the file is that very one."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia_program import nvidia_program, small_tensors
from smoke_images import pixel_digest, read_smoke_images, torch_fidelity_weights
from torch import Tensor, nn

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import CheckpointMismatch, NonFinite, NotACheckpoint
from evalsvc.features import clean_fid, inception_weights, load_extractor
from evalsvc.features.torch_fidelity import TorchFidelity

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class Means(nn.Module):
    """In the place of NVIDIA's layers: 2,048 features that are the means of the three channels over and over."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).repeat(1, 683)[:, :2048, None, None]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program with the tensors where NVIDIA's has them."""
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


def test_features_are_those_of_clean_fids_resizing(inception_path: Path, shared: Path) -> None:
    """Near evalsvc's own, whose resizing is within .005 grey levels."""
    images = read_smoke_images(shared / "golden" / "coco_smoke" / "images")[0][:4]
    found, ours = (load_extractor(kind, inception_path) for kind in ("clean-fid", "inception"))
    features = found.features(images, "pil-bicubic")
    for tap, rows in ours.features(images, "pil-bicubic").items():
        assert relative_error(rows, features[tap]) < 5e-6
    assert found.digest == ours.digest
    assert found.program == {"program": "clean-fid 0.1.35", "network": "torch-fidelity 0.4.0, its layers"}


def test_nvidias_program_is_run(program: Path, content: bytes, noise: Tensor) -> None:
    from cleanfid.resize import build_resizer

    found = load_extractor("clean-fid", program)
    assert found.taps == (2048,), "the program tells no others"
    digest = hashlib.sha256(content).hexdigest()
    assert found.program == {"program": "clean-fid 0.1.35", "network": f"TorchScript {digest}"}
    assert found.digest == tensor_digest(small_tensors())
    resize = build_resizer("clean")
    pixels = torch.from_numpy(np.stack([resize(image.permute(1, 2, 0).numpy()) for image in noise]))
    expected = ((pixels - 128) / 128).mean((1, 2))
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


GOLDEN = Path(__file__).parents[1] / "golden" / "fid" / "coco_smoke.json"


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
