"""Questions of running shards to their service about files, and the answers, both through the scheduler.

A question is an event of the topic `QUESTION_TOPIC`. The service answers from its own threads, in parts of bounded
size, by a call on the worker process that asked. Neither the coordinator's thread nor Dask's handles a whole file.
"""

from __future__ import annotations

import logging
import queue
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from distributed import Client, get_worker

from evalsvc.cluster.private import call_on
from evalsvc.errors import SourceUnreachable
from evalsvc.files.served import FileService, Part

log = logging.getLogger(__name__)

QUESTION_TOPIC = "evalsvc-question"

ANSWER_WITHIN = 60.0
"""Seconds that a worker waits for an answer."""

ANSWERED_TOGETHER = 4
"""Questions that the service answers simultaneously."""

Answer = list[str] | Part | None

_waiting: dict[str, queue.SimpleQueue[Answer]] = {}
"""Unanswered questions of this worker process, by number."""


@dataclass(frozen=True)
class AskedService(FileService):
    """The data folder of the service that dispatched a shard, for the thread that runs the shard."""

    key: str
    """Name of the shard's call."""

    def names(self, folder: str) -> list[str]:
        answer = self._ask(folder)
        return answer if isinstance(answer, list) else []

    def part(self, place: str, offset: int | None) -> Part | None:
        answer = self._ask(place, {"offset": offset})
        return answer if isinstance(answer, Part) else None

    def _ask(self, place: str, part: Mapping[str, int | None] | None = None) -> Answer:
        worker, number = get_worker(), uuid.uuid4().hex
        answers = _waiting[number] = queue.SimpleQueue()
        question = {"key": self.key, "number": number, "worker": worker.address, "place": place, "part": part}
        try:
            worker.log_event(QUESTION_TOPIC, question)
            return answers.get(timeout=ANSWER_WITHIN)
        except queue.Empty:
            raise SourceUnreachable(
                f"the service did not answer a worker's question about {place} within {ANSWER_WITHIN:g} s; check "
                "the service's log"
            ) from None
        finally:
            del _waiting[number]


def deliver(number: str, answer: Answer) -> None:
    """Pass an answer to the thread that waits for it on this worker; drop a late answer."""
    if (answers := _waiting.get(number)) is not None:
        answers.put(answer)


class Answering:
    """The service's side of questions: answers from its own threads."""

    def __init__(self, client: Client, files: FileService) -> None:
        self._client = client
        self._files = files
        self._threads = ThreadPoolExecutor(ANSWERED_TOGETHER, "answers")

    def answer(self, question: Mapping[str, object]) -> None:
        """Answer a question on another thread; return immediately."""
        self._threads.submit(self._answer, question)

    def close(self) -> None:
        """Stop answering."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: Mapping[str, object]) -> None:
        try:
            place, part = str(question["place"]), question["part"]
            answer: Answer
            answer = self._files.part(place, part["offset"]) if isinstance(part, dict) else self._files.names(place)
            call_on(self._client, str(question["worker"]), deliver, question["number"], answer)
        except Exception:  # the worker or the scheduler went away: the shard fails by itself and is retried
            log.exception("a question of %s could not be answered", question.get("key"))
