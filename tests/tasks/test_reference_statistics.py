"""Statistics of reference images: what is saved comes back, and what is foreign is checked and marked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalsvc.errors import Conflict, DataChanged, DataDirectoryUnusable, InvalidData, InvalidRequest, UnknownName
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import KeptFolder
from evalsvc.metrics.frechet import Moments
from evalsvc.spec.images import Fit
from evalsvc.tasks.image_reference import ReferenceIdentity, read_reference
from evalsvc.tasks.reference_statistics import (
    ReferenceStatistics,
    TapStatistics,
    import_npz,
    is_known,
    keep_tap,
    load_reference,
    load_tap,
    reference_key,
)

PARTS: dict[str, Any] = {"data": "d", "extractor": "e", "tap": "64", "resize": "pil-bicubic", "crop": "centre"}
KEY = reference_key(**PARTS, size=256)
ROWS = np.random.default_rng(1).normal(size=(100, 64)).astype(np.float32)
EXPECTED = Moments.of(ROWS)
OWN = TapStatistics(EXPECTED.n, EXPECTED.mean, EXPECTED.covariance, ROWS)


def check(found: TapStatistics, *, rows: bool) -> None:
    """The last bit is the same; features are hundreds of megabytes if nobody asked for them."""
    assert found.n == 100
    np.testing.assert_array_equal(found.mean, EXPECTED.mean)
    np.testing.assert_array_equal(found.covariance, EXPECTED.covariance)
    assert (found.features is None) != rows
    if rows:
        assert found.features.dtype == np.float32
        np.testing.assert_array_equal(found.features, ROWS)


@pytest.mark.parametrize("rows", [True, False])
def test_moments_come_back_and_features_where_they_are_asked_for(tmp_path: Path, rows: bool) -> None:
    files = KeptFolder(tmp_path / "statistics")
    assert not is_known(files.names(), KEY, rows=rows)
    keep_tap(files, KEY, OWN, "images")
    assert is_known(files.names(), KEY, rows=rows)
    check(load_tap(files, KEY, rows=rows), rows=rows)
    other = reference_key(**PARTS, size=None)
    keep_tap(files, other, replace(OWN, features=None), "images")
    assert is_known(files.names(), other, rows=rows) != rows, "without features, where none are needed"


def test_everything_that_moves_it_is_in_the_key_which_is_that_of_the_version_before() -> None:
    assert KEY == "693eda3585f76db41dce990a33aeed12933209d016f9891f7dc2e27998860b05"
    others = [reference_key(**PARTS | {name: "x"}, size=256) for name in PARTS]
    assert len({KEY, reference_key(**PARTS, size=None), *others}) == 7


@pytest.mark.parametrize("part", ["moments", "features"])
@pytest.mark.parametrize("damage", ["cut", "changed", "another"])
def test_a_damaged_file_is_never_read_as_other_numbers(tmp_path: Path, part: str, damage: str) -> None:
    files = KeptFolder(tmp_path)
    keep_tap(files, KEY, OWN, "images")
    path = tmp_path / f"{KEY}.{part}.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= damage == "changed"
    path.write_bytes(content[:-200] if damage == "cut" else content)
    if damage == "another":
        np.savez(path, mu=np.zeros(64))
    with pytest.raises(FileLost):
        load_tap(files, KEY, rows=True)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataDirectoryUnusable, match="no space left on device"):
        keep_tap(KeptFolder(tmp_path), KEY, OWN, "images")
    assert list(tmp_path.iterdir()) == []


# imported statistics


def foreign(path: Path, **arrays: Any) -> Path:
    """A file of statistics, of 64 zeros and ones if nothing else is given."""
    np.savez_compressed(path, **arrays or {"mu": np.zeros(64, np.float32), "sigma": np.eye(64)})
    return path


def test_imported_statistics_are_marked(tmp_path: Path) -> None:
    """What is not read may be large."""
    more = {"rows": np.zeros((2100, 4200))}
    source = foreign(tmp_path / "x.npz", mu=ROWS.mean(0), sigma=np.cov(ROWS, rowvar=False), **more)
    for name, n in (("theirs", None), ("more", 30_000)):
        import_npz(source, name, tmp_path / "statistics", n=n)
        found = load_reference(name, KeptFolder(tmp_path / "statistics"))
        assert (found.foreign, found.source, found.moments[64].n) == (True, "x.npz", n)
        np.testing.assert_array_equal(found.moments[64].mean, ROWS.mean(0))
    other, files = ReferenceIdentity("0" * 64, None, None), KeptFolder(tmp_path / "statistics")
    with pytest.raises(DataChanged, match="the reference 'more' has changed since this evaluation was planned"):
        read_reference(files, "more", other, {}, (), dict, load_reference("more", files))


def test_spatial_moments_are_imported_too(tmp_path: Path) -> None:
    spatial = {"mu_s": np.ones(2023), "sigma_s": np.eye(2023, dtype=np.float32)}
    import_npz(foreign(tmp_path / "x.npz", mu=np.zeros(2048), sigma=np.eye(2048), **spatial), "adm", tmp_path)
    assert {tap: each.mean.sum() for tap, each in load_reference("adm", KeptFolder(tmp_path)).moments.items()} == {
        2048: 0,
        2023: 2023,
    }


def test_a_reference_that_is_not_there(tmp_path: Path) -> None:
    """Names of evalsvc's own files are keys, which nobody means."""
    import_npz(foreign(tmp_path / "x.npz"), "coco", tmp_path / "statistics")
    (tmp_path / "statistics" / f"{'ab' * 32}.moments.npz").touch()
    with pytest.raises(UnknownName, match=r"did you mean 'coco'\? available: coco; .*evalsvc reference import"):
        load_reference("cocoo", KeptFolder(tmp_path / "statistics"))
    with pytest.raises(UnknownName, match=r"for a folder of images, write its path with a slash: \./ref70; import"):
        load_reference("ref70", KeptFolder(tmp_path))
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
    foreign(tmp_path / "b.npz", mu=np.zeros(64))
    for name, words in (("a", "cannot be read as an npz file"), ("b", "not a file of reference statistics")):
        with pytest.raises(InvalidData, match=words):
            load_reference(name, KeptFolder(tmp_path))


def test_what_is_there_is_neither_replaced_nor_in_the_way(tmp_path: Path) -> None:
    source = foreign(tmp_path / "x.npz")
    for _ in range(2):
        import_npz(source, "theirs", tmp_path)
    with pytest.raises(Conflict, match="holds other numbers"):
        import_npz(foreign(tmp_path / "y.npz", mu=np.ones(64), sigma=np.eye(64)), "theirs", tmp_path)
    with pytest.raises(DataDirectoryUnusable, match="cannot be written"):
        import_npz(source, "a", source / "statistics")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(64)}, "has no 'sigma'; it holds mu, expected mu and sigma"),
        ({"mu": np.zeros(64), "sigma": np.eye(65)}, r"mu has the shape \[64\], sigma \[65, 65\]"),
        ({"mu": np.zeros(10), "sigma": np.eye(10)}, "is of 10 features; the extractor has 64 or 2048"),
        ({"mu": np.zeros(2023), "sigma": np.eye(2023)}, "is of 2023 features; the extractor has 64 or 2048"),
        ({"mu": np.zeros(64), "sigma": np.eye(64), "mu_s": np.zeros(64)}, "has no 'sigma_s'"),
        (
            {"mu": np.zeros(64), "sigma": np.eye(64), "mu_s": np.zeros(64), "sigma_s": np.eye(64)},
            "x.npz, mu_s is of 64 features; the extractor has 2023",
        ),
        ({"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "holds NaN or infinity"),
        ({"mu": np.zeros(64), "sigma": -np.eye(64)}, "a negative variance"),
        ({"mu": np.zeros(64), "sigma": np.triu(np.ones((64, 64)))}, "not symmetric"),
        ({"mu": np.zeros(64, str), "sigma": np.eye(64)}, "they must be numbers"),
        ({"mu": np.zeros(64), "sigma": np.zeros((2100, 4200))}, "sigma has 70,560,128 bytes; statistics have at most"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(64)}, "cannot be read"),  # a pickle, which would be run
    ],
)
def test_bad_numbers(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidData, match=words):
        import_npz(foreign(tmp_path / "x.npz", **arrays), "theirs", tmp_path / "statistics")


def test_bad_files_and_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    for name, words in (("x.npy", "is a single array"), ("nowhere.npz", "cannot be read")):
        with pytest.raises(InvalidData, match=words):
            import_npz(tmp_path / name, "theirs", tmp_path)
    source = foreign(tmp_path / "x.npz")
    for name in ("", "../up", "a b", ".hidden"):
        with pytest.raises(InvalidRequest, match="is not a name"):
            import_npz(source, name, tmp_path)
    with pytest.raises(InvalidRequest, match="at least 2"):
        import_npz(source, "theirs", tmp_path, n=1)


# at the merge: kept ones are read, new ones are kept, and lost ones are never made up

IDENTITY = ReferenceIdentity("d" * 64, 100, Fit(32))


def read(folder: Path, computed: Any = dict, keys: tuple[str, ...] = ("clip",)) -> TapStatistics:
    features = {"clip": {"extractor": "e", "resize": "r"}}
    stated = ReferenceStatistics({}, foreign=True, source="", images=True)
    return read_reference(KeptFolder(folder), "coco", IDENTITY, features, keys, computed, stated)["clip"]


def test_what_is_computed_is_kept_and_then_not_asked_for_again(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("outputs of the reference's shards are read though their statistics are kept")

    check(read(tmp_path, lambda: {"clip": ROWS}), rows=True)
    check(read(tmp_path, never), rows=True)
    check(read(tmp_path, never, ()), rows=False)


@pytest.mark.parametrize("damage", ["gone", "cut"])
@pytest.mark.parametrize("part", ["moments", "features"])
def test_lost_statistics_fail_the_merge(tmp_path: Path, part: str, damage: str) -> None:
    """A merge that computes features reports no progress, and nobody can cancel or repeat a part of it."""
    read(tmp_path, lambda: {"clip": ROWS})
    [path] = tmp_path.glob(f"*.{part}.npz")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataChanged, match=r"coco \(clip\) were kept when this .* delete [0-9a-f]{64}\*\.npz .* again"):
        read(tmp_path)
    check(read(tmp_path, lambda: {"clip": ROWS}), rows=True)
    check(read(tmp_path), rows=True)
