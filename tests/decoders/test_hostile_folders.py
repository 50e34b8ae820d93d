"""Folders and files of image tokenizers that are out to harm, or to be taken for others: each is refused, by advice."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_folders import janus_config, to_janus, tokenizer_alone, whole_model
from hostile_files import archive, calling
from refusals import refusal
from tiny_decoders import randomise
from torch import Tensor

from evalsvc.checkpoints.opening import opened_weights
from evalsvc.decoders import load_decoder
from evalsvc.decoders.config import DEFAULT_FILES, LLAMAGEN_TARGET
from evalsvc.decoders.llamagen import LlamaGen
from evalsvc.errors import (
    CheckpointMismatch,
    EvalsvcError,
    InvalidData,
    InvalidModelConfig,
    NonFinite,
    UnsafeCheckpoint,
    UnsupportedModel,
)

DECODER = randomise(LlamaGen.from_config(janus_config()), seed=3).eval()
AUTHORS = {DECODER.file_name(name): tensor for name, tensor in DECODER.state_dict().items()}
CONFIG = {"target": LLAMAGEN_TARGET, **DECODER.config.model_dump()}


def theirs() -> dict[str, Tensor]:
    return {to_janus(name): tensor.clone() for name, tensor in AUTHORS.items()}


def saved(
    change: Callable[[dict[str, Tensor]], object] = lambda tensors: None, text: str = "", **changes: Any
) -> Callable[[Path], Path]:
    """A folder whose tensors or whose `config.json` are changed, the latter in some fields or to a text."""

    def make(folder: Path) -> Path:
        tensors = theirs()
        change(tensors)
        path = tokenizer_alone(folder / "x", janus_config(**changes), tensors)
        if text:
            (path / "config.json").write_text(text)
        return path

    return make


def remote_code(folder: Path) -> Path:
    path = saved(model_type="mine", auto_map={"AutoModel": "modeling.Mine"})(folder)
    (path / "modeling.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w')")
    return path


def vision_of_nothing(folder: Path) -> Path:
    path = whole_model(folder / "x", janus_config(), theirs())
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, "vision_config": {"image_size": 384, "patch_size": 0}}))
    return path


def program(folder: Path) -> Path:
    archive(folder / "vq.pt", calling(os.system, f"touch {folder}/it-ran"))
    return folder / "vq.pt"


def turn(tensors: dict[str, Tensor]) -> None:
    """Count the decoder's levels from the highest resolution, as taming-transformers does."""
    tensors.clear()
    tensors.update(DECODER.state_dict())


def cosmos(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "decoder.jit").write_bytes(b"PK\x03\x04")
        return folder / name

    return make


IBQ = CONFIG | {"target": None, "entropy_temperature": 0.01}
FLOW = {"model_type": "multi_modality", "vision_gen_enc_config": {"cls": "ShallowUViTEncoder"}}
CODEBOOK = "quantize.embedding.weight"
twice = saved(lambda t: t.update({"decoder.conv_blocks.0.res.0.conv1.bias": torch.zeros(32)}))  # by LlamaGen's name too
broken = saved(lambda t: t[CODEBOOK].fill_(torch.nan))
quantised = saved(lambda t: t.update({CODEBOOK: t[CODEBOOK].char()}))


ATTACKS: dict[str, tuple[Callable[[Path], Path], type[EvalsvcError], str, *tuple[Any, ...]]] = {
    "remote code": (remote_code, UnsupportedModel, "is of no known decoder; give a file of one of: chameleon"),
    "huge width": (saved(base_channels=10**9), InvalidModelConfig, "ch: input should be less than"),
    "huge number": (saved(num_patches=10**400), InvalidModelConfig, "num_patches: input should be less"),
    "many levels": (saved(channel_multiplier=[1] * 10**5), InvalidModelConfig, "at most 10 items"),
    "negative size": (saved(num_res_blocks=-1), InvalidModelConfig, "num_res_blocks: input should be gr"),
    "no size": (vision_of_nothing, InvalidModelConfig, "vision_config: patch_size"),
    "not a number": (saved(embed_dim=float("nan")), InvalidModelConfig, "embed_dim: input should be a"),
    "fraction": (saved(num_embeddings=16.5), InvalidModelConfig, "num_embeddings: input should be a"),
    "list": (saved(vq_config=[1, 2]), InvalidModelConfig, "vq_config is a list; give the fields"),
    "deep": (saved(text='{"a":' * 10**5), InvalidModelConfig, "is no readable JSON"),
    "many digits": (saved(text='{"embed_dim": 1' + "0" * 9999 + "}"), InvalidModelConfig, "is no readable JSON"),
    "large": (saved(text=" " * 10_000_001), InvalidModelConfig, "is larger than 10,000,000 bytes; give the"),
    "another function": (saved(double_latent=True), InvalidModelConfig, "double_z is not False"),
    "no attention": (saved(attn_type=None), InvalidModelConfig, "attn_type is not 'vanilla'"),
    "huge codebook": (saved(num_embeddings=2**24), CheckpointMismatch, "the file's codebook is 64 x 4"),
    "parameter twice": (twice, CheckpointMismatch, "are one parameter; save one decoder only"),
    "levels turned": (saved(turn, channel_multiplier=[1, 2, 2]), CheckpointMismatch, "wrongly shaped"),
    "broken weights": (broken, NonFinite, "quantize.embedding.weight; the run has diverged"),
    "quantised": (quantised, CheckpointMismatch, "no plain floating-point tensor"),
    "program in a folder": (cosmos("."), UnsupportedModel, "Cosmos' tokenizer, which is a program (TorchScript)"),
    "program": (cosmos("decoder.jit"), UnsupportedModel, "evaluate SimpleAR by the tasks `loss` and `language`"),
    "another quantiser": (saved(), UnsupportedModel, "IBQ, Emu3.5's image tokenizer, whose codes are", IBQ),
    "no tokenizer": (saved(model_type="Emu3"), UnsupportedModel, "give the folder of Emu3-VisionTokenizer"),
    "a flow": (saved(), UnsupportedModel, "is of JanusFlow, which draws", FLOW),
    "another Janus": (saved(model_type="multi_modality"), InvalidModelConfig, "gen_vision_config.cls is not 'VQ-16'"),
    "code in weights": (program, UnsafeCheckpoint, "so it was not opened; save only tensors", CONFIG),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_is_refused_with_advice(name: str, tmp_path: Path) -> None:
    make, error, words, *config = ATTACKS[name]
    assert words in refusal(error, load_decoder, make(tmp_path), *config)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("linked", ["config.json", "model.safetensors"])
def test_links_out_of_the_roots_are_not_followed(linked: str, tmp_path: Path) -> None:
    folder = tokenizer_alone(tmp_path / "root" / "x", janus_config(), theirs())
    (folder / linked).rename(tmp_path / linked)
    (folder / linked).symlink_to(tmp_path / linked)

    def allow(real: Path, shown: str) -> None:
        if not real.is_relative_to(tmp_path / "root"):
            raise InvalidData(f"{shown} links outside the allowed folders")

    with pytest.raises(InvalidData, match=f"{linked} links outside"), opened_weights(folder, allow, DEFAULT_FILES):
        pass
