"""Two folders of PNG files as input of programs for image metrics: sampled images and real ones.

Files are numbered, so that no name from a service or a data file becomes part of a path.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalsvc.data.images import read_images
from evalsvc.errors import InvalidRequest, os_reason
from evalsvc.features import FeatureExtractor
from evalsvc.spec.images import Fit
from evalsvc.tasks.text_to_image.artifacts import encode_png

READ_AT_ONCE = 32


@dataclass(frozen=True)
class ImageFolders:
    """Folders of PNG files of one size: `sampled` from a model or decoder, and `real` to compare with."""

    path: Path
    size: int
    """Height and width of every image."""

    @property
    def sampled(self) -> Path:
        return self.path / "sampled"

    @property
    def real(self) -> Path:
        return self.path / "real"

    def write(self, sampled: Iterable[Tensor], real: Iterable[Tensor]) -> tuple[int, int]:
        """Write uint8 images [3, size, size], and return their numbers."""
        return _write(self.sampled, sampled), _write(self.real, real)

    def features(
        self, folder: Path, extractor: FeatureExtractor, resize: str, taps: Collection[int]
    ) -> dict[int, NDArray[np.float32]]:  # by tap, [n, tap]
        """Extract features of the files of a folder, in the order of their numbers."""
        source = read_images(folder)
        rows: dict[int, list[NDArray[np.float32]]] = {tap: [] for tap in taps}
        for batch in source.batches(range(len(source)), Fit(self.size, "none"), READ_AT_ONCE):
            for tap, tap_features in extractor.features(batch, resize, taps).items():
                rows[tap].append(tap_features.cpu().numpy())
        return {tap: np.concatenate(parts) for tap, parts in rows.items()}

    def keep(self, folder: Path) -> None:
        """Copy both folders to `folder`, which must not exist.

        Raises:
            InvalidRequest: `folder` exists, or cannot be written.
        """
        try:
            shutil.copytree(self.path, folder)
        except (OSError, shutil.Error) as error:
            reason = os_reason(error) if isinstance(error, OSError) else str(error)
            raise InvalidRequest(f"--files: {folder} cannot be written: {reason}; choose a new folder") from None


@contextmanager
def image_folders(size: int) -> Iterator[ImageFolders]:
    """Create two empty folders, which are removed at the end.

    The programs run on these folders, not on `--files`: clean-fid treats a path that holds `.zip` as an archive, one
    that holds `.npy` as an array, and one that holds brackets as a pattern.
    """
    with TemporaryDirectory(prefix="evalsvc-verify-") as folder:
        yield ImageFolders(Path(folder), size)


def _write(folder: Path, images: Iterable[Tensor]) -> int:
    folder.mkdir()
    count = 0
    for image in images:
        (folder / f"{count:06d}.png").write_bytes(encode_png(image))
        count += 1
    return count
