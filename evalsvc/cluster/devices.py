"""The devices of this machine, and the settings and environment of the worker process on each device."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest
from evalsvc.installation import PYTHON, missing_package

DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?")

DEVICES, CHOICES = "--devices (EVALSVC_DEVICES)", "all, cpu, or cards such as cuda:0,cuda:1"

PROC_CARDS = Path("/proc/driver/nvidia/gpus")
"""Folder with one subfolder per card. Missing on WSL2, on Jetson, and in some containers."""
DRIVER = "libcuda.so.1"

ASK_TORCH = "import torch as t; print(t.__version__, t.cuda.device_count() if t.cuda.is_available() else 0)"

PATIENCE = 120.0
"""Seconds that torch may take to be imported and to search for cards."""


def device_list(devices: str) -> list[str]:
    """Return the devices in the setting: `all` is every CUDA card, or one CPU worker on a machine without cards."""
    if devices != "all":
        return [device.strip() for device in devices.split(",") if device.strip()]
    return [f"cuda:{index}" for index in range(len(_visible_cards()))] or ["cpu"]


def check_devices(devices: Sequence[str], option: str = DEVICES, choices: str = CHOICES) -> None:
    """Check that this machine has these devices. For cards, torch is asked in another process, which takes seconds."""
    if not devices:
        raise InvalidRequest(f"{option} names no device; use {choices}")
    for device in devices:
        if not DEVICE.fullmatch(device):
            raise InvalidRequest(f"{option} names {device!r}, which is not a device; use {choices}")
        if device != "cpu":
            _card(device, f"{option}: ", choices)
    if cards := [device for device in devices if device != "cpu"]:
        version, count = _cards_of_torch()
        missing = [device for device in cards if _index(device) >= count]
        if missing:
            raise InvalidRequest(
                f"{option}: the device {missing[0]!r} cannot be used: torch {version} sees {count} CUDA cards; install "
                "a torch with CUDA and a driver that fits it (evalsvc doctor shows both), or use cpu"
            )


def worker_settings(settings: Settings, device: str, processes: int) -> Settings:
    """Return the settings of a worker process on `device`, one of `processes` that share the machine's cores, without
    secrets."""
    # A worker sees only its own card, as number 0.
    visible_device = "cuda:0" if device.startswith("cuda") else device
    return replace(settings.without_secrets(), devices=visible_device, threads=settings.worker_threads(processes))


def worker_environment(device: str) -> dict[str, str]:
    """Return the environment in which a worker process sees only its own card, and allocates no memory on another."""
    return {"CUDA_VISIBLE_DEVICES": _card(device)} if device.startswith("cuda") else {}


def _visible_cards() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    if PROC_CARDS.is_dir():
        return [str(index) for index in range(len(list(PROC_CARDS.iterdir())))]
    return [str(index) for index in range(_unlisted_cards())]


@functools.cache
def _unlisted_cards() -> int:
    try:  # the driver is quick to find, and torch takes seconds
        ctypes.CDLL(DRIVER)
    except OSError:
        return 0
    return _cards_of_torch()[1]


def _index(device: str) -> int:
    return int(device.removeprefix("cuda").removeprefix(":") or 0)


def _card(device: str, option: str = "", choices: str = CHOICES) -> str:
    cards, index = _visible_cards(), _index(device)
    if index >= len(cards):
        raise InvalidRequest(
            f"{option}there is no device {device!r}; this machine has {len(cards)} CUDA cards; use {choices}"
        )
    return cards[index]


def _cards_of_torch() -> tuple[str, int]:
    try:
        done = subprocess.run([*PYTHON, "-c", ASK_TORCH], capture_output=True, text=True, timeout=PATIENCE)
        version, count = done.stdout.split()
        return version, int(count)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {PATIENCE:g} s"
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
    if "No module named 'torch'" in reason:
        raise missing_package("torch", "a worker on this machine")
    raise InvalidRequest(f"torch cannot list its CUDA cards ({reason}); run evalsvc doctor, or use cpu")
