"""Image metrics of two folders of PNG files by torch-fidelity and by clean-fid, called as their manuals say.

Neither program downloads anything: both get the tensors of FID's Inception network from evalsvc.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalsvc.verify.agreement import release
from evalsvc.verify.image_folders import ImageFolders

TAPS = {"fid64": 64, "fid": 2048, "kid": 2048, "precision": 2048, "recall": 2048}
"""Metrics of other programs, with the number of Inception features that each is computed from."""

SEED = 2020
"""torch-fidelity's default seed of the subsets for KID."""
KID_IMAGES = 1000
"""Maximum number of images of each folder for KID: the subset size of torch-fidelity and clean-fid."""
NEIGHBOURS = 5
"""Number of neighbours for precision and recall, as in `metrics/prdc.py`; torch-fidelity's default is 3."""

Rows = NDArray[np.float32]
Choice = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """The input of a program."""

    folders: ImageFolders
    sampled: int
    """Number of PNG files in `folders.sampled`."""
    real: int
    """Number of PNG files in `folders.real`."""
    tensors: Mapping[str, Tensor]
    """Tensors of FID's Inception network, from `read_inception`."""
    device: torch.device

    @property
    def batch(self) -> int:
        """Return the number of images in a batch: few images of 299² pixels fit into a CPU's caches."""
        return 4 if self.device.type == "cpu" else 64

    @property
    def kid_images(self) -> int:
        """Return the number of images of each folder for KID."""
        return min(self.sampled, self.real, KID_IMAGES)

    def kid_choice(self) -> tuple[Choice, Choice]:
        """Return the sampled and the real images for KID, as torch-fidelity draws them with SEED."""
        random = np.random.RandomState(SEED)  # draws the first subset before the second
        sampled = random.choice(self.sampled, self.kid_images, replace=False)
        return sampled, random.choice(self.real, self.kid_images, replace=False)


@dataclass(frozen=True)
class ImageProgram:
    """A program that computes image metrics of folders."""

    package: str
    """Name on the package index."""
    modules: tuple[str, ...]
    """Python modules that must be installed."""
    resize: str
    """Method that resizes images to Inception's input, by evalsvc's name."""
    metrics: tuple[str, ...]
    """Names in TAPS that the program computes."""
    run: Callable[[Measured, Collection[str]], dict[str, float]]
    network: str = ""
    """Description of the network that the program runs here; empty for the program's own network."""

    @property
    def installed(self) -> bool:
        return all(find_spec(module) is not None for module in self.modules)

    @property
    def title(self) -> str:
        """Return the name, with the version if the program is installed."""
        return release(self.package)

    def measure(self, images: Measured, metrics: Collection[str]) -> dict[str, float]:
        """Compute some of `self.metrics`. Raises any error of the program."""
        where = torch.cuda.device(images.device) if images.device.type == "cuda" else nullcontext()
        with where, _without_warnings():
            return self.run(images, metrics)


def run_torch_fidelity(images: Measured, metrics: Collection[str]) -> dict[str, float]:
    """Call torch_fidelity.calculate_metrics, once for the metrics of each tap."""
    from torch_fidelity import calculate_metrics

    from evalsvc.features.torch_fidelity import write_weights

    weights = images.folders.path / "inception.pth"
    write_weights(images.tensors, weights)
    keys = {
        "fid64": "frechet_inception_distance",
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    values: dict[str, float] = {}
    for tap in sorted({TAPS[name] for name in metrics}):
        asked = {name for name in metrics if TAPS[name] == tap}
        result = calculate_metrics(
            input1=str(images.folders.sampled),
            input2=str(images.folders.real),
            fid=not asked.isdisjoint({"fid", "fid64"}),
            kid="kid" in asked,
            prc=not asked.isdisjoint({"precision", "recall"}),
            # By default, precision and recall use VGG's features, whose weights would be downloaded.
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights),
            **{f"feature_layer_{metric}": str(tap) for metric in ("fid", "kid", "prc")},
            kid_subsets=1,
            kid_subset_size=images.kid_images,
            prc_neighborhood=NEIGHBOURS,
            rng_seed=SEED,
            cuda=images.device.type == "cuda",
            batch_size=images.batch,
            cache=False,
            save_cpu_ram=True,  # reads in this process, without starting others
            verbose=False,
        )
        values |= {name: float(result[keys[name]]) for name in asked}
    return values


def run_clean_fid(images: Measured, metrics: Collection[str]) -> dict[str, float]:
    """Call cleanfid.fid.compute_fid in its mode `clean`, and kernel_distance on the features that it extracted."""
    from cleanfid import fid

    from evalsvc.features.torch_fidelity import Layers
    from evalsvc.metrics.clean_fid import seeded

    layers, values = Layers(images.tensors, images.device), dict[str, float]()
    for tap in sorted({TAPS[name] for name in metrics}):
        asked = {name for name in metrics if TAPS[name] == tap}
        network = _Seen(layers, tap)
        distance = fid.compute_fid(
            str(images.folders.sampled),
            str(images.folders.real),
            mode="clean",
            custom_feat_extractor=network,
            use_dataparallel=False,
            device=images.device,
            batch_size=images.batch,
            num_workers=0,
            verbose=False,
        )
        values |= {name: float(distance) for name in asked & {"fid64", "fid"}}
        if "kid" in asked:
            rows = np.concatenate(network.seen)
            sampled, real = images.kid_choice()
            # With all images, the order that clean-fid draws only affects the last digits.
            with seeded(SEED):
                kernel = fid.kernel_distance(
                    rows[: images.sampled][sampled], rows[images.sampled :][real], 1, KID_IMAGES
                )
            values["kid"] = float(kernel)
    return values


@dataclass
class _Seen:
    """torch-fidelity's layers in the role of clean-fid's network; keeps the features of all images.

    clean-fid's own network is a TorchScript program with the same tensors and no tap of 64 features.
    """

    layers: Callable[[Tensor, bool], dict[int, Tensor]]
    tap: int
    seen: list[Rows] = field(default_factory=list)

    def __call__(
        self,
        images: Tensor,  # [B, 3, 299, 299] float32, 0 … 255
    ) -> Tensor:  # [B, tap]
        features = self.layers((images - 128) / 128, self.tap != TAPS["fid64"])[self.tap]
        self.seen.append(features.cpu().numpy())
        return features


PROGRAMS = (
    ImageProgram("torch-fidelity", ("torch_fidelity",), "tf1-bilinear", tuple(TAPS), run_torch_fidelity),
    ImageProgram(
        "clean-fid",
        ("cleanfid", "scipy", "torch_fidelity"),
        "pil-bicubic",
        ("fid64", "fid", "kid"),
        run_clean_fid,
        "clean-fid's files, resizing and estimator around torch-fidelity's layers",
    ),
)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence warnings of the programs' own calls, which users cannot change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
