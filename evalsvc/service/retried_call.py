"""A part of a service's round that is retried with back-off when it fails."""

from __future__ import annotations

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable

from evalsvc.errors import EvalsvcError

log = logging.getLogger(__name__)

FIRST_WAIT = 0.5
"""Seconds of back-off after the first failure; doubled after each further failure."""


class RetriedCall:
    """A repeated call. It never raises, and does not block other calls during its back-off."""

    def __init__(
        self,
        name: str,
        do: Callable[[], None],
        longest_wait: float,
        translate: Callable[[Exception], Exception] = lambda error: error,
    ) -> None:
        """`name` is for the log, and begins with a verb; `longest_wait` is the longest back-off in seconds.

        `translate` converts expected exceptions to an EvalsvcError; others are logged with a traceback.
        """
        self._name = name
        self._do = do
        self._longest_wait = longest_wait
        self._translate = translate
        self._wait = 0.0
        self._again_at = 0.0

    def attempt(self) -> bool:
        """Make the call, unless it is in its back-off; return whether it succeeded."""
        if time.monotonic() < self._again_at:
            return False
        try:
            self._do()
        except CancelledError as error:  # not an Exception; raised by an event loop that ends
            self._note_failure(error)
            return False
        except Exception as error:
            self._note_failure(self._translate(error))
            return False
        self._wait = 0.0
        return True

    def _note_failure(self, error: BaseException) -> None:
        self._wait = min(2 * self._wait or FIRST_WAIT, self._longest_wait)
        self._again_at = time.monotonic() + self._wait
        if isinstance(error, EvalsvcError):
            log.warning("could not %s: %s; retrying in %.1f s", self._name, error, self._wait)
        else:
            log.error("could not %s; retrying in %.1f s", self._name, self._wait, exc_info=error)
