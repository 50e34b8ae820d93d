"""What tests of the cluster run on its workers."""

import os
import pickle
import signal
import time
from typing import Any
from unittest.mock import patch

from distributed import Event, get_worker
from distributed.protocol import to_serialize
from distributed.protocol.serialize import ToPickle

from evalsvc.cluster import nanny
from evalsvc.cluster.nanny import Report
from evalsvc.config import Settings


def count(request: dict[str, Any], report: Any, settings: Settings) -> bytes:
    for done in range(request["steps"]):
        time.sleep(0.05)
        report(done + 1)
    return b""


def own_settings(request: Any, report: Any, settings: Settings) -> bytes:
    """The test unpickles what its own worker pickled."""
    return pickle.dumps((settings, dict(os.environ)))


def echo(request: int, report: Any, settings: Settings) -> bytes:
    return b"x" * request


def no_bytes(request: Any, report: Any, settings: Settings) -> Any:
    return [b"a"]


def die(request: dict[str, Any], report: Any, settings: Settings) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(request: dict[str, Any], report: Any, settings: Settings) -> None:
    time.sleep(600)


def mark(path: str) -> "Hostile":
    """Write down which process runs a pickle."""
    with open(path, "a") as stream:
        stream.write(f"{os.getpid()}\n")
    return Hostile(path)


class Hostile(Exception):
    def __reduce__(self) -> Any:
        return mark, self.args


def hostile(request: tuple[str, str], report: Report, settings: Settings) -> bytes:
    """Send a pickle that writes to a path, in a way of a worker that was taken over."""
    way, path = request
    messages = {"event": to_serialize(Hostile(path)), "repickled event": ToPickle(Hostile(path))}
    if way in messages:
        get_worker().log_event(nanny.PROGRESS_TOPIC, {"key": report.key, "done": messages[way], "worker": "tls://x"})
        get_worker().log_event(nanny.PROGRESS_TOPIC, messages[way])
        return b"sent"
    if way == "warning":
        get_worker().log_event("warn", {"message": pickle.dumps(Hostile(path))})
        return b"sent"
    replied = {"result": Hostile(path), "bytes of another form": b"\xc1", "text": "text", "list": [b"a", Hostile(path)]}
    # The call itself returns bytes whatever the job does, so its packing is replaced until the call has ended.
    replacement = patch.object(nanny, "REPLY", _Replies(replied.get(way, Hostile(path)), raises=way == "exception"))
    replacement.start()
    _Replies.undo = replacement.stop
    return b""


class _Replies:
    undo: Any = None

    def __init__(self, reply: Any, raises: bool) -> None:
        self.reply, self.raises = reply, raises

    def pack(self, _: object) -> Any:
        if not self.raises:
            _Replies.undo()
            return self.reply
        self.packed = getattr(self, "packed", 0) + 1
        if self.packed == 2:  # the error of the first is packed too
            _Replies.undo()
        raise self.reply


def fail(request: dict[str, Any], report: Any, settings: Settings) -> None:
    raise ValueError("broken")


def fail_badly(request: dict[str, Any], report: Any, settings: Settings) -> None:
    raise ValueError("no text: \udcff")


def count_unheard(request: dict[str, Any], report: Any, settings: Settings) -> bytes:
    """Counts while the scheduler does not say whether the call is cancelled."""
    with patch.object(Event, "is_set", side_effect=OSError("Timed out trying to connect after 5 s")) as asked:
        count(request, report, settings)
    assert asked.called
    return b""
