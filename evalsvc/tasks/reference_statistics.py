"""Reference statistics: features of real images with their mean and covariance, computed once and kept in files.

Of our own, the file's name is a key over all that moves them; one extractor's features at one tap are one file. Foreign
ones have a name, and no features: nobody here knows how their images were chosen and resized.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalsvc.errors import Conflict, DataDirectoryUnusable, InvalidData, InvalidRequest, UnknownName, os_reason
from evalsvc.files.atomic import replacing
from evalsvc.installation import missing_package
from evalsvc.spec.names import NAME
from evalsvc.spec.protocol import digest

try:
    import numpy as np
    from numpy.typing import NDArray
except ModuleNotFoundError:
    raise missing_package("numpy", "reference statistics") from None

FORMAT = 2
TAPS = (64, 2048)


@dataclass(frozen=True, eq=False)
class TapStatistics:
    """One tap's features as a normal distribution; what `metrics.frechet` calls a Gaussian."""

    n: int | None
    """Images; None where a foreign file does not say."""
    mean: NDArray[np.float64]  # [d]
    covariance: NDArray[np.float64]  # [d, d], the unbiased one
    features: NDArray[np.float32] | None = None  # [n, d]
    """None where only the moments are known: metrics such as KID cannot be measured then."""


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    moments: Mapping[int, TapStatistics]
    """By tap."""
    foreign: bool
    source: str
    """For people: what they were computed from."""

    @property
    def digest(self) -> str:
        """SHA-256 over the numbers, 64 hexadecimal digits: what a protocol says of a foreign reference."""
        total = hashlib.sha256()
        for tap, found in sorted(self.moments.items()):
            total.update(f"{tap} {found.n}\n".encode())
            total.update(found.mean.astype("<f8").tobytes() + found.covariance.astype("<f8").tobytes())
        return total.hexdigest()


def reference_key(*, data: str, extractor: str, tap: str, resize: str, crop: str, size: int | None) -> str:
    """Return the name of a file of our own: the digest of what its numbers depend on.

    `data` and `extractor` are digests, `tap` names the features, `crop` and `size` come before `resize`.
    """
    content = {"data": data, "extractor": extractor, "tap": tap, "resize": resize, "crop": crop, "size": size}
    return digest({"reference": FORMAT, **content})


def save_reference(statistics: ReferenceStatistics, name: str, folder: Path) -> Path:
    """Write `folder`/`name`.npz, whole or not at all. Raises DataDirectoryUnusable where that fails."""
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "foreign": statistics.foreign,
        "source": statistics.source,
        "taps": sorted(statistics.moments),
    }
    for tap, found in statistics.moments.items():
        arrays |= {f"n_{tap}": found.n or 0, f"mean_{tap}": found.mean, f"covariance_{tap}": found.covariance}
        if found.features is not None:
            arrays[f"features_{tap}"] = found.features
    path = reference_path(name, folder)
    try:
        with replacing(path) as stream:
            np.savez(stream, **arrays)
    except OSError as error:
        reason = os_reason(error)
        raise DataDirectoryUnusable(f"{path} cannot be written: {reason}; make room or change permissions") from error
    return path


def load_reference(name: str, folder: Path) -> ReferenceStatistics:
    """The statistics saved as `name`: a key, or the name of a foreign one.

    Raises:
        UnknownName: there are none of this name.
        InvalidData: the file is damaged.
    """
    path = reference_path(name, folder)
    if not path.is_file():
        known = [item.stem for item in folder.glob("*.npz")] if folder.is_dir() else []
        hint = "make one with: evalsvc reference import FILE.npz --name NAME"
        raise UnknownName.among("reference", name, known, hint)
    arrays = _read(path)
    try:
        taps = {int(tap): _tap(arrays, int(tap)) for tap in arrays["taps"]}
        statistics = ReferenceStatistics(taps, bool(arrays["foreign"]), str(arrays["source"]))
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidData(f"{path} is no file of reference statistics ({error}); delete it, it is made again") from None
    return statistics


def import_npz(path: Path, name: str, folder: Path, n: int | None = None) -> Path:
    """Take over someone else's statistics, an npz file with `mu` [d] and `sigma` [d, d], as the reference `name`.

    Raises:
        InvalidRequest: `name` is none that a reference can have.
        InvalidData: the file is not such a file, or its numbers are no mean and covariance of a tap.
        Conflict: there is another reference of this name.
        DataDirectoryUnusable: it cannot be written.
    """
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is not a name; use letters, digits, '.', '_' and '-', at most 128")
    if n is not None and n < 2:
        raise InvalidRequest(f"n is {n}; a covariance rests on at least 2 images")
    arrays = _read(path)
    for key in ("mu", "sigma"):
        if key not in arrays:
            names = ", ".join(sorted(arrays)) or "nothing"
            raise InvalidData(f"{path} has no {key!r}; it holds {names}, expected mu and sigma")
    found = _checked(str(path), n, arrays["mu"], arrays["sigma"])
    fresh = ReferenceStatistics({len(found.mean): found}, foreign=True, source=path.name)
    if reference_path(name, folder).exists() and load_reference(name, folder).digest != fresh.digest:
        raise Conflict(f"{reference_path(name, folder)} holds other numbers; choose another name, or delete it first")
    return save_reference(fresh, name, folder)


def reference_path(name: str, folder: Path) -> Path:
    """Where the reference `name` lies, or would."""
    return folder / f"{name}.npz"


def _tap(arrays: Mapping[str, Any], tap: int) -> TapStatistics:
    n = int(arrays[f"n_{tap}"]) or None
    return TapStatistics(n, arrays[f"mean_{tap}"], arrays[f"covariance_{tap}"], arrays.get(f"features_{tap}"))


def _checked(where: str, n: int | None, mean: Any, covariance: Any) -> TapStatistics:
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise InvalidData(f"{where}: mu is {mean.dtype}, sigma is {covariance.dtype}; they must be numbers")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{list(mean.shape)}, sigma {list(covariance.shape)}"
        raise InvalidData(f"{where}: mu has the shape {shapes}; they must be [d] and [d, d]")
    if len(mean) not in TAPS:
        raise InvalidData(f"{where} is of {len(mean)} features; the extractor has {' or '.join(map(str, TAPS))}")
    mu, sigma = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InvalidData(f"{where} holds NaN or infinity; compute it again")
    if not np.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-8 * float(np.abs(sigma).max())) or (np.diag(sigma) < 0).any():
        raise InvalidData(f"{where}: sigma is no covariance (not symmetric, or a negative variance)")
    return TapStatistics(n, mu, sigma)


def _read(path: Path) -> dict[str, Any]:
    """The arrays of an npz file. Pickled objects in it are refused."""
    try:
        # Opened here, since numpy leaves a file open that turns out to be none of its own.
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise InvalidData(f"{path} is one array; an npz file with mu and sigma is needed")
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InvalidData(f"{path} cannot be read as an npz file: {error}") from None
