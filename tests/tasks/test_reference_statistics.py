"""Statistics of reference images: what is saved comes back, and what is foreign is checked and marked."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evalsvc.errors import Conflict, DataChanged, DataDirectoryUnusable, InvalidData, InvalidRequest, UnknownName
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import KeptFolder
from evalsvc.metrics.frechet import Moments
from evalsvc.spec.images import Fit
from evalsvc.tasks.image_reference import ReferenceIdentity, read_reference
from evalsvc.tasks.reference_statistics import (
    TapStatistics,
    import_npz,
    is_known,
    keep_tap,
    load_reference,
    load_tap,
    reference_key,
)

KEY = {"data": "d", "extractor": "e", "tap": "64", "resize": "pil-bicubic", "crop": "centre", "size": 256}


@pytest.fixture
def features() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(100, 64)).astype(np.float32)


def own(features: NDArray[np.float32]) -> TapStatistics:
    moments = Moments.of(features)
    return TapStatistics(moments.n, moments.mean, moments.covariance, features)


def write_foreign(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


class TestOwn:
    @pytest.mark.parametrize("rows", [True, False])
    def test_moments_come_back_to_the_last_bit_and_features_where_they_are_asked_for(
        self, features: NDArray[np.float32], tmp_path: Path, rows: bool
    ) -> None:
        saved, files, key = own(features), KeptFolder(tmp_path / "statistics"), reference_key(**KEY)
        assert not is_known(files.names(), key, rows=rows)
        keep_tap(files, key, saved, "images")
        assert is_known(files.names(), key, rows=rows)
        found = load_tap(files, key, rows=rows)
        assert found.n == 100
        np.testing.assert_array_equal(found.mean, saved.mean)
        np.testing.assert_array_equal(found.covariance, saved.covariance)
        if rows:
            assert found.features.dtype == np.float32
            np.testing.assert_array_equal(found.features, features)
        else:
            assert found.features is None

    def test_the_key_of_a_version_is_that_of_the_version_before(self) -> None:
        assert reference_key(**KEY) == "693eda3585f76db41dce990a33aeed12933209d016f9891f7dc2e27998860b05"

    def test_moments_are_known_without_features_only_where_none_are_needed(
        self, features: NDArray[np.float32], tmp_path: Path
    ) -> None:
        files, key = KeptFolder(tmp_path), reference_key(**KEY)
        keep_tap(files, key, replace(own(features), features=None), "images")
        assert is_known(files.names(), key, rows=False)
        assert not is_known(files.names(), key, rows=True)

    def test_everything_that_moves_it_is_in_the_key(self) -> None:
        keys = [reference_key(**KEY)] + [
            reference_key(**(KEY | {name: value}))
            for name, value in [*((name, "x") for name in list(KEY)[:5]), ("size", None)]
        ]
        assert len(set(keys)) == 7

    @pytest.mark.parametrize("part", ["moments", "features"])
    @pytest.mark.parametrize("damage", ["gone", "cut", "changed", "another"])
    def test_a_lost_or_damaged_file_is_never_read_as_other_numbers(
        self, features: NDArray[np.float32], tmp_path: Path, part: str, damage: str
    ) -> None:
        files, key = KeptFolder(tmp_path), reference_key(**KEY)
        keep_tap(files, key, own(features), "images")
        path = tmp_path / f"{key}.{part}.npz"
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage == "another":
            np.savez(path, mu=np.zeros(64))
        else:
            middle = len(content) // 2
            changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            path.write_bytes(content[:-200] if damage == "cut" else changed)
        with pytest.raises(FileLost):
            load_tap(files, key, rows=True)

    def test_a_full_disk_leaves_nothing(
        self, features: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(DataDirectoryUnusable, match="no space left on device"):
            keep_tap(KeptFolder(tmp_path), reference_key(**KEY), own(features), "images")
        assert list(tmp_path.iterdir()) == []


class TestForeign:
    def test_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
        with pytest.raises(InvalidData, match="cannot be read as an npz file"):
            load_reference("a", KeptFolder(tmp_path))
        write_foreign(tmp_path / "b.npz", mu=np.zeros(64))
        with pytest.raises(InvalidData, match="not a file of reference statistics"):
            load_reference("b", KeptFolder(tmp_path))

    def test_unknown(self, tmp_path: Path) -> None:
        """Names of evalsvc's own files are keys, which nobody means."""
        source = write_foreign(tmp_path / "x.npz", mu=np.zeros(64), sigma=np.eye(64))
        folder = tmp_path / "statistics"
        import_npz(source, "coco", folder)
        (folder / f"{'ab' * 32}.moments.npz").touch()
        with pytest.raises(UnknownName, match=r"did you mean 'coco'\? available: coco; .*evalsvc reference import"):
            load_reference("cocoo", KeptFolder(folder))
        with pytest.raises(UnknownName, match=r"for a folder of images, write its path with a slash: \./ref70; import"):
            load_reference("ref70", KeptFolder(tmp_path))

    def test_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        source = write_foreign(tmp_path / "x.npz", mu=np.zeros(64), sigma=np.eye(64))
        (tmp_path / "file").touch()
        with pytest.raises(DataDirectoryUnusable, match="cannot be written"):
            import_npz(source, "a", tmp_path / "file" / "statistics")

    def test_a_member_that_expands_beyond_all_bounds_is_refused_before_it_does(self, tmp_path: Path) -> None:
        """A compressed file of some kilobytes may hold any number of zeros; what is not read may be large."""
        np.savez_compressed(tmp_path / "x.npz", mu=np.zeros(64), sigma=np.zeros((2100, 4200)))
        with pytest.raises(InvalidData, match="sigma has 70,560,128 bytes; statistics have at most"):
            import_npz(tmp_path / "x.npz", "theirs", tmp_path / "statistics")
        np.savez_compressed(tmp_path / "y.npz", mu=np.zeros(64), sigma=np.eye(64), rows=np.zeros((2100, 4200)))
        import_npz(tmp_path / "y.npz", "theirs", tmp_path / "statistics")

    def test_is_marked(self, features: NDArray[np.float32], tmp_path: Path) -> None:
        source = write_foreign(tmp_path / "x.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
        import_npz(source, "theirs", tmp_path / "statistics")
        found = load_reference("theirs", KeptFolder(tmp_path / "statistics"))
        assert (found.foreign, found.source, found.moments[64].n) == (True, "x.npz", None)
        np.testing.assert_array_equal(found.moments[64].mean, features.mean(0))

    def test_number_of_images_can_be_told(self, tmp_path: Path) -> None:
        source = write_foreign(tmp_path / "x.npz", mu=np.zeros(64, np.float32), sigma=np.eye(64))
        import_npz(source, "theirs", tmp_path, n=30_000)
        assert load_reference("theirs", KeptFolder(tmp_path)).moments[64].n == 30_000
        with pytest.raises(InvalidRequest, match="at least 2"):
            import_npz(source, "theirs", tmp_path, n=1)

    def test_name_is_not_taken_from_another(self, tmp_path: Path) -> None:
        first = write_foreign(tmp_path / "x.npz", mu=np.zeros(64), sigma=np.eye(64))
        second = write_foreign(tmp_path / "y.npz", mu=np.ones(64), sigma=np.eye(64))
        import_npz(first, "theirs", tmp_path)
        import_npz(first, "theirs", tmp_path)
        with pytest.raises(Conflict, match="holds other numbers"):
            import_npz(second, "theirs", tmp_path)

    @pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden"])
    def test_bad_name(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidRequest, match="is not a name"):
            import_npz(tmp_path / "x.npz", name, tmp_path)

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"mu": np.zeros(64)}, "has no 'sigma'; it holds mu, expected mu and sigma"),
            ({"mu": np.zeros(64), "sigma": np.eye(65)}, r"mu has the shape \[64\], sigma \[65, 65\]"),
            ({"mu": np.zeros(10), "sigma": np.eye(10)}, "is of 10 features; the extractor has 64 or 2048"),
            ({"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "holds NaN or infinity"),
            ({"mu": np.zeros(64), "sigma": -np.eye(64)}, "a negative variance"),
            ({"mu": np.zeros(64), "sigma": np.triu(np.ones((64, 64)))}, "not symmetric"),
            ({"mu": np.zeros(64, str), "sigma": np.eye(64)}, "they must be numbers"),
        ],
    )
    def test_bad_numbers(self, tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidData, match=words):
            import_npz(write_foreign(tmp_path / "x.npz", **arrays), "theirs", tmp_path / "statistics")

    def test_pickle_is_refused(self, tmp_path: Path) -> None:
        """numpy would run it."""
        write_foreign(tmp_path / "x.npz", mu=np.array([{}], dtype=object), sigma=np.eye(64))
        with pytest.raises(InvalidData, match="cannot be read"):
            import_npz(tmp_path / "x.npz", "theirs", tmp_path)

    def test_no_npz(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.zeros(3))
        with pytest.raises(InvalidData, match="is a single array"):
            import_npz(tmp_path / "x.npy", "theirs", tmp_path)
        with pytest.raises(InvalidData, match="cannot be read"):
            import_npz(tmp_path / "nowhere.npz", "theirs", tmp_path)


IDENTITY = ReferenceIdentity("d" * 64, 30, Fit(32))
FEATURES = {"clip": {"extractor": "e", "resize": "r"}}


@pytest.fixture
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)


def nothing() -> Mapping[str, NDArray[np.float32]]:
    return {}


def read(folder: Path, rows: tuple[str, ...] = ("clip",), computed: object = nothing) -> TapStatistics:
    found = read_reference(KeptFolder(folder), "coco", IDENTITY, FEATURES, rows, computed)  # type: ignore[arg-type]
    return found["clip"]


def test_what_is_computed_is_kept_and_then_not_asked_for_again(tmp_path: Path, rows: NDArray[np.float32]) -> None:
    def never() -> Mapping[str, NDArray[np.float32]]:
        raise AssertionError("outputs of the reference's shards are read though their statistics are kept")

    first = read(tmp_path, computed=lambda: {"clip": rows})
    again, moments = read(tmp_path, computed=never), read(tmp_path, (), never)
    expected = Moments.of(rows)
    for found in (first, again, moments):
        np.testing.assert_array_equal(found.covariance, expected.covariance)
        np.testing.assert_array_equal(found.mean, expected.mean)
        assert found.n == 30
    for found in (first, again):
        np.testing.assert_array_equal(found.features, rows)
    assert moments.features is None, "hundreds of megabytes that nobody asked for"


@pytest.mark.parametrize("damage", ["gone", "cut"])
@pytest.mark.parametrize("part", ["moments", "features"])
def test_kept_statistics_that_are_lost_by_now_fail_the_merge_with_an_instruction(
    tmp_path: Path, rows: NDArray[np.float32], part: str, damage: str
) -> None:
    """A merge that computes features reports no progress, and nobody can cancel or repeat a part of it."""
    read(tmp_path, computed=lambda: {"clip": rows})
    [path] = tmp_path.glob(f"*.{part}.npz")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataChanged, match=r"coco \(clip\) were kept when this .* delete [0-9a-f]{64}\*\.npz .* again"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, computed=lambda: {"clip": rows}).features, rows)
    np.testing.assert_array_equal(read(tmp_path).features, rows)


def test_imported_statistics_that_are_others_by_now_are_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=np.zeros(64), sigma=np.eye(64))
    import_npz(tmp_path / "x.npz", "coco", tmp_path / "statistics")
    identity = ReferenceIdentity("0" * 64, None, None)
    with pytest.raises(DataChanged, match="the reference 'coco' has changed since this evaluation was planned"):
        read_reference(KeptFolder(tmp_path / "statistics"), "coco", identity, {}, (), nothing)
