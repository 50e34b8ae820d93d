"""Image decoders by the names that tasks and commands give them: assets, files and folders."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from evalsvc.assets import locate_asset
from evalsvc.checkpoints.opening import opened_weights
from evalsvc.config import Settings
from evalsvc.decoders import ImageDecoder, load_decoder
from evalsvc.decoders.config import DEFAULT_FILES
from evalsvc.files.opened import Allow, anywhere
from evalsvc.spec.paths import Readable, local_data


@dataclass(frozen=True)
class DecoderFile:
    """Weights of an image decoder that these settings may read, not loaded yet."""

    path: Path
    config: str | None
    """Registered name or path of the configuration; None for the one next to the weights."""
    allow: Allow
    """Rule for reading the weights. The operator's own folder of assets may contain links."""
    allow_config: Allow
    """Rule for reading the configuration."""

    def load(self, ema: bool, dtype: str, device: str) -> ImageDecoder:
        """Load the decoder; see `load_decoder`."""
        with ExitStack() as stack:
            pinned = stack.enter_context(opened_weights(self.path, self.allow, DEFAULT_FILES))
            config = self.config
            if config is not None and "/" in config:
                config = str(stack.enter_context(opened_weights(Path(config), self.allow_config)))
            return load_decoder(pinned, config, ema, dtype=dtype, device=device)


def find_decoder(settings: Settings, name: str, config: str | None) -> DecoderFile:
    """Locate the decoder `name`: an asset, or a path if the name has a slash; `config` is the same, or None.

    Raises UnknownName, AssetMissing and AssetCorrupt for an asset, and InvalidData for a path outside the roots.
    """
    readable = Readable(settings)
    if config is not None and "/" in config:
        config = local_data(settings, config)
    if "/" in name:
        return DecoderFile(Path(local_data(settings, name)), config, readable, readable)
    path = locate_asset(name, settings.assets_path)
    if config is None and not path.is_dir():
        config = name  # the configuration is registered under the asset's name; a folder has its own
    return DecoderFile(path, config, anywhere, readable)
