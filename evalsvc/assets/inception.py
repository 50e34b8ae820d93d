"""FID's Inception network, from any of its published files to safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from evalsvc.assets.catalog import Asset
from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import AssetCorrupt, CheckpointError
from evalsvc.features.inception_weights import read_inception, trunk


def write_inception(asset: Asset, path: Path, target: Path) -> None:
    """Write the tensors in `path` as safetensors, which load quickly and run no code."""
    try:
        tensors = read_inception(path)
    except CheckpointError as error:
        raise AssetCorrupt(error.message) from error
    if (digest := tensor_digest(trunk(tensors))) != asset.tensors:
        raise AssetCorrupt(
            f"{path} holds other weights than {asset.name}: the digest of its tensors is {digest}, expected "
            f"{asset.tensors}; FIDs would be wrong; pull the asset again"
        )
    save_file(tensors, target)
