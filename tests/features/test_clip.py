"""CLIP against the library's own processor, tokenizer and model.

The library is imported where it is used: it takes seconds, in each process that collects tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.errors import CheckpointMismatch, InvalidData, InvalidModelConfig
from evalsvc.features.vision_folder import resize_and_crop

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPModel

    from evalsvc.features.clip import CLIP

TEXTS = ["a cat", "two dogs on a long sofa in the sun", ""]


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> CLIP:
    return read(clip_folder)


def read(folder: Path) -> CLIP:
    from evalsvc.features.clip import CLIP

    return CLIP.from_path(folder)


@pytest.fixture(scope="module")
def theirs(clip_folder: Path) -> CLIPModel:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()


def processor(folder: Path) -> CLIPImageProcessor:
    """The one that resizes by PIL, as the authors do; newer releases have it apart from torchvision's."""
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return kind.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[Image.Image]:
    """Upright and lying ones, none of them square."""
    paths = sorted((shared / "golden" / "coco_smoke" / "images").glob("*.jpg"))
    images = [Image.open(path).convert("RGB") for path in paths[:6]]
    assert len({image.width > image.height for image in images}) == 2
    return images


def as_tensor(image: Image.Image) -> Tensor:
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(image.height, image.width, 3)[None]
        .permute(0, 3, 1, 2)
    )


@torch.inference_mode()
def test_images(clip: CLIP, clip_folder: Path, theirs: CLIPModel, photographs: list[Image.Image]) -> None:
    found = torch.cat([clip.features(as_tensor(image), "pil-bicubic-crop")[24] for image in photographs])
    inputs = processor(clip_folder)(images=photographs, return_tensors="pt")
    pooled = theirs.vision_model(**inputs).pooler_output
    expected = functional.normalize(theirs.visual_projection(pooled), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(expected.unique(dim=0)) == len(photographs)


@torch.inference_mode()
def test_texts(clip: CLIP, clip_folder: Path, theirs: CLIPModel) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(clip_folder / "tokenizer.json"), pad_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = functional.normalize(theirs.text_projection(theirs.text_model(**kept).pooler_output), dim=1)
    torch.testing.assert_close(clip.text_features(TEXTS), expected, rtol=1e-5, atol=1e-6)
    assert len(expected.unique(dim=0)) == len(TEXTS)


def test_scores(clip: CLIP, noise: Tensor) -> None:
    """Of each image with its own text, whatever else is in the batch; length of the features does not matter."""
    images, texts = clip.features(noise[:3], "pil-bicubic-crop")[24], clip.text_features(TEXTS)
    expected = 100 * functional.cosine_similarity(images, texts).clamp_min(0)
    torch.testing.assert_close(clip.scores(7 * images, TEXTS), expected)
    opposite = clip.scores(-texts, TEXTS)
    assert opposite.tolist() == [0, 0, 0]
    assert clip.scores(images[1:2], TEXTS[1:2])[0] == pytest.approx(float(expected[1]), abs=1e-4)


def test_scores_of_another_number(clip: CLIP, noise: Tensor) -> None:
    with pytest.raises(InvalidData, match=r"for 3 texts they must be \[3, 24\]"):
        clip.scores(clip.features(noise, "pil-bicubic-crop")[24], TEXTS)


def test_features_have_unit_length(clip: CLIP, noise: Tensor) -> None:
    """CMMD's kernel has a fixed width that is meant for such."""
    torch.testing.assert_close(clip.features(noise, "pil-bicubic-crop")[24].norm(dim=1), torch.ones(5))


def test_preparation_is_the_librarys_bit_for_bit(clip: CLIP, clip_folder: Path, photographs: list[Image.Image]) -> None:
    levels = processor(clip_folder)(images=photographs, do_rescale=False, do_normalize=False, return_tensors="pt")
    found = torch.cat([resize_and_crop(as_tensor(image), clip._preparation) for image in photographs])
    assert torch.equal(found.float(), levels["pixel_values"].float())


@pytest.fixture
def copy(clip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip_folder, tmp_path / "copy"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_digest_holds_what_no_tensor_says(clip: CLIP, copy: Path) -> None:
    """Other means of the channels, other heads and other words make other features of the same weights."""
    assert read(copy).digest == clip.digest
    digests = {clip.digest}
    change(copy / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    digests.add(read(copy).digest)
    vision = json.loads((copy / "config.json").read_text())["vision_config"]
    change(copy / "config.json", vision_config=vision | {"num_attention_heads": 2})
    digests.add(read(copy).digest)
    words = json.loads((copy / "tokenizer.json").read_text())["model"]
    change(copy / "tokenizer.json", model=words | {"vocab": words["vocab"] | {"a": 1, "b": 0}})
    digests.add(read(copy).digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "bert"}, "is of the model_type 'bert'; give a folder with 'clip'"),
        ("config.json", {"vision_config": 3}, "vision_config: input should be a valid dictionary"),
        ("preprocessor_config.json", {"resample": 2}, "another filter than bicubic"),
        ("preprocessor_config.json", {"crop_size": None}, "preprocessor_config.json lacks"),
        ("preprocessor_config.json", {"size": 16}, "crops 32 of 16 pixels"),
        ("preprocessor_config.json", {"image_mean": ["hunter2", 0, 0]}, "preprocessor_config.json"),
        ("preprocessor_config.json", {"image_mean": [float("nan"), 0, 0]}, "preprocessor_config.json"),
        ("preprocessor_config.json", {"image_std": [0, 1, 1]}, "preprocessor_config.json"),
        ("preprocessor_config.json", {"size": float("inf")}, "preprocessor_config.json"),
        ("preprocessor_config.json", {"size": 10**6, "crop_size": 10**6}, "preprocessor_config.json"),
    ],
)
def test_configuration_that_nobody_means(copy: Path, file: str, values: dict[str, object], message: str) -> None:
    change(copy / file, **values)
    with pytest.raises(InvalidModelConfig, match=message) as caught:
        read(copy)
    assert "hunter2" not in caught.value.message


def test_numbers_instead_of_names(clip: CLIP, copy: Path) -> None:
    """OpenAI's first folders have `"size": 224`."""
    change(copy / "preprocessor_config.json", size=32, crop_size=32)
    assert read(copy).digest == clip.digest


def test_weights_of_another_shape(copy: Path) -> None:
    change(copy / "config.json", projection_dim=16)
    with pytest.raises(CheckpointMismatch, match=r"2 wrongly shaped: text_projection\.weight"):
        read(copy)


def test_tokenizer_of_something_else(copy: Path) -> None:
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace("endoftext", "end"))
    with pytest.raises(InvalidModelConfig, match="so it is not CLIP's"):
        read(copy)
    path.unlink()
    with pytest.raises(InvalidData, match=r"the tokenizer .*tokenizer\.json does not exist or cannot be read; check"):
        read(copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"a": "' + "x" * 2_000_000 + '"}', '{"size": 1' + "0" * 9999 + "}"]
)
def test_a_configuration_that_is_damaged_deep_or_long(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(InvalidModelConfig, match=rf"{name} is (no JSON|larger than 1,000,000 bytes)"):
        read(copy)


# folders that are out to harm who opens them


def test_keys_of_the_configuration_that_are_not_known_do_nothing(clip: CLIP, copy: Path, tmp_path: Path) -> None:
    """The library imports, converts or allocates by some of them."""
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    hostile = {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        "trust_remote_code": True,
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "_attn_implementation": "kernels-community/flash-attn",
        "attn_implementation": "flash_attention_2",
        "torch_dtype": "float16",
        "dtype": "nonsense",
        "architectures": ["evil.Model"],
        "_commit_hash": 7,
        "tie_word_embeddings": "maybe",
        "initializer_range": "nonsense",
    }
    content = json.loads((copy / "config.json").read_text())
    parts = {name: content[name] | hostile for name in ("text_config", "vision_config")}
    change(copy / "config.json", **hostile, **parts)
    found = read(copy)
    assert found.digest == clip.digest
    assert torch.equal(found.text_features(TEXTS), clip.text_features(TEXTS))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("text_config", {"hidden_size": 2**40}, "text_config.hidden_size: input should be less than or equal to 16384"),
        ("vision_config", {"num_hidden_layers": 10**9}, "vision_config.num_hidden_layers: input should be less"),
        ("vision_config", {"image_size": 4096, "patch_size": 1}, "vision_config: image_size over patch_size gives"),
        ("text_config", {"num_attention_heads": 5}, "text_config: hidden_size is no multiple of num_attention_heads"),
        ("text_config", {"max_position_embeddings": 10**12}, "text_config.max_position_embeddings: input should be"),
        ("text_config", {"hidden_act": "hunter2"}, "text_config.hidden_act: input should be 'gelu'"),
        ("vision_config", {"hidden_size": "hunter2"}, "vision_config.hidden_size: input should be a valid integer"),
        ("vision_config", {"layer_norm_eps": 1e999}, "vision_config.layer_norm_eps: input should be a finite number"),
    ],
)
def test_a_network_that_nobody_means(copy: Path, part: str, values: dict[str, object], words: str) -> None:
    content = json.loads((copy / "config.json").read_text())
    change(copy / "config.json", **{part: content[part] | values})
    with pytest.raises(InvalidModelConfig) as caught:
        read(copy)
    assert words in caught.value.message
    assert "hunter2" not in caught.value.message


def test_a_tokenizer_with_ids_beyond_the_vocabulary(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    change(copy / "config.json", text_config=content["text_config"] | {"vocab_size": 20})
    with pytest.raises(InvalidModelConfig, match=r"tokenizer\.json has ids beyond the 20 of config\.json"):
        read(copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_in_the_folder_that_leads_out_of_the_roots(copy: Path, tmp_path: Path, name: str) -> None:
    """The folder lies below the roots, what its file leads to does not: a worker reads none of it."""
    from evalsvc.worker.context import ShardContext

    root = tmp_path / "root"
    root.mkdir()
    folder = copy.rename(root / "clip")
    settings = Settings(devices="cpu", threads=1, roots=str(root), data_dir=str(tmp_path / "data"))
    context = ShardContext(CheckpointRef("unused"), settings, lambda done: None)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert read(folder), "the library itself follows links"
    with pytest.raises(InvalidData) as caught:
        context.extractor(str(folder), "clip")
    assert caught.value.message == (
        f"'{folder / name}' is, or links, outside the allowed folders ({root}), or into "
        "evalsvc's data folder or keys; move the file, or ask the operator to add its folder to EVALSVC_ROOTS"
    )
    (tmp_path / name).rename(root / name)
    (folder / name).unlink()
    (folder / name).symlink_to(root / name)
    assert context.extractor(str(folder), "clip").digest == read(folder).digest
