"""Metrics by evalsvc and by others, and how far rounding moves them apart."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from square_features import SquareFeatures

from evalsvc.installation import pip_install
from evalsvc.verify import image_metrics
from evalsvc.verify.agreement import Agreement, Untried
from evalsvc.verify.image_folders import ImageFolders
from evalsvc.verify.image_metrics import OwnMetrics, Sides, compare_programs
from evalsvc.verify.image_programs import ImageProgram, Measured, Rows

D = 64


def rows(seed: int, count: int, shift: float = 0.0) -> Rows:
    return (np.random.default_rng(seed).standard_normal((count, D)) * 0.05 + 1 + shift).astype(np.float32)


def by_eigenvalues(sampled: Rows, real: Rows) -> float:
    """torch-fidelity's formula, float32 means included."""
    first, second = np.cov(sampled, rowvar=False), np.cov(real, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    gap = np.mean(sampled, axis=0) - np.mean(real, axis=0)
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * roots)


@pytest.mark.parametrize("count", [30, 300])
def test_rounding_stays_within_the_tolerance(count: int) -> None:
    """Below d + 1 images the formulas differ by the roots of eigenvalues that are zero, a thousand times as much."""
    sampled, real = rows(0, count), rows(1, count, 0.01)
    ours = Sides(sampled, real).frechet()
    difference = abs(ours.value - by_eigenvalues(sampled, real))
    assert 0 < difference < ours.tolerance < 1e-3 * ours.value
    assert ("no FID to report" in ours.note) == (count <= D)


def test_another_resize_is_more_than_rounding() -> None:
    sampled, real = rows(0, 300), rows(1, 300, 0.01)
    ours = Sides(sampled, real).frechet()
    assert abs(Sides(sampled * np.float32(1 + 1e-4), real).frechet().value - ours.value) > ours.tolerance


def measured(tmp_path: Path) -> Measured:
    tmp_path.mkdir(exist_ok=True)
    folders = ImageFolders(tmp_path, 32)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    folders.write(images, images.flip(3))
    return Measured(folders, 8, 8, tmp_path / "none", torch.device("cpu"))


def compare(program: ImageProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agreement | Untried:
    monkeypatch.setattr(image_metrics, "PROGRAMS", (program,))
    images = measured(tmp_path)
    own = OwnMetrics(images, SquareFeatures((64, 2048)))  # type: ignore[arg-type]
    [found] = compare_programs(images, own, ["fid64", "recall"], "8 images")
    return found


def fails(images: Measured, metrics: Collection[str]) -> dict[str, float]:
    raise ValueError("Imaginary component 0.2")


def test_a_program_that_is_missing_or_fails_spoils_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ImageProgram("no-such-program", ("no_such_module",), "tf1-bilinear", ("fid64",), fails)
    found = compare(absent, tmp_path, monkeypatch)
    assert isinstance(found, Untried)
    assert found.reason == f"no-such-program is not installed; run: {pip_install('reference')}"
    broken = ImageProgram("pytest", ("pytest",), "tf1-bilinear", ("fid64",), fails)
    found = compare(broken, tmp_path / "again", monkeypatch)
    assert isinstance(found, Untried)
    assert found.reason == "pytest raised ValueError: Imaginary component 0.2"


def test_another_value_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(images: Measured, metrics: Collection[str]) -> dict[str, float]:
        return dict.fromkeys(metrics, 1e-3)

    found = compare(ImageProgram("pytest", ("pytest",), "tf1-bilinear", ("recall",), run), tmp_path, monkeypatch)
    assert (found.quantity, found.verdict) == ("recall of 8 images", "WRONG")
