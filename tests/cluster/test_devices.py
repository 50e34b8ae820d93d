"""Which devices a machine has, and what is said of those that it has not."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalsvc.api.server import serve
from evalsvc.cluster import devices
from evalsvc.cluster.devices import check_devices, device_list, worker_environment
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, MissingPackage
from evalsvc.installation import pip_install


def test_devices_are_listed_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_list("cuda:0, cpu") == ["cuda:0", "cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert device_list("all") == ["cuda:0", "cuda:1"]
    assert worker_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "5"
    with pytest.raises(InvalidRequest, match="there is no device 'cuda:2'; this machine has 2 CUDA cards"):
        worker_environment("cuda:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_list("all") == ["cpu"]


FAKE_TORCH = "__version__ = '2.13.0'\nclass cuda: is_available, device_count = lambda: True, lambda: 2"


@pytest.fixture
def _driver_without_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine as WSL2 is: a driver, here any library, but no folder that lists its cards."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "PROC_CARDS", tmp_path / "not there")
    monkeypatch.setattr(devices, "DRIVER", "libc.so.6")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    devices._unlisted_cards.cache_clear()
    yield
    devices._unlisted_cards.cache_clear()


@pytest.mark.usefixtures("short_process")
@pytest.mark.usefixtures("_driver_without_list")
def test_cards_that_the_driver_does_not_list_are_found(tmp_path: Path) -> None:
    """`all` was the CPU on WSL2, and `cuda:0` was refused."""
    assert device_list("all") == ["cuda:0", "cuda:1"]
    check_devices(["cuda:1"])
    assert worker_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    (tmp_path / "torch.py").write_text("raise OSError('asked twice')")
    assert device_list("all") == ["cuda:0", "cuda:1"], "torch takes seconds, and is asked once"


@pytest.mark.usefixtures("_driver_without_list")
def test_torch_is_not_asked_for_cards_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "DRIVER", "libcuda_that_is_not_there.so.1")
    (tmp_path / "torch.py").write_text("raise OSError('asked')")
    assert device_list("all") == ["cpu"]


@pytest.mark.usefixtures("short_process")
@pytest.mark.parametrize(
    ("names", "cards", "words"),
    [
        ("cuda:0", "", r"there is no device 'cuda:0'; this machine has 0 CUDA cards; use all, cpu, or cards such"),
        ("cuda", "", "there is no device 'cuda'"),
        ("cpu,cuda:2", "3,5", "there is no device 'cuda:2'; this machine has 2 CUDA cards"),
        ("gpu", "3", r"--devices \(EVALSVC_DEVICES\) names 'gpu', which is not a device; use all, cpu, or cards such"),
        ("cpu:0", "", "names 'cpu:0', which is not a device"),
        ("cuda:-1", "3", "names 'cuda:-1', which is not a device"),
        (",", "", r"--devices \(EVALSVC_DEVICES\) names no device; use all"),
    ],
)
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, names: str, cards: str, words: str) -> None:
    """`cuda:0` without a card never ended, and `gpu` was ready and failed every evaluation by an internal error."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    with pytest.raises(InvalidRequest, match=words):
        check_devices(device_list(names))
    with pytest.raises(InvalidRequest, match=words):
        serve(Settings(devices=names, port=0), print)


@pytest.mark.usefixtures("short_process")
@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (
            "__version__ = '2.13.0+cpu'\nclass cuda: is_available = lambda: False",
            r"torch 2\.13\.0\+cpu sees 0 CUDA cards",
        ),
        ("raise OSError('libcuda.so.1 is broken')", r"its CUDA cards \(OSError: libcuda.so.1 is broken\); run"),
        (
            "raise ModuleNotFoundError(\"No module named 'torch'\")",
            re.escape(f"a worker on this machine needs the package 'torch'; run: {pip_install('worker')}"),
        ),
    ],
)
def test_a_card_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, words: str) -> None:
    """The machine shows it, and the workers' torch has no CUDA, or the driver is too old."""
    (tmp_path / "torch.py").write_text(torch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises((InvalidRequest, MissingPackage), match=words):
        check_devices(["cpu", "cuda:0"])
    (tmp_path / "torch.py").write_text(
        "__version__ = '2.13.0'\nclass cuda: is_available, device_count = lambda: True, lambda: 1"
    )
    check_devices(["cuda:0", "cuda", "cpu"])
