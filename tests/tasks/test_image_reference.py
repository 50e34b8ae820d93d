"""Statistics of real images at the merge: kept ones are read, new ones are kept, and lost ones are never made up."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evalsvc.errors import DataChanged
from evalsvc.files.kept import KeptFolder
from evalsvc.metrics.frechet import Moments
from evalsvc.spec.images import Fit
from evalsvc.tasks.image_reference import ReferenceIdentity, read_reference
from evalsvc.tasks.reference_statistics import TapStatistics, import_npz

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
