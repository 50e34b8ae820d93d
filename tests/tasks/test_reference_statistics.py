"""Statistics of reference images: what is saved comes back, and what is foreign is checked and marked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalsvc.errors import Conflict, DataDirectoryUnusable, InvalidData, InvalidRequest, UnknownName
from evalsvc.metrics.frechet import Moments
from evalsvc.tasks.reference_statistics import (
    ReferenceStatistics,
    TapStatistics,
    import_npz,
    load_reference,
    reference_key,
    save_reference,
)

KEY = {"data": "d", "extractor": "e", "tap": "64", "resize": "pil-bicubic", "crop": "centre", "size": 256}


@pytest.fixture
def features() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=(100, 64))


def own(features: np.ndarray[Any, Any]) -> ReferenceStatistics:
    moments = Moments.of(features)
    return ReferenceStatistics({64: TapStatistics(moments.n, moments.mean, moments.covariance)}, False, "images")


def write_foreign(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


class TestOwn:
    def test_comes_back(self, features: np.ndarray[Any, Any], tmp_path: Path) -> None:
        saved = own(features)
        path = save_reference(saved, reference_key(**KEY), tmp_path / "statistics")
        found = load_reference(path.stem, path.parent)
        assert (found.foreign, found.source, found.moments[64].n) == (False, "images", 100)
        np.testing.assert_array_equal(found.moments[64].covariance, saved.moments[64].covariance)
        assert found.digest == saved.digest
        assert [item.name for item in path.parent.iterdir()] == [path.name]

    def test_features_come_back_beside_their_moments(self, features: np.ndarray[Any, Any], tmp_path: Path) -> None:
        moments, rows = Moments.of(features), features.astype(np.float32)
        taps = {64: TapStatistics(moments.n, moments.mean, moments.covariance, rows)}
        save_reference(ReferenceStatistics(taps, False, "images"), "with", tmp_path)
        save_reference(own(features), "without", tmp_path)
        found = load_reference("with", tmp_path).moments[64].features
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, rows)
        assert load_reference("without", tmp_path).moments[64].features is None

    def test_everything_that_moves_it_is_in_the_key(self) -> None:
        keys = [reference_key(**KEY)] + [
            reference_key(**(KEY | {name: value}))
            for name, value in [*((name, "x") for name in list(KEY)[:5]), ("size", None)]
        ]
        assert len(set(keys)) == 7

    def test_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
        with pytest.raises(InvalidData, match="cannot be read as an npz file"):
            load_reference("a", tmp_path)
        write_foreign(tmp_path / "b.npz", mu=np.zeros(64))
        with pytest.raises(InvalidData, match="no file of reference statistics"):
            load_reference("b", tmp_path)

    def test_unknown(self, features: np.ndarray[Any, Any], tmp_path: Path) -> None:
        save_reference(own(features), "coco", tmp_path)
        with pytest.raises(UnknownName, match=r"did you mean 'coco'\?.*evalsvc reference import"):
            load_reference("cocoo", tmp_path)

    def test_folder_that_cannot_be_written(self, features: np.ndarray[Any, Any], tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataDirectoryUnusable, match="cannot be written"):
            save_reference(own(features), "a", tmp_path / "file" / "statistics")

    def test_a_full_disk_leaves_nothing(
        self, features: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(DataDirectoryUnusable, match="no space left on device"):
            save_reference(own(features), "a", tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestForeign:
    def test_is_marked(self, features: np.ndarray[Any, Any], tmp_path: Path) -> None:
        source = write_foreign(tmp_path / "x.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
        import_npz(source, "theirs", tmp_path / "statistics")
        found = load_reference("theirs", tmp_path / "statistics")
        assert (found.foreign, found.source, found.moments[64].n) == (True, "x.npz", None)
        np.testing.assert_array_equal(found.moments[64].mean, features.mean(0))

    def test_number_of_images_can_be_told(self, tmp_path: Path) -> None:
        source = write_foreign(tmp_path / "x.npz", mu=np.zeros(64, np.float32), sigma=np.eye(64))
        import_npz(source, "theirs", tmp_path, n=30_000)
        assert load_reference("theirs", tmp_path).moments[64].n == 30_000
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
        with pytest.raises(InvalidData, match="is one array"):
            import_npz(tmp_path / "x.npy", "theirs", tmp_path)
        with pytest.raises(InvalidData, match="cannot be read"):
            import_npz(tmp_path / "nowhere.npz", "theirs", tmp_path)
