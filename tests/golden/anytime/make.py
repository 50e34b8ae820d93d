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
from evalsvc.files.arrays import unpack_array
from evalsvc.miniature import ROOT

sys.path.append(str(Path(__file__).parents[2] / "support"))

from miniature_run import DECODER, LAYOUT
from task_runs import run_stage

PROMPTS = 256

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
    posted = CheckpointRef(path=str(ROOT / "runs" / checkpoint), layout=LAYOUT, label=checkpoint)
    files = {"captions": "captions.jsonl", "reference": "images.safetensors"}
    task: dict[str, Any] = {name: str(ROOT / file) for name, file in files.items()}
    task |= {"kind": "text_to_image", "samples": PROMPTS, "decoder": DECODER, "metrics": ["fid64"]}
    task |= {"batch": 64, "shard_size": PROMPTS, "keep": 0}
    drawn, real = [], []
    for seed in seeds:
        for shard in run_stage("plan", posted, seed=seed, **task).shards:
            output = msgpack.unpackb(run_stage("run", posted, None, [shard], seed=seed, **task))
            features = unpack_array(output["features"]["inception/64"]).astype(np.float16)
            if shard["part"] == "sample":
                drawn.append(features)
            elif seed == seeds[0]:
                real.append(features)
    return np.stack(drawn, axis=1), np.concatenate(real)


if __name__ == "__main__":
    main()
