"""Inception features of the smoke images, and others' distances, in coco_smoke_features.npz; see README.md."""

import sys
from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import frechet_distance
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from evalsvc.features import load_extractor

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from smoke_images import read_smoke_images

TAPS = (64, 2048)


def distances(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    statistics = [fid_features_to_statistics(torch.tensor(side)) for side in (first, second)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    clean = frechet_distance(*(statistic[key] for statistic in statistics for key in ("mu", "sigma")))
    return {"torch_fidelity_2048": np.array(theirs), "clean_fid_2048": np.array(clean)}


def main() -> None:
    extractor = load_extractor("inception", sys.argv[2])
    kept: dict[str, np.ndarray] = {}
    for name, images in zip(("images", "blurred"), read_smoke_images(Path(sys.argv[1])), strict=True):
        parts = [extractor.features(part, "pil-bicubic", TAPS) for part in torch.split(images, 17)]
        for tap in TAPS:
            kept[f"{name}_{tap}"] = torch.cat([part[tap] for part in parts]).numpy().astype(np.float16)
    kept |= distances(kept["blurred_2048"].astype(np.float32), kept["images_2048"].astype(np.float32))
    np.savez_compressed(Path(__file__).with_name("coco_smoke_features.npz"), **kept)


if __name__ == "__main__":
    main()
