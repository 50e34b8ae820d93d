"""clean-fid's extractor: its resizing, and NVIDIA's program if the file is that very one, else the same tensors."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia_program import nvidia_program, small_tensors
from smoke_images import read_smoke_images
from torch import Tensor, nn

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import CheckpointError, NonFinite, NotACheckpoint
from evalsvc.features import clean_fid, inception_weights, load_extractor

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


def test_features_are_those_of_clean_fids_resizing(inception_path: Path, shared: Path) -> None:
    """Near evalsvc's own, whose resizing is within .005 grey levels."""
    images = read_smoke_images(shared / "golden" / "coco_smoke" / "images")[0][:4]
    found, ours = (load_extractor(kind, inception_path) for kind in ("clean-fid", "inception"))
    features = found.features(images, "pil-bicubic")
    for tap, rows in ours.features(images, "pil-bicubic").items():
        assert relative_error(rows, features[tap]) < 5e-6
    assert found.digest == ours.digest
    assert found.program == {"program": "clean-fid 0.1.35", "network": "torch-fidelity 0.4.0, its layers"}


def test_the_layers_are_torch_fidelitys(inception_path: Path) -> None:
    """Images of the network's own size are resized by neither."""
    images = torch.randint(0, 256, (2, 3, 299, 299), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    found = load_extractor("clean-fid", inception_path).features(images, "pil-bicubic")
    expected = load_extractor("torch-fidelity", inception_path).features(images, "tf1-bilinear")
    assert all(relative_error(found[tap], expected[tap]) < 1e-6 for tap in (64, 2048))


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


def test_a_file_too_large_to_be_the_program_is_not_read_for_it(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    assert inception_weights.published_program(program, [digest]) is not None
    monkeypatch.setattr(inception_weights, "MAX_PROGRAM", program.stat().st_size - 1)
    assert inception_weights.published_program(program, [digest]) is None


def test_weights_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = small_tensors() | {"Conv2d_1a_3x3.conv.weight": torch.full((2, 1, 1, 1), torch.inf)}
    path = nvidia_program(tensors, tmp_path / "inception.pt", layers=Means())
    monkeypatch.setattr(clean_fid, "INCEPTION_TORCHSCRIPT", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(NonFinite, match="pull them again"):
        load_extractor("clean-fid", path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "inception.pt").write_bytes(b"PK\x03\x04 and no archive")
    with pytest.raises(CheckpointError):
        load_extractor("clean-fid", tmp_path / "inception.pt")
