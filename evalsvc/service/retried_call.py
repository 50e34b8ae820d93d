"""A part of a service's round that must go on whatever happens: tried again when it fails, each time a little later."""

from __future__ import annotations

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable

from evalsvc.errors import EvalsvcError

log = logging.getLogger(__name__)

FIRST_WAIT = 0.5
"""Seconds after the first failure; each further one in a row doubles it."""


class RetriedCall:
    """Something that is done again and again. It never raises, and holds up nothing else while it waits."""

    def __init__(
        self,
        name: str,
        do: Callable[[], None],
        longest_wait: float,
        translate: Callable[[Exception], Exception] = lambda error: error,
    ) -> None:
        """
        Args:
            name: for the log, as a verb: `store what came back`.
            longest_wait: seconds between two tries, at most.
            translate: makes an EvalsvcError of what is expected to happen; all else is logged with its trace.
        """
        self._name = name
        self._do = do
        self._longest_wait = longest_wait
        self._translate = translate
        self._wait = 0.0
        self._again_at = 0.0

    def attempt(self) -> bool:
        """Do it, unless it failed just now; whether it was done."""
        if time.monotonic() < self._again_at:
            return False
        try:
            self._do()
        except CancelledError as error:  # no Exception; of a loop that ends, in whatever waited for it
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
            log.warning("could not %s: %s; trying again in %.1f s", self._name, error, self._wait)
        else:
            log.error("could not %s; trying again in %.1f s", self._name, self._wait, exc_info=error)
