"""Rows of the image tokenizer and of Inception."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evalsvc.decoders import blocks
from evalsvc.errors import AssetMissing
from evalsvc.features import inception
from evalsvc.verify.agreement import Finding
from evalsvc.verify.golden_files import Golden
from evalsvc.verify.golden_images import drawn_image, verify_decoder, verify_inception

Wrong = Callable[[list[Finding]], list[str]]
Nudge = Callable[[str, str, float], None]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_pixels_and_codes_are_the_authors(copied: Golden, nudge: Nudge, wrong: Wrong) -> None:
    rows = list(verify_decoder(copied))
    assert wrong(rows) == []
    nudge("decoding", "decoded", 1e-3)
    nudge("decoding", "encoded", 1)
    assert wrong(list(verify_decoder(copied))) == ["decoded pixels", "codes of images"]


def test_a_wrong_norm_of_the_decoder_is_found(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    right = torch.nn.functional.group_norm

    def other(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return right(x, groups, weight, bias, 100 * eps)

    monkeypatch.setattr(blocks.functional, "group_norm", other)
    assert "decoded pixels" in wrong(list(verify_decoder(Golden("cpu"))))


def test_without_the_network_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(tmp_path))
    with pytest.raises(AssetMissing, match="evalsvc assets pull inception"):
        list(verify_inception(Golden("cpu")))


def test_the_drawn_image_has_fine_detail() -> None:
    """An image without any would not tell one way of resizing from another."""
    image = drawn_image(340, 420).float()
    assert image.shape == (3, 340, 420)
    assert float((image[:, 1:] - image[:, :-1]).abs().mean()) > 20


class TestInception:
    @pytest.fixture(autouse=True)
    def _assets(self, inception_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))

    def test_features_are_the_programs(self, copied: Golden, nudge: Nudge, wrong: Wrong) -> None:
        rows = list(verify_inception(copied))
        assert len(rows) == 4
        assert wrong(rows) == []
        nudge("inception", "pil-bicubic/64", 1e-3)
        assert wrong(list(verify_inception(copied))) == ["64 features, pil-bicubic"]

    def test_another_resize_is_found(self, monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
        """Bicubic with a = -3/4, as PyTorch has it, in the place of PIL's -1/2."""

        def sharper(x: Tensor) -> Tensor:
            x = x.abs()
            near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
            return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))

        monkeypatch.setattr(inception, "_bicubic", sharper)
        inception.bicubic_filter.cache_clear()
        found = wrong(list(verify_inception(Golden("cpu"))))
        inception.bicubic_filter.cache_clear()
        assert found == ["64 features, pil-bicubic", "2,048 features, pil-bicubic"]
