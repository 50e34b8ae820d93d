"""CLIP: images and texts in one space. Radford et al., arXiv 2103.00020.

Features are the projected embeddings, of unit length: CMMD (Jayasumana et al., arXiv 2401.09603) uses those of ViT-L/14
at 336 pixels, and CLIPScore (Hessel et al., arXiv 2104.08718) their cosine with the caption's embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from evalsvc.data.tokenizer import read_bounded, translated
from evalsvc.errors import InvalidData, InvalidModelConfig
from evalsvc.features.extractor import FeatureExtractor
from evalsvc.features.vision_folder import (
    MAX_POSITIONS,
    MAX_SIDE,
    Activation,
    ImageShape,
    Preparation,
    TransformerShape,
    check_shape,
    identity,
    load_network,
    normalise,
    read_config,
    read_preparation,
    resize_and_crop,
)
from evalsvc.precision import full_precision
from evalsvc.spec.protocol import canonical_json

TEXTS_PER_BATCH = 256
END = "<|endoftext|>"
SHAPE = ("hidden_act", "layer_norm_eps", "num_attention_heads")


class TextShape(TransformerShape):
    """Shape of the text network; the defaults are the library's, which omits default values from its files."""

    vocab_size: int = Field(default=49408, gt=0, le=2**20)
    hidden_size: int = Field(default=512, gt=0, le=2**14)
    intermediate_size: int = Field(default=2048, gt=0, le=2**16)
    num_attention_heads: int = Field(default=8, gt=0, le=2**10)
    max_position_embeddings: int = Field(default=77, gt=1, le=MAX_POSITIONS)
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = Field(default=1e-5, gt=0, le=1)


class VisionShape(ImageShape):
    """Shape of the image network; defaults as in `TextShape`."""

    hidden_size: int = Field(default=768, gt=0, le=2**14)
    intermediate_size: int = Field(default=3072, gt=0, le=2**16)
    num_attention_heads: int = Field(default=12, gt=0, le=2**10)
    patch_size: int = Field(default=32, gt=0, le=MAX_SIDE)
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = Field(default=1e-5, gt=0, le=1)


class Projection(BaseModel):
    """Space that images and texts share."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    projection_dim: int = Field(default=512, gt=0, le=2**14)


class CLIP(FeatureExtractor):
    """Extractor of image features, with scores of how well images match texts."""

    kind: ClassVar[str] = "clip"
    resizes: ClassVar[tuple[str, ...]] = ("pil-bicubic-crop",)
    images_at_once = 32

    def __init__(
        self, network: CLIPModel, tokenizer: Tokenizer, preparation: Preparation, digest: str, device: str
    ) -> None:
        self._network: Any = network
        self._tokenizer = tokenizer
        self._preparation = preparation
        self.digest = digest
        self.device = torch.device(device)
        self.taps = (cast("int", network.config.projection_dim),)

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        """Load a folder with `config.json`, `preprocessor_config.json`, `tokenizer.json` and the weights."""
        content, preparation = read_config(path, "clip"), read_preparation(path)
        text = check_shape(TextShape, path, _part(content, "text_config"), "text_config")
        vision = check_shape(VisionShape, path, _part(content, "vision_config"), "vision_config")
        projection = check_shape(Projection, path, content)
        length = text.max_position_embeddings
        tokenizer = read_clip_tokenizer(path / "tokenizer.json", length)
        if max(tokenizer.get_vocab(with_added_tokens=True).values()) >= text.vocab_size:
            raise InvalidModelConfig(
                f"{path / 'tokenizer.json'} has ids beyond the {text.vocab_size:,} of config.json; give both "
                "files of one model"
            )
        config = CLIPConfig(
            text_config={**text.model_dump(), "eos_token_id": tokenizer.token_to_id(END)},
            vision_config=vision.model_dump(),
            projection_dim=projection.projection_dim,
        )
        parts = {"text": text.model_dump(), "vision": vision.model_dump()}
        shapes = {f"{part}.{key}": values[key] for part, values in parts.items() for key in SHAPE}
        words = hashlib.sha256(canonical_json(tokenizer.get_vocab()).encode()).hexdigest()
        about = shapes | {"vocabulary": words, "text_length": length}
        network, digest = load_network(CLIPModel, config, path, device)
        return cls(network, tokenizer, preparation, identity(digest, preparation, about), device)

    def extract(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        pixels = normalise(resize_and_crop(images, self._preparation), self._preparation, self.device)
        pooled = self._network.vision_model(pixel_values=pixels).pooler_output
        return {self.taps[0]: functional.normalize(self._network.visual_projection(pooled), dim=1)}

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:  # [len(texts), d] float32
        """Return features of unit length. Texts longer than the network's 77 tokens are truncated."""
        parts = [torch.empty(0, self.taps[0], device=self.device)]
        with full_precision(self.device):
            for start in range(0, len(texts), TEXTS_PER_BATCH):
                with translated("of CLIP, tokenizer.json,"):
                    encodings = self._tokenizer.encode_batch(list(texts[start : start + TEXTS_PER_BATCH]))
                ids = torch.tensor([encoding.ids for encoding in encodings], device=self.device)
                pooled = self._network.text_model(input_ids=ids).pooler_output
                parts.append(functional.normalize(self._network.text_projection(pooled), dim=1))
        return torch.cat(parts)

    def scores(self, image_features: Tensor, texts: Sequence[str], prefix: str = "", factor: float = 100) -> Tensor:
        """Return factor · max(cos, 0) of each image, of features [B, d], and its text after `prefix`: [B] float32."""
        if image_features.shape != (len(texts), self.taps[0]):
            raise InvalidData(
                f"features of images are {list(image_features.shape)}; for {len(texts)} texts they must be "
                f"[{len(texts)}, {self.taps[0]}]"
            )
        images = functional.normalize(image_features.to(self.device, torch.float32), dim=1)
        return factor * (images * self.text_features([prefix + text for text in texts])).sum(1).clamp_min(0)


def read_clip_tokenizer(path: Path, length: int) -> Tokenizer:
    """Read a tokenizer that truncates to `length` ids, with the end of text as the last, and pads at the end."""
    content = read_bounded(path)
    with translated(path):
        tokenizer: Tokenizer = Tokenizer.from_buffer(content)
    end = tokenizer.token_to_id(END)
    if end is None:
        raise InvalidModelConfig(f"{path} has no {END}, so it is not CLIP's; give the file of the model")
    with translated(path):
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(pad_id=end, pad_token=END)
        tokenizer.encode_batch(["a photo", ""])  # a tokenizer that cannot encode fails here, before weights are read
    return tokenizer


def _part(content: Mapping[str, object], name: str) -> object:
    """Return a part of the configuration; files from before 2022 have a second copy, which the library prefers."""
    first, second = content.get(name), content.get(f"{name}_dict")
    if first is None or second is None:
        return first if second is None else second
    return {**first, **second} if isinstance(first, Mapping) and isinstance(second, Mapping) else second
