"""FID's Inception network, from any of its published files to safetensors."""

from __future__ import annotations

from pathlib import Path

from evalsvc.assets.catalog import Asset
from evalsvc.errors import AssetCorrupt, CheckpointError
from evalsvc.installation import missing_package


def write_inception(asset: Asset, path: Path, target: Path) -> None:
    """Write the tensors in `path` as safetensors, which load quickly and run no code.

    Raises:
        AssetCorrupt: the file cannot be read, or holds other weights.
        MissingPackage: torch is not installed.
    """
    # PyTorch is only installed with workers; without it, assets that need no conversion can still be pulled.
    try:
        from safetensors.torch import save_file

        from evalsvc.checkpoints.tensors import tensor_digest
        from evalsvc.features.inception_weights import read_inception, trunk
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "torch", f"the asset {asset.name}") from None
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
