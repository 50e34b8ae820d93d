"""CLIP and DINOv2 against the library's own processors, tokenizer and models.

The library is imported where it is used: it takes seconds, in each process that collects tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
from smoke_images import read_smoke_images
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.errors import CheckpointMismatch, InvalidData, InvalidModelConfig
from evalsvc.features import load_extractor
from evalsvc.features.vision_folder import resize_and_crop
from evalsvc.tasks.image_features import SCORES

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPModel

    from evalsvc.features.clip import CLIP

TEXTS = ["a cat", "two dogs on a long sofa in the sun", ""]


def read(folder: Path, kind: str = "clip") -> Any:
    return load_extractor(kind, folder)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> CLIP:
    return read(clip_folder)


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
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@torch.inference_mode()
def test_images(clip: CLIP, clip_folder: Path, theirs: CLIPModel, photographs: list[Image.Image]) -> None:
    """Prepared bit for bit as by the library."""
    levels = processor(clip_folder)(images=photographs, do_rescale=False, do_normalize=False, return_tensors="pt")
    prepared = torch.cat([resize_and_crop(as_tensor(image), clip._preparation) for image in photographs])
    assert torch.equal(prepared.float(), levels["pixel_values"].float())
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
    prefixed = clip.text_features([f"A photo depicts {text}" for text in TEXTS])
    hessels = 2.5 * functional.cosine_similarity(texts, prefixed)
    torch.testing.assert_close(clip.scores(texts, TEXTS, *SCORES["clip_s"]), hessels)
    assert 0 < hessels.min() < hessels.max() < 2.49, "the prefix is read"
    opposite = clip.scores(-texts, TEXTS)
    assert opposite.tolist() == [0, 0, 0]
    assert clip.scores(images[1:2], TEXTS[1:2])[0] == pytest.approx(float(expected[1]), abs=1e-4)
    with pytest.raises(InvalidData, match=r"for 3 texts they must be \[3, 24\]"):
        clip.scores(images[:2], TEXTS)


@pytest.fixture
def copy(clip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip_folder, tmp_path / "copy"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_digest_holds_what_no_tensor_says(clip: CLIP, copy: Path) -> None:
    """Other means of the channels, other heads and other words make other features of the same weights."""
    change(copy / "preprocessor_config.json", size=32, crop_size=32)  # numbers, as in OpenAI's first folders
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
    assert message in refusal(InvalidModelConfig, read, copy)


def test_files_of_something_else(copy: Path) -> None:
    content, path = (copy / "config.json").read_text(), copy / "tokenizer.json"
    change(copy / "config.json", text_config=json.loads(content)["text_config"] | {"vocab_size": 20})
    assert "tokenizer.json has ids beyond the 20 of config.json" in refusal(InvalidModelConfig, read, copy)
    (copy / "config.json").write_text(content)
    change(copy / "config.json", projection_dim=16)
    assert "2 wrongly shaped: text_projection.weight" in refusal(CheckpointMismatch, read, copy)
    path.write_text(path.read_text().replace("endoftext", "end"))
    assert "so it is not CLIP's" in refusal(InvalidModelConfig, read, copy)
    path.unlink()
    assert "tokenizer.json does not exist or cannot be read; check" in refusal(InvalidData, read, copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_configuration_that_is_damaged_deep_or_long(copy: Path, name: str) -> None:
    for text in ("", "{", "[]", "[" * 100_000, '{"a": "' + "x" * 2_000_000 + '"}', '{"size": 1' + "0" * 9999 + "}"):
        (copy / name).write_text(text)
        with pytest.raises(InvalidModelConfig, match=rf"{name} is (no JSON|larger than 1,000,000 bytes)"):
            read(copy)


def test_keys_of_the_configuration_that_are_not_known_do_nothing(clip: CLIP, copy: Path, tmp_path: Path) -> None:
    """The library imports, converts or allocates by some of them."""
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    hostile: dict[str, Any] = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    hostile |= {
        "trust_remote_code": True,
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    }
    hostile |= {"_attn_implementation": "kernels-community/flash-attn", "attn_implementation": "flash_attention_2"}
    hostile |= {"torch_dtype": "float16", "architectures": ["evil.Model"], "_commit_hash": 7}
    hostile |= dict.fromkeys(("dtype", "tie_word_embeddings", "initializer_range"), "nonsense")
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
    assert words in refusal(InvalidModelConfig, read, copy)


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
    said = refusal(InvalidData, context.extractor, str(folder), "clip")
    assert said.startswith(f"'{folder / name}' is, or links, outside the allowed folders ({root})")
    (tmp_path / name).rename(root / name)
    (folder / name).unlink()
    (folder / name).symlink_to(root / name)
    assert context.extractor(str(folder), "clip").digest == read(folder).digest


def resample(positions: Tensor, side: int) -> Tensor:
    from evalsvc.features.dinov2 import resample_positions

    return resample_positions(positions, side)


@torch.inference_mode()
def test_dinov2(dinov2_folder: Path, shared: Path) -> None:
    """The middle of a larger image, and the whole as in the metric's paper: torchvision's Resize of the PIL image to a
    square, ToTensor, Normalize. Embeddings of positions are the authors'."""
    from torchvision import transforms
    from transformers import Dinov2Model

    images = read_smoke_images(shared / "golden" / "coco_smoke" / "images")[0][:4]
    theirs = Dinov2Model.from_pretrained(dinov2_folder, local_files_only=True).eval()
    positions = theirs.embeddings.position_embeddings
    theirs.embeddings.position_embeddings = torch.nn.Parameter(resample(positions.data, 2))
    square = transforms.Resize((28, 28), transforms.InterpolationMode.BICUBIC)
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    prepare = transforms.Compose([transforms.ToPILImage(), square, transforms.ToTensor(), normalise])
    middle = processor(dinov2_folder)(images=list(images), return_tensors="pt")["pixel_values"]
    whole = torch.stack([prepare(image) for image in images])
    extractor = read(dinov2_folder, "dinov2")
    for resize, pixels in (("pil-bicubic-crop", middle), ("pil-bicubic-square", whole)):
        expected = theirs(pixels).pooler_output
        torch.testing.assert_close(extractor.features(images, resize)[32], expected, rtol=1e-5, atol=1e-5)
        assert len(expected.unique(dim=0)) == len(images)


def test_positions_are_not_the_librarys() -> None:
    """The authors' scale is 0.1 of a patch larger; the library's port differs there, and so do its features."""
    ramp = torch.arange(37.0).repeat(37, 1)
    positions = torch.cat([torch.zeros(1), ramp.flatten()])[None, :, None]
    assert resample(positions, 37) is positions
    found = resample(positions, 16)[0, 1:, 0].view(16, 16)
    library = functional.interpolate(ramp[None, None], size=(16, 16), mode="bicubic")[0, 0]
    middle = slice(2, -2)  # where the filter does not meet the border, a ramp stays one
    expected = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
    # Without antialiasing the cubic is not exact on a ramp: it is so to 0.05.
    torch.testing.assert_close(found[0, middle], expected[middle], rtol=0, atol=0.05)
    assert (library[0, middle] - expected[middle]).abs().max() > 0.1


def test_crop_that_is_no_whole_patches(dinov2_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dinov2_folder, tmp_path / "copy"))
    change(folder / "preprocessor_config.json", crop_size={"height": 30, "width": 30})
    assert "crops 30 pixels, no multiple of the patches' 14" in refusal(InvalidModelConfig, read, folder, "dinov2")
