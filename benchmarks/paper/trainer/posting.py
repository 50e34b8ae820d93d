"""Posting checkpoints to an evaluation service, by the standard library alone, without ever waiting for the service.

A thread posts. While the service is down or busy, checkpoints wait and are tried again; a training that ends first
says what is not posted, and the same command posts the rest. What the service refuses is listed with its reason.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evalsvc.errors import InvalidRequest
from evalsvc.files.atomic import write_whole
from trainer.checkpoint_files import LAYOUT, Saved, saved_checkpoints

POSTED = "posted.json"
TIMEOUT = 10.0
"""Seconds after which a request has failed."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between two tries: doubled from the first to the longest."""
TRY_LATER = (408, 425, 429)
"""Statuses below 500 that say nothing about the request itself."""
MAX_ANSWER = 100_000


@dataclass(frozen=True)
class Target:
    """The service, and the run that checkpoints are posted to."""

    server: str
    """Address of the service, such as `http://127.0.0.1:8321`."""
    run: str
    suites: Sequence[str] = ()
    """Suites to evaluate [those of the run's plan]."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.server)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidRequest(f"--server {self.server} is no address; give one like http://127.0.0.1:8321")


class Refused(Exception):
    """The service does not take this checkpoint."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Answer a redirect as an error: urllib would follow it as a GET, with the token, to any host."""

    def redirect_request(self, *_arguments: Any, **_more: Any) -> None:
        return None


OPENER = urllib.request.build_opener(NoRedirects)


class Poster:
    """Post the checkpoints of a training's folder in the background, those of earlier calls included.

    Leaving the `with` block waits at most `patience` seconds for what is not posted yet, and prints the rest.
    """

    def __init__(self, target: Target, folder: Path, patience: float = 10.0) -> None:
        self.target, self.folder, self.patience = target, folder, patience
        self._address = f"{target.server.rstrip('/')}/v1/checkpoints"
        self.refused: dict[str, str] = {}
        """Reason for each path that the service refused."""
        self._posted: set[str] = set(_read_posted(folder / POSTED))
        self._announced = False
        self._news = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="posting", daemon=True)

    def __enter__(self) -> Poster:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._deadline = time.monotonic() + self.patience
        self._closing.set()
        self._news.set()
        self._thread.join(self.patience + TIMEOUT)
        for saved in self.waiting():
            reason = self.refused.get(str(saved.path), "the service did not answer; run the same command again")
            print(f"not posted: {saved.path}: {reason}", flush=True)

    def announce(self, _step: int, _path: Path) -> None:
        """Tell the thread that a step has been written. Returns immediately."""
        self._announced = True
        self._news.set()

    def waiting(self) -> list[Saved]:
        """Return the weights that the service does not have."""
        saved = saved_checkpoints(self.folder) if self._announced else []
        return [weights for weights in saved if self._key(weights) not in self._posted]

    def _key(self, saved: Saved) -> str:
        return f"{self._address} {self.target.run} {saved.path}"

    def _work(self) -> None:
        wait = FIRST_WAIT
        self._news.wait()
        while self._announced:  # a folder of another recipe announces nothing
            self._news.clear()
            closing = self._closing.is_set()  # before posting: what is written then is posted
            answered = self._post_all()
            wait = FIRST_WAIT if answered else min(2 * wait, LONGEST_WAIT)
            if closing and (answered or time.monotonic() + FIRST_WAIT > self._deadline):
                return
            if closing:
                time.sleep(FIRST_WAIT)
            elif answered:
                self._news.wait()
            else:
                self._closing.wait(wait)

    def _post_all(self) -> bool:
        """Post what waits; return whether nothing is left to try."""
        for saved in self.waiting():
            if str(saved.path) in self.refused:
                continue
            try:
                self._post(saved)
            except Refused as error:
                self.refused[str(saved.path)] = str(error)
                print(f"not posted: {saved.path}: {error}", flush=True)
            except (OSError, http.client.HTTPException):  # down, or busy
                return False
            else:
                self._posted.add(self._key(saved))
                self._write_posted()
        return True

    def _write_posted(self) -> None:
        content = json.dumps(sorted(self._posted), indent=0).encode()
        with suppress(OSError):  # without the file, the next call posts again, which changes nothing
            write_whole(self.folder / POSTED, content, mode=0o644)

    def _post(self, saved: Saved) -> None:
        body: dict[str, Any] = {"run": self.target.run, "step": saved.step, "variant": saved.variant}
        body |= {"uri": str(saved.path), "layout": str(self.folder / LAYOUT)}
        if self.target.suites:
            body["suites"] = list(self.target.suites)
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("EVALSVC_TOKEN", "").strip():
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        try:
            with OPENER.open(request, timeout=TIMEOUT) as response:
                if not _is_checkpoint(response.read(MAX_ANSWER)):
                    raise Refused("what answered is no evalsvc; correct --server")
        except urllib.error.HTTPError as error:
            if error.code >= 500 or error.code in TRY_LATER:
                raise
            raise Refused(f"{_reason(error)} (HTTP {error.code})") from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(MAX_ANSWER))["detail"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "what answered is no evalsvc; correct --server"


def _is_checkpoint(content: bytes) -> bool:
    """Return whether an answer is the document of a checkpoint."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "checkpoint" in document


def _read_posted(path: Path) -> list[str]:
    try:
        known: list[str] = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    return known
