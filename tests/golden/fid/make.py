"""Let torch-fidelity and clean-fid compute their distances of the smoke images; see README.md."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from evalsvc.features import load_extractor

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from smoke_images import pixel_digest, read_smoke_images, torch_fidelity_weights

TAPS = (64, 2048)


class Trunk(nn.Module):
    """What clean-fid calls with resized images in 0 … 255: the network of torch-fidelity behind its own resize."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self._network = FeatureExtractorInceptionV3("trunk", ["2048"], feature_extractor_weights_path=str(weights))

    def forward(self, images: Tensor) -> Tensor:
        network = self._network
        x = (images - 128) / 128
        for name, module in network.named_children():
            if name != "fc":
                x = module(x)
        return x.flatten(1)


def main() -> None:
    images, blurred = read_smoke_images(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as temporary:
        weights = torch_fidelity_weights(Path(sys.argv[2]), Path(temporary) / "inception.pth")
        folders = [str(_write(batch, Path(temporary) / name)) for name, batch in (("a", images), ("b", blurred))]
        options = {"fid": True, "cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}
        options |= {"input1": folders[0], "input2": folders[1], "feature_extractor_weights_path": str(weights)}
        found = {
            f"torch-fidelity/{tap}": calculate_metrics(feature_layer_fid=str(tap), **options)[
                "frechet_inception_distance"
            ]
            for tap in TAPS
        }
        options = {"device": torch.device("cpu"), "use_dataparallel": False, "num_workers": 0, "verbose": False}
        clean = fid.compute_fid(*folders, mode="clean", custom_feat_extractor=Trunk(weights), **options)
    found["clean-fid/2048"] = float(clean)
    content = {"pixels": pixel_digest(images, blurred), **found}
    Path(__file__).with_name("coco_smoke.json").write_text(json.dumps(content, indent=2) + "\n")
    write_features(images, blurred)


def write_features(images: Tensor, blurred: Tensor) -> None:
    extractor = load_extractor("inception", sys.argv[2])
    kept: dict[str, np.ndarray] = {}
    for name, batch in (("images", images), ("blurred", blurred)):
        parts = [extractor.features(part, "pil-bicubic", TAPS) for part in torch.split(batch, 17)]
        for tap in TAPS:
            kept[f"{name}_{tap}"] = torch.cat([part[tap] for part in parts]).numpy().astype(np.float16)
    kept |= distances(kept["blurred_2048"].astype(np.float32), kept["images_2048"].astype(np.float32))
    np.savez_compressed(Path(__file__).with_name("coco_smoke_features.npz"), **kept)


def distances(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    statistics = [fid_features_to_statistics(torch.tensor(side)) for side in (first, second)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    clean = fid.frechet_distance(*(statistic[key] for statistic in statistics for key in ("mu", "sigma")))
    return {"torch_fidelity_2048": np.array(theirs), "clean_fid_2048": np.array(clean)}


def _write(images: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
    return folder


if __name__ == "__main__":
    main()
