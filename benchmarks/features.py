"""FID's features against torch-fidelity's extractor and clean-fid's: images per second.

All sides have the same weights and the same images of 256x256 pixels, in their own way to 299x299: torch-fidelity's
bilinear inside the network, clean-fid's bicubic by PIL before it. Ours does either. Each side has the batch size of
16, 32 and 64 that suits it best, found in a first turn; then the sides take turns in one process. Features are compared
before anything is timed.

    python benchmarks/features.py [--quick]

The images are those in ../shared/golden/coco_smoke; without them, and with --quick, noise. The weights come from
`evalsvc assets pull inception`; without them, --quick draws weights of the right shapes. Prints a card, a table, the
distance from the matrix product that this machine manages, and as last line one JSON document; `ratios` has a peer's
time over ours, above 1 when ours is faster.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cleanfid.resize import build_resizer
from on_card.twins import draw_inception
from PIL import Image, ImageOps
from side_by_side import gemm_rate, interleaved, machine, medians, print_last_line, ratios, seconds
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evalsvc.assets import locate_asset
from evalsvc.config import Settings
from evalsvc.errors import AssetMissing
from evalsvc.features.inception import Inception
from evalsvc.features.inception_weights import read_inception

ROOT = Path(__file__).parents[1]
SMOKE_IMAGES = ROOT.parent / "shared" / "golden" / "coco_smoke" / "images"
SIDE = 256
OPERATIONS = 11.4e9
"""Of the convolutions for one image: two for each product and sum."""
TAP = 2048


@dataclass(frozen=True)
class Case:
    images: int
    batches: tuple[int, ...]
    repetitions: int


FULL = Case(images=64, batches=(16, 32, 64), repetitions=3)
QUICK = Case(images=2, batches=(2,), repetitions=1)

Features = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two images, once: shows that the benchmark runs")
    quick = parser.parse_args().quick
    case = QUICK if quick else FULL
    images, origin = read_images(case.images, quick)
    tensors, weights = read_weights(quick)
    sides = build(tensors)
    print(f"{case.images} images of {SIDE}x{SIDE} ({origin}), {weights}; {machine()}")
    errors = {
        "torch-fidelity": relative_error(
            sides["ours, tf1-bilinear"](images[:16]), sides["torch-fidelity"](images[:16])
        ),
        "clean-fid": relative_error(sides["ours, pil-bicubic"](images[:16]), sides["clean-fid"](images[:16])),
    }
    print(f"relative L2 error of our features: {errors}")
    best = {name: best_batch(features, images, case.batches) for name, features in sides.items()}
    runs = {name: walk(features, images, best[name]) for name, features in sides.items()}
    times = interleaved(runs, case.repetitions)
    report(medians(times), best, case.images)
    found = {
        peer: ratios({key: times[key] for key in (peer, ours)}, ours)[peer]
        for peer, ours in (("torch-fidelity", "ours, tf1-bilinear"), ("clean-fid", "ours, pil-bicubic"))
    }
    rates = {name: case.images / time for name, time in medians(times).items()}
    print_last_line("features", found, images_per_second=rates, batches=best, errors=errors)


def read_images(count: int, quick: bool) -> tuple[Tensor, str]:
    """[count, 3, 256, 256] uint8, and what they are."""
    paths = sorted(SMOKE_IMAGES.glob("*.jpg"))[:count]
    if quick or len(paths) < count:
        shape = (count, 3, SIDE, SIDE)
        return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8), "noise"
    crops = []
    for path in paths:
        with Image.open(path) as image:
            crops.append(np.asarray(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous(), "COCO photographs"


def read_weights(quick: bool) -> tuple[dict[str, Tensor], str]:
    """The network's tensors under torch-fidelity's names, and what they are."""
    try:
        return read_inception(locate_asset("inception", Settings.load().assets_path)), "published weights"
    except AssetMissing as error:
        if not quick:
            raise SystemExit(error.message) from None
        return draw_inception(), "drawn weights"


def build(tensors: Mapping[str, Tensor]) -> dict[str, Features]:
    theirs = torch_fidelitys(tensors)
    ours = Inception(tensors)
    resize = build_resizer("clean")

    def clean_fid(images: Tensor) -> Tensor:
        arrays = [resize(image.permute(1, 2, 0).numpy()) for image in images]
        # Contiguous, as clean-fid's loader makes them: channels last, the same layers are 1.6 times as fast.
        x = (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous() - 128) / 128
        for name, layer in theirs.named_children():
            x = x if name == "fc" else layer(x)
        return x.flatten(1)

    return {
        "ours, tf1-bilinear": lambda images: ours.features(images, "tf1-bilinear", (TAP,))[TAP],
        "ours, pil-bicubic": lambda images: ours.features(images, "pil-bicubic", (TAP,))[TAP],
        "torch-fidelity": lambda images: theirs(images)[0],
        "clean-fid": clean_fid,
    }


def torch_fidelitys(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Its extractor; it takes a file. clean-fid's network is the same one, as a program that is no faster."""
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in tensors
        if name.endswith("running_mean")
    }
    classifier = {"fc.weight": torch.zeros(1008, TAP), "fc.bias": torch.zeros(1008)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(dict(tensors) | counts | classifier, path)
        return FeatureExtractorInceptionV3("theirs", [str(TAP)], feature_extractor_weights_path=str(path)).eval()


def walk(features: Features, images: Tensor, batch: int) -> Callable[[], None]:
    @torch.inference_mode()
    def work() -> None:
        for part in images.split(batch):
            features(part)

    return work


def best_batch(features: Features, images: Tensor, batches: tuple[int, ...]) -> int:
    """The batch size with the least time an image; also the side's warm-up."""
    walk(features, images[: batches[0]], batches[0])()
    return min(batches, key=lambda batch: seconds(walk(features, images, batch)))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def report(times: Mapping[str, float], best: Mapping[str, int], images: int) -> None:
    ceiling = gemm_rate(torch.float32)
    print(f"{'':20} {'batch':>6} {'images/s':>9} {'GFLOP/s':>8} {'of gemm':>8}")
    for name, time in times.items():
        rate = OPERATIONS * images / time
        print(f"{name:20} {best[name]:6d} {images / time:9.1f} {rate / 1e9:8.0f} {rate / ceiling:8.2f}")
    print(f"matrix product: {ceiling / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
