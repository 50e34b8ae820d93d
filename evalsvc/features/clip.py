"""CLIP: images and texts in one space. Radford et al., arXiv 2103.00020.

Features are the projected embeddings, of unit length: those of ViT-L/14 at 336 pixels make CMMD (Jayasumana et al.,
arXiv 2401.09603), and their cosine with the caption's makes CLIPScore (Hessel et al., arXiv 2104.08718).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from evalsvc.errors import InvalidData, InvalidModelConfig
from evalsvc.features.extractor import FeatureExtractor
from evalsvc.features.vision_folder import (
    Preparation,
    identity,
    load_network,
    normalise,
    read_config,
    read_preparation,
    resize_and_crop,
)
from evalsvc.precision import full_precision
from evalsvc.protocol import canonical_json

TEXTS_AT_ONCE = 256
SHAPE = ("hidden_act", "layer_norm_eps", "num_attention_heads")


class CLIP(FeatureExtractor):
    """Features of images, and how well images fit texts."""

    kind: ClassVar[str] = "clip"
    resizes: ClassVar[tuple[str, ...]] = ("pil-bicubic-crop",)
    images_at_once = 32

    def __init__(self, network: Any, tokenizer: Tokenizer, preparation: Preparation, digest: str, device: str) -> None:
        """`network` is a CLIPModel in eval mode on `device`; `tokenizer` cuts and pads. See `from_path`."""
        self._network = network
        self._tokenizer = tokenizer
        self._preparation = preparation
        self.digest = digest
        self.device = torch.device(device)
        self.taps = (int(self._network.config.projection_dim),)

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        """From a folder: `config.json`, `preprocessor_config.json`, `tokenizer.json` and the weights."""
        content, preparation = read_config(path, "clip"), read_preparation(path)
        config = _config(path, content)
        length = int(config.text_config.max_position_embeddings)
        tokenizer = read_clip_tokenizer(path / "tokenizer.json", length)
        shapes = {
            f"{part}.{key}": getattr(getattr(config, f"{part}_config"), key)
            for part in ("text", "vision")
            for key in SHAPE
        }
        words = hashlib.sha256(canonical_json(tokenizer.get_vocab()).encode()).hexdigest()
        about = shapes | {"vocabulary": words, "text_length": length}
        network, digest = load_network(CLIPModel, config, path, device)
        return cls(network, tokenizer, preparation, identity(digest, preparation, about), device)

    def extract(
        self,
        images: Tensor,  # [B, 3, H, W] uint8
        resize: str,
        taps: Collection[int],
    ) -> dict[int, Tensor]:  # by tap, [B, tap] float32
        pixels = normalise(resize_and_crop(images, self._preparation), self._preparation, self.device)
        pooled = self._network.vision_model(pixel_values=pixels).pooler_output
        return {self.taps[0]: functional.normalize(self._network.visual_projection(pooled), dim=1)}

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:  # [len(texts), d] float32
        """Of unit length. What is longer than the network's 77 tokens is cut."""
        parts = [torch.empty(0, self.taps[0], device=self.device)]
        with full_precision(self.device):
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                encodings = self._tokenizer.encode_batch(list(texts[start : start + TEXTS_AT_ONCE]))
                ids = torch.tensor([encoding.ids for encoding in encodings], device=self.device)
                pooled = self._network.text_model(input_ids=ids).pooler_output
                parts.append(functional.normalize(self._network.text_projection(pooled), dim=1))
        return torch.cat(parts)

    def scores(
        self,
        image_features: Tensor,  # [B, d] float32
        texts: Sequence[str],
    ) -> Tensor:  # [B] float32
        """CLIPScore of each image and its text: 100·max(cos, 0). Raises InvalidData where they are not as many."""
        if image_features.shape != (len(texts), self.taps[0]):
            raise InvalidData(
                f"features of images are {list(image_features.shape)}; for {len(texts)} texts they must be "
                f"[{len(texts)}, {self.taps[0]}]"
            )
        images = functional.normalize(image_features.to(self.device, torch.float32), dim=1)
        return 100 * (images * self.text_features(texts)).sum(1).clamp_min(0)


def read_clip_tokenizer(path: Path, length: int) -> Tokenizer:
    """A tokenizer that cuts to `length` ids, the last of them the end of text, and pads. Raises InvalidModelConfig.

    Text is read from its end on, so with what it is padded behind it makes no difference.
    """
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InvalidModelConfig(f"{path} is no tokenizer ({error}); take the model's own tokenizer.json") from None
    end = tokenizer.token_to_id("<|endoftext|>")
    if end is None:
        raise InvalidModelConfig(f"{path} has no <|endoftext|>, so it is not CLIP's; take the model's own file")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=end, pad_token="<|endoftext|>")
    return tokenizer


def _config(path: Path, content: dict[str, Any]) -> Any:
    try:
        return CLIPConfig.from_dict(content)
    except Exception as error:  # checked by whatever the library's classes do with it
        reason = " ".join(str(error).split())
        raise InvalidModelConfig(f"{path / 'config.json'} is no configuration of CLIP: {reason[:200]}") from error
