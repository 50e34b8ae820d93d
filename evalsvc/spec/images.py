"""How images and captions are chosen and fitted: what the parameters of several tasks have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import JsonValue

Crop = Literal["center", "center-torchvision", "none"]
Filter = Literal["lanczos", "bicubic"]

Selection = Literal["first", "random", "one_per_image"]
"""Which captions of a file are prompts: the first, a random choice, or one each of randomly chosen images."""


Resize = Literal["pil-bicubic", "tf1-bilinear"]
"""Way in which images come to Inception's size: clean-fid's, or torch-fidelity's."""


@dataclass(frozen=True)
class Program:
    """A published program that can take the place of evalsvc's own Inception features and estimators."""

    modules: tuple[str, ...]
    """Python modules that have to be installed."""
    assets: tuple[str, ...]
    """Assets that can hold the network's weights, the preferred one first."""
    resize: Resize
    """The way in which the program itself resizes."""


PROGRAMS: Mapping[str, Program] = {
    "clean-fid": Program(
        ("cleanfid", "scipy", "torch_fidelity"), ("inception-torchscript", "inception"), "pil-bicubic"
    ),
    "torch-fidelity": Program(("torch_fidelity",), ("inception",), "tf1-bilinear"),
}
"""Programs by the name that the parameter `extractor` of a task gives, which is their name in the catalog too."""

INCEPTION_TORCHSCRIPT = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of the asset `inception-torchscript`, which is a program, so that no other file of this kind is ever run."""


def program_of(extractor: str | None) -> str | None:
    """Return `extractor` if it names a program of PROGRAMS, else None."""
    return extractor if extractor in PROGRAMS else None


def fill_in_resize(content: Mapping[str, object]) -> Mapping[str, object]:
    """Return the parameters of a task with the `resize` of the program that `extractor` names, unless one is given."""
    extractor = content.get("extractor")
    if "resize" in content or not isinstance(extractor, str) or extractor not in PROGRAMS:
        return content
    return {**content, "resize": PROGRAMS[extractor].resize}


def check_resize(extractor: str | None, resize: Resize) -> None:
    """Raise ValueError where `extractor` is a program that resizes in another way."""
    program = program_of(extractor)
    if program is not None and PROGRAMS[program].resize != resize:
        raise ValueError(
            f"resize is {resize}, and the program {program} resizes by {PROGRAMS[program].resize}; leave `resize` out, "
            "or choose another `extractor`"
        )


@dataclass(frozen=True)
class Fit:
    """How an image becomes a square of pixels. All of it moves numbers."""

    size: int
    """Height and width."""
    crop: Crop = "center"
    """`center`: the square in the middle, as wide as the short side; of an odd margin the smaller half comes first.
    `center-torchvision`: the same, but the margin's half is rounded as torchvision's `center_crop` rounds it, to the
    even side: one image of COCO in eight is cut one pixel further on. `none`: the whole image, squeezed to a square."""
    filter: Filter = "lanczos"
    """Of the resampling, with antialiasing, in uint8: Pillow's."""

    def to_json(self) -> dict[str, JsonValue]:
        return asdict(self)
