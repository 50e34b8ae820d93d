"""Sample the features in features.npz from the bundled run; see README.md. About ten minutes on one core.

python tests/golden/anytime/make.py ASSETS     # the folder that `inception` was pulled into
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.files.arrays import unpack_array
from evalsvc.messages import ShardRequest
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import parse_suite
from evalsvc.worker.shard import run_shard

PROMPTS = 256
KEY = "inception/64"

Features = NDArray[np.float16]


def main() -> None:
    os.environ["EVALSVC_ASSETS"] = sys.argv[1]
    with tempfile.TemporaryDirectory() as data:
        os.environ["EVALSVC_DATA_DIR"] = data
        same, reference = _sample("pretrained/checkpoints/epoch_5.pt", range(16))
        one, _ = _sample("pretrained/checkpoints/epoch_4.pt", range(8))
        other, _ = _sample("random-init/checkpoints/epoch_4.pt", range(8))
    target = Path(__file__).parent / "features.npz"
    np.savez_compressed(target, same=same, one=one, other=other, reference=reference)


def _sample(checkpoint: str, seeds: range) -> tuple[Features, Features]:
    """Features of the images of each prompt and seed, [PROMPTS, seeds, 64], and of the reference, [m, 64]."""
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
    posted = CheckpointRef(path=str(ROOT / "runs" / checkpoint), layout=layout, label=checkpoint)
    drawn, real = [], []
    for seed in seeds:
        task: dict[str, Any] = {
            "kind": "text_to_image",
            "captions": str(ROOT / "captions.jsonl"),
            "samples": PROMPTS,
            "seed": seed,
            "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
            "reference": str(ROOT / "images.safetensors"),
            "metrics": ["fid64"],
            "batch": 64,
            "shard_size": PROMPTS,
            "keep": 0,
        }
        (spec,) = parse_suite({"tasks": [task]}, "pool").tasks
        for shard in _output(ShardRequest(spec, "plan", posted)).shards:
            output = msgpack.unpackb(_output(ShardRequest(spec, "run", posted, [shard])))
            features = unpack_array(output["features"][KEY]).astype(np.float16)
            if shard["part"] == "sample":
                drawn.append(features)
            elif seed == seeds[0]:
                real.append(features)
    return np.stack(drawn, axis=1), np.concatenate(real)


def _output(request: ShardRequest) -> Any:
    result = run_shard(request, lambda done: None, Settings.load())
    assert result.error is None, result.error
    return result.output


if __name__ == "__main__":
    main()
