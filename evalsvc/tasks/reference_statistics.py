"""Reference statistics: features of real images, and their means and covariances, computed once and kept in files.

The names of computed files are keys over everything that affects them. The features of one extractor at one tap have
one key, with a file of moments and a file of features, because most metrics need moments only. Imported statistics have
a name and no features, because the selection and resizing of their images are unknown.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from evalsvc.errors import Conflict, DataDirectoryUnusable, InvalidData, InvalidRequest, UnknownName, os_reason
from evalsvc.files.atomic import FOR_GROUP, FileLost, replacing
from evalsvc.files.kept import DIGEST_NAME, KeptFolder
from evalsvc.installation import missing_package
from evalsvc.spec.names import NAME
from evalsvc.spec.protocol import digest

try:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
except ModuleNotFoundError:
    raise missing_package("numpy", "reference statistics") from None

FORMAT = 2
TAPS = (64, 2048)
SPATIAL_TAP = 2023

FOREIGN = ("mu", "sigma")
"""Members of a foreign file that are read: mean and covariance."""
SPATIAL = ("mu_s", "sigma_s")
"""Members of a foreign file that may be absent: mean and covariance of the features of sFID."""

FOREIGN_BYTES = 16 * (max(TAPS) + 1) ** 2
"""Maximum size in bytes of each of these members, because a compressed file may expand to any size."""

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class TapStatistics:
    """The features of one tap as a normal distribution; `metrics.frechet` calls it a Gaussian."""

    n: int | None
    mean: NDArray[np.float64]  # [d]
    covariance: NDArray[np.float64]  # [d, d], the unbiased one
    features: NDArray[np.float32] | None = None  # [n, d]
    """Features; None if only the moments are known or loaded. Metrics such as KID then cannot be measured."""


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    moments: Mapping[int, TapStatistics]
    foreign: bool
    source: str
    images: bool = False
    """Whether the reference has images too, or instead."""

    def by_key(self) -> dict[str, TapStatistics]:
        """Return the moments by the features' keys in metrics."""
        return {f"inception/{tap}": moments for tap, moments in self.moments.items()}

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the numbers, 64 hexadecimal digits, for the protocol of a reference with moments."""
        total = hashlib.sha256()
        for tap, statistics in sorted(self.moments.items()):
            total.update(f"{tap} {statistics.n}\n".encode())
            total.update(statistics.mean.astype("<f8").tobytes() + statistics.covariance.astype("<f8").tobytes())
        return total.hexdigest()


def reference_key(*, data: str, extractor: str, tap: str, resize: str, crop: str, size: int | None) -> str:
    """Return the name of computed files, the digest of everything that their numbers depend on. `data` and `extractor`
    are digests, `tap` names the features; `crop` and `size` are applied before `resize`."""
    content = {"data": data, "extractor": extractor, "tap": tap, "resize": resize, "crop": crop, "size": size}
    return digest({"reference": FORMAT, **content})


def is_known(names: Collection[str], key: str, *, rows: bool) -> bool:
    """Return whether kept files with these names hold what `load_tap` loads."""
    return _files_of(key, rows=rows) <= set(names)


def keep_tap(files: KeptFolder, key: str, statistics: TapStatistics, source: str) -> None:
    tap = len(statistics.mean)
    if statistics.features is not None:
        features: dict[str, ArrayLike] = {f"features_{tap}": statistics.features}
        files.keep(f"{key}.features.npz", lambda stream: _save(stream, features))
    moments = _arrays(ReferenceStatistics({tap: statistics}, foreign=False, source=source))
    files.keep(f"{key}.moments.npz", lambda stream: _save(stream, moments))


def load_tap(files: KeptFolder, key: str, *, rows: bool) -> TapStatistics:
    arrays: Arrays = {}
    try:
        for name in sorted(_files_of(key, rows=rows)):
            with files.open(name) as stream:
                arrays |= _read(stream, name, rows=rows)
        [tap] = arrays["taps"].tolist()
        statistics = _tap(arrays, int(tap))
    except (InvalidData, OSError, KeyError, ValueError, TypeError) as error:
        raise FileLost(f"the reference statistics {key} are damaged: {error}") from None
    if rows and statistics.features is None:
        raise FileLost(f"the reference statistics {key} have no features")
    return statistics


def _files_of(key: str, *, rows: bool) -> set[str]:
    return {f"{key}.moments.npz"} | ({f"{key}.features.npz"} if rows else set())


def load_reference(name: str, files: KeptFolder) -> ReferenceStatistics:
    """Load the statistics that were imported as `name`."""
    names = files.names()
    if f"{name}.npz" not in names:
        imported = [item.removesuffix(".npz") for item in names if not DIGEST_NAME.fullmatch(item)]
        hint = (
            f"for a folder of images, write its path with a slash: ./{name}; import statistics with: evalsvc reference "
            "import FILE.npz --name NAME"
        )
        raise UnknownName.among("reference", name, imported, hint)
    try:
        with files.open(f"{name}.npz") as stream:
            arrays = _read(stream, f"{name}.npz", rows=False)
        taps = {int(tap): _tap(arrays, int(tap)) for tap in arrays["taps"].tolist()}
        return ReferenceStatistics(taps, bool(arrays["foreign"]), str(arrays["source"]))
    except (FileLost, KeyError, ValueError, TypeError) as error:
        raise InvalidData(f"{name}.npz is not a file of reference statistics ({error}); import it again") from None


def foreign_statistics(stream: BinaryIO, where: str, n: int | None = None) -> ReferenceStatistics:
    """Read the moments in an .npz file of another program."""
    arrays = _read(stream, where, FOREIGN)
    moments = [_checked(where, n, arrays["mu"], arrays["sigma"], TAPS)]
    if SPATIAL[0] in arrays:
        moments.append(_checked(f"{where}, mu_s", n, arrays["mu_s"], arrays["sigma_s"], [SPATIAL_TAP]))
    return ReferenceStatistics({len(each.mean): each for each in moments}, foreign=True, source=Path(where).name)


def import_npz(path: Path, name: str, folder: Path, n: int | None = None) -> Path:
    """Import foreign statistics, an npz file with `mu` [d] and `sigma` [d, d], as the reference `name`; also `mu_s` and
    `sigma_s`, if the file holds these."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is not a name; use letters, digits, '.', '_' and '-', at most 128")
    if n is not None and n < 2:
        raise InvalidRequest(f"n is {n}; a covariance needs at least 2 images")
    try:
        # Open the file here, because numpy leaves a file open that turns out to be invalid.
        with path.open("rb") as opened:
            fresh = foreign_statistics(opened, str(path), n)
    except OSError as error:
        raise InvalidData(f"{path} cannot be read as an npz file: {os_reason(error)}; check the file") from None
    target = folder / f"{name}.npz"
    if target.exists() and load_reference(name, KeptFolder(folder)).digest != fresh.digest:
        raise Conflict(f"{target} holds other numbers; choose another name, or delete it first")
    try:
        with replacing(target, mode=FOR_GROUP) as stream:
            _save(stream, _arrays(fresh))
    except OSError as error:
        words = f"{target} cannot be written: {os_reason(error)}; free disk space, or change permissions"
        raise DataDirectoryUnusable(words) from error
    return target


def _arrays(statistics: ReferenceStatistics) -> dict[str, ArrayLike]:
    arrays: dict[str, ArrayLike] = {"format": FORMAT, "foreign": statistics.foreign, "source": statistics.source}
    arrays["taps"] = sorted(statistics.moments)
    for tap, moments in statistics.moments.items():
        arrays |= {f"n_{tap}": moments.n or 0, f"mean_{tap}": moments.mean, f"covariance_{tap}": moments.covariance}
    return arrays


def _save(stream: BinaryIO, arrays: Mapping[str, ArrayLike]) -> None:
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's types read every name as `allow_pickle`


def _tap(arrays: Arrays, tap: int) -> TapStatistics:
    features = arrays.get(f"features_{tap}")
    return TapStatistics(
        int(arrays[f"n_{tap}"]) or None,
        arrays[f"mean_{tap}"].astype(np.float64, copy=False),
        arrays[f"covariance_{tap}"].astype(np.float64, copy=False),
        None if features is None else features.astype(np.float32, copy=False),
    )


def _checked(
    where: str, n: int | None, mean: NDArray[np.generic], covariance: NDArray[np.generic], taps: Collection[int]
) -> TapStatistics:
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise InvalidData(f"{where}: mu is {mean.dtype}, sigma is {covariance.dtype}; they must be numbers")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{list(mean.shape)}, sigma {list(covariance.shape)}"
        raise InvalidData(f"{where}: mu has the shape {shapes}; they must be [d] and [d, d]")
    if len(mean) not in taps:
        raise InvalidData(f"{where} is of {len(mean)} features; the extractor has {' or '.join(map(str, taps))}")
    mu, sigma = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InvalidData(f"{where} holds NaN or infinity; compute the statistics again")
    if not np.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-8 * float(np.abs(sigma).max())) or (np.diag(sigma) < 0).any():
        raise InvalidData(
            f"{where}: sigma is not a covariance (not symmetric, or a negative variance); compute the statistics again"
        )
    return TapStatistics(n, mu, sigma)


def _read(stream: BinaryIO, where: str, members: Collection[str] | None = None, *, rows: bool = False) -> Arrays:
    """Read `members` of an npz file, and SPATIAL if there are any [all but features; with `rows`, features too].

    Pickled objects are refused.
    """
    try:
        content = np.load(stream, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise InvalidData(f"{where} is a single array; use an npz file with mu and sigma")
        if members and not set(SPATIAL).isdisjoint(content.files):
            members = [*members, *SPATIAL]
        for name in members or ():
            if name not in content.files:
                names = ", ".join(sorted(content.files)) or "nothing"
                raise InvalidData(f"{where} has no {name!r}; it holds {names}, expected {' and '.join(FOREIGN)}")
            size = content.zip.getinfo(f"{name}.npy").file_size
            if size > FOREIGN_BYTES:
                raise InvalidData(f"{where}: {name} has {size:,} bytes; statistics have at most {FOREIGN_BYTES:,}")
        read = members or [name for name in content.files if rows or not name.startswith("features_")]
        return {name: content[name] for name in read}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, MemoryError) as error:
        raise InvalidData(f"{where} cannot be read as an npz file ({error}); check the file") from None
