"""What tests of the cluster run on its workers."""

import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from distributed import Event

from evalsvc.cluster import questions
from evalsvc.cluster.nanny import Report
from evalsvc.cluster.questions import AskedService
from evalsvc.config import Settings
from evalsvc.files.service_files import ServiceFiles


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


def fetch(request: tuple[str, Path], report: Report, settings: Settings) -> tuple[list[str], bytes]:
    """The names of the service's statistics, and the content of one of its files by way of a folder of copies."""
    place, copies = request
    service = AskedService(report.key)
    with ServiceFiles(service, copies).fetch(place) as stream:
        return service.names("statistics"), stream.read()


def ask_nobody(request: Any, report: Report, settings: Settings) -> None:
    with patch.object(questions, "ANSWER_WITHIN", 0.3), patch.object(questions, "QUESTION_TOPIC", "nobody-listens"):
        AskedService(report.key).names("statistics")
