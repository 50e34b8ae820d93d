"""Let torch-fidelity and clean-fid compute the distances in coco_smoke.json; see README.md."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from cleanfid import fid
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from smoke_images import pixel_digest, read_smoke_images, torch_fidelity_weights


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
        found = {
            f"torch-fidelity/{layer}": calculate_metrics(
                input1=folders[0],
                input2=folders[1],
                fid=True,
                feature_layer_fid=layer,
                feature_extractor_weights_path=str(weights),
                cuda=False,
                cache=False,
                save_cpu_ram=True,
                verbose=False,
            )["frechet_inception_distance"]
            for layer in ("64", "2048")
        }
        found["clean-fid/2048"] = float(
            fid.compute_fid(
                *folders,
                mode="clean",
                custom_feat_extractor=Trunk(weights),
                device=torch.device("cpu"),
                use_dataparallel=False,
                num_workers=0,
                verbose=False,
            )
        )
    content = {"pixels": pixel_digest(images, blurred), **found}
    Path(__file__).with_name("coco_smoke.json").write_text(json.dumps(content, indent=2) + "\n")


def _write(images: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
    return folder


if __name__ == "__main__":
    main()
