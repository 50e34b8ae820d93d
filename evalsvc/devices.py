"""The devices of this machine, and the environment of the worker process on each."""

from __future__ import annotations

import os
from pathlib import Path

from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest


def device_list(devices: str) -> list[str]:
    """The devices of the setting: `all` is every CUDA card, or one CPU worker where there is none."""
    if devices != "all":
        return [device.strip() for device in devices.split(",") if device.strip()]
    return [f"cuda:{index}" for index in range(len(_visible_cards()))] or ["cpu"]


def worker_environment(settings: Settings, device: str, processes: int) -> dict[str, str]:
    """The variables of a worker process on `device`, one of `processes` that share the machine's cores.

    Raises:
        InvalidRequest: this machine does not have the device.
    """
    threads = str(settings.worker_threads(processes))
    environment = settings.environment() | {"EVALSVC_DEVICE": device, "EVALSVC_THREADS": threads}
    if device.startswith("cuda:"):
        # The process sees its own card only, so nothing of it can end up on another.
        environment |= {"CUDA_VISIBLE_DEVICES": _card(device), "EVALSVC_DEVICE": "cuda:0"}
    return environment


def _visible_cards() -> list[str]:
    """What CUDA_VISIBLE_DEVICES must say for a process to see one card of this process's, in order."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    cards = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(cards.iterdir())))] if cards.is_dir() else []


def _card(device: str) -> str:
    cards, index = _visible_cards(), device.removeprefix("cuda:")
    if not index.isdigit() or int(index) >= len(cards):
        raise InvalidRequest(f"the device {device!r} is not there; this machine shows {len(cards)} CUDA cards")
    return cards[int(index)]
