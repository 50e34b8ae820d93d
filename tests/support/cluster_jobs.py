"""What tests of the cluster run on its workers."""

import os
import signal
import time
from typing import Any
from unittest.mock import patch

from distributed import Event

from evalsvc.config import Settings


def count(request: dict[str, Any], report: Any, settings: Settings) -> None:
    for done in range(request["steps"]):
        time.sleep(0.05)
        report(done + 1)


def own_settings(request: Any, report: Any, settings: Settings) -> tuple[Settings, list[str]]:
    return settings, list(os.environ)


def echo(request: Any, report: Any, settings: Settings) -> Any:
    return request


def die(request: dict[str, Any], report: Any, settings: Settings) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(request: dict[str, Any], report: Any, settings: Settings) -> None:
    time.sleep(600)


class Unreadable:
    """Leaves the worker and cannot be made again on the other side."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def unreadable(request: dict[str, Any], report: Any, settings: Settings) -> Unreadable:
    return Unreadable()


def fail(request: dict[str, Any], report: Any, settings: Settings) -> None:
    raise ValueError("broken")


def count_unheard(request: dict[str, Any], report: Any, settings: Settings) -> None:
    """Counts while the scheduler does not say whether the call is cancelled."""
    with patch.object(Event, "is_set", side_effect=OSError("Timed out trying to connect after 5 s")) as asked:
        count(request, report, settings)
    assert asked.called
