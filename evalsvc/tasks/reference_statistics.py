"""Reference statistics: features of real images with their mean and covariance, computed once and kept in files.

Of our own, the files' name is a key over all that moves them; one extractor's features at one tap have one key, with a
file of moments and a file of features, since most metrics need the moments alone. Foreign ones have a name, and no
features: nobody here knows how their images were chosen and resized.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from evalsvc.errors import Conflict, DataDirectoryUnusable, InvalidData, InvalidRequest, UnknownName, os_reason
from evalsvc.files.atomic import replacing
from evalsvc.files.kept import DIGEST_NAME, KeptFileLost, KeptFiles, KeptFolder
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

FOREIGN = ("mu", "sigma")
"""Members of a foreign file that are read."""

FOREIGN_BYTES = 16 * (max(TAPS) + 1) ** 2
"""Limit of each of them, in bytes: what a compressed file expands to is anybody's guess."""

Arrays = dict[str, NDArray[np.generic]]
"""Members of an npz file, by name."""


@dataclass(frozen=True, eq=False)
class TapStatistics:
    """One tap's features as a normal distribution; what `metrics.frechet` calls a Gaussian."""

    n: int | None
    """Images; None where a foreign file does not say."""
    mean: NDArray[np.float64]  # [d]
    covariance: NDArray[np.float64]  # [d, d], the unbiased one
    features: NDArray[np.float32] | None = None  # [n, d]
    """None where only the moments are known or asked for: metrics such as KID cannot be measured then."""


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
    """Return the name of files of our own: the digest of what their numbers depend on.

    `data` and `extractor` are digests, `tap` names the features, `crop` and `size` come before `resize`.
    """
    content = {"data": data, "extractor": extractor, "tap": tap, "resize": resize, "crop": crop, "size": size}
    return digest({"reference": FORMAT, **content})


def is_known(names: Collection[str], key: str, *, rows: bool) -> bool:
    """Tell whether kept files of these names hold what `load_tap` loads."""
    return _files_of(names, key, rows=rows) <= set(names)


def keep_tap(files: KeptFiles, key: str, found: TapStatistics, source: str) -> None:
    """Keep a tap's statistics, its features first. Raises DataDirectoryUnusable where a file cannot be written."""
    tap = len(found.mean)
    if found.features is not None:
        features: dict[str, ArrayLike] = {f"features_{tap}": found.features}
        files.keep(f"{key}.features.npz", lambda stream: _save(stream, features))
    moments = _arrays(ReferenceStatistics({tap: found}, foreign=False, source=source))
    files.keep(f"{key}.moments.npz", lambda stream: _save(stream, moments))


def load_tap(files: KeptFiles, key: str, *, rows: bool) -> TapStatistics:
    """Load a tap's statistics, with its features where `rows` is set. Raises KeptFileLost for a lost or bad file."""
    arrays: Arrays = {}
    try:
        for name in sorted(_files_of(files.names(), key, rows=rows)):
            with files.open(name) as stream:
                arrays |= _read(stream, name, rows=rows)
        [tap] = arrays["taps"].tolist()
        found = _tap(arrays, int(tap))
    except (InvalidData, OSError, KeyError, ValueError, TypeError) as error:
        raise KeptFileLost(f"the reference statistics {key} are damaged: {error}") from None
    if rows and found.features is None:
        raise KeptFileLost(f"the reference statistics {key} have no features")
    return found


def _files_of(names: Collection[str], key: str, *, rows: bool) -> set[str]:
    """The files with the statistics of a key. Earlier versions wrote one file with all of them."""
    if f"{key}.npz" in names:
        return {f"{key}.npz"}
    return {f"{key}.moments.npz"} | ({f"{key}.features.npz"} if rows else set())


def load_reference(name: str, files: KeptFiles) -> ReferenceStatistics:
    """Load the statistics that were imported as `name`.

    Raises:
        UnknownName: there are none of this name.
        InvalidData: the file is damaged.
    """
    names = files.names()
    if f"{name}.npz" not in names:
        imported = [item.removesuffix(".npz") for item in names if not DIGEST_NAME.fullmatch(item)]
        hint = "make one with: evalsvc reference import FILE.npz --name NAME"
        raise UnknownName.among("reference", name, imported, hint)
    try:
        with files.open(f"{name}.npz") as stream:
            arrays = _read(stream, f"{name}.npz", rows=False)
        taps = {int(tap): _tap(arrays, int(tap)) for tap in arrays["taps"].tolist()}
        return ReferenceStatistics(taps, bool(arrays["foreign"]), str(arrays["source"]))
    except (KeptFileLost, KeyError, ValueError, TypeError) as error:
        raise InvalidData(f"{name}.npz is no file of reference statistics ({error}); import it again") from None


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
    found = _read_foreign(path, n)
    fresh = ReferenceStatistics({len(found.mean): found}, foreign=True, source=path.name)
    target = folder / f"{name}.npz"
    if target.exists() and load_reference(name, KeptFolder(folder)).digest != fresh.digest:
        raise Conflict(f"{target} holds other numbers; choose another name, or delete it first")
    try:
        with replacing(target) as stream:
            _save(stream, _arrays(fresh))
    except OSError as error:
        reason = os_reason(error)
        raise DataDirectoryUnusable(f"{target} cannot be written: {reason}; make room or change permissions") from error
    return target


def _read_foreign(path: Path, n: int | None) -> TapStatistics:
    try:
        # Opened here, since numpy leaves a file open that turns out to be none of its own.
        with path.open("rb") as stream:
            arrays = _read(stream, str(path), FOREIGN)
    except OSError as error:
        raise InvalidData(f"{path} cannot be read as an npz file: {os_reason(error)}") from None
    return _checked(str(path), n, arrays["mu"], arrays["sigma"])


def _arrays(statistics: ReferenceStatistics) -> dict[str, ArrayLike]:
    """The members of a file of moments."""
    arrays: dict[str, ArrayLike] = {
        "format": FORMAT,
        "foreign": statistics.foreign,
        "source": statistics.source,
        "taps": sorted(statistics.moments),
    }
    for tap, found in statistics.moments.items():
        arrays |= {f"n_{tap}": found.n or 0, f"mean_{tap}": found.mean, f"covariance_{tap}": found.covariance}
    return arrays


def _save(stream: BinaryIO, arrays: Mapping[str, ArrayLike]) -> None:
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # its types take every name for `allow_pickle`


def _tap(arrays: Arrays, tap: int) -> TapStatistics:
    features = arrays.get(f"features_{tap}")
    return TapStatistics(
        int(arrays[f"n_{tap}"]) or None,
        arrays[f"mean_{tap}"].astype(np.float64, copy=False),
        arrays[f"covariance_{tap}"].astype(np.float64, copy=False),
        None if features is None else features.astype(np.float32, copy=False),
    )


def _checked(where: str, n: int | None, mean: NDArray[np.generic], covariance: NDArray[np.generic]) -> TapStatistics:
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


def _read(stream: BinaryIO, where: str, members: Collection[str] | None = None, *, rows: bool = False) -> Arrays:
    """Read `members` of an npz file [all but features; those too where `rows` is set]. Pickled objects are refused.

    Raises InvalidData for another file, a damaged one, a member that is missing, or one of `members` that is too large.
    """
    try:
        content = np.load(stream, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise InvalidData(f"{where} is one array; an npz file with mu and sigma is needed")
        for name in members or ():
            if name not in content.files:
                names = ", ".join(sorted(content.files)) or "nothing"
                raise InvalidData(f"{where} has no {name!r}; it holds {names}, expected {' and '.join(FOREIGN)}")
            size = content.zip.getinfo(f"{name}.npy").file_size
            if size > FOREIGN_BYTES:
                raise InvalidData(f"{where}: {name} has {size:,} bytes; statistics have at most {FOREIGN_BYTES:,}")
        read = members or [name for name in content.files if rows or not name.startswith("features_")]
        return {name: content[name] for name in read}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InvalidData(f"{where} cannot be read as an npz file: {error}") from None
