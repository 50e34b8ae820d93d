"""The clients of a service under faults: they post checkpoints, again where there was no answer, and remember what was
answered."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

PATIENCE = 240
"""Seconds after which a request that is never answered is a failure."""

AT_ONCE = 5
"""How many clients post the same checkpoint at once."""

SPOOLS = ("none", "copy", "link")


@dataclass
class Posted:
    """A checkpoint that the service has acknowledged."""

    body: dict[str, Any]
    file: Path
    checkpoint: int
    evaluation: int
    answers: set[tuple[int, int]] = field(default_factory=set)
    """(checkpoint, evaluation) of every answer to this body; they are to be one."""
    replaced: bool = False
    over: bool = False
    busy: bool = False
    """A client is about to do something to it."""


@dataclass
class Ledger:
    """What was acknowledged, and how requests were answered."""

    posts: list[Posted] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    """Answers by status and code; `no answer` counts those that there were none to."""
    failures: list[str] = field(default_factory=list)


class Trainer:
    """Keeps `backlog` evaluations waiting, by posting `files` to run after run."""

    def __init__(
        self,
        url: str,
        suite: str,
        tasks: Sequence[dict[str, Any]],
        files: Sequence[tuple[str, int, Path]],
        backlog: int,
    ) -> None:
        self.ledger = Ledger()
        self._client = httpx2.Client(base_url=url, timeout=30)
        self._suite = suite
        self._tasks = list(tasks)
        self._files = files
        self._backlog = backlog
        self._limit: int | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._actions = ThreadPoolExecutor(AT_ONCE + 3, "client")
        self._running: list[Future[None]] = []
        self._thread = threading.Thread(target=self._train, name="trainer")

    def start(self, limit: int | None = None) -> None:
        """Begin to post, without end or so many."""
        self._limit = limit
        self._thread.start()

    def close(self) -> None:
        """Post nothing more, and let what is under way be answered."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        for action in self._running:
            try:
                action.result()
            except Exception as error:
                self.ledger.failures.append(f"a client failed: {error!r}")
        self._running.clear()

    def end(self) -> None:
        self._closing.set()
        self._actions.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def posted_all(self) -> bool:
        return self._limit is not None and len(self.ledger.posts) >= self._limit

    def post_again(self, draw: float) -> str | None:
        """The same checkpoint from several clients at once."""

        def act(post: Posted) -> None:
            with ThreadPoolExecutor(AT_ONCE) as clients:
                list(clients.map(lambda _: self._post(post), range(AT_ONCE)))

        return self._act(draw, act)

    def cancel_and_retry(self, draw: float) -> str | None:
        """Whatever the evaluation is doing; the retry may come before its shards have stopped."""

        def act(post: Posted) -> None:
            # A request that was carried out and whose answer was lost is refused when it is sent again.
            self._ask("POST", f"/v1/evaluations/{post.evaluation}/cancel", accepted=(409,))
            time.sleep(1.5 * draw)
            self._ask("POST", f"/v1/evaluations/{post.evaluation}/retry", accepted=(409,))

        return self._act(draw, act)

    def replace(self, draw: float) -> str | None:
        """Another file in the place of a checkpoint, which may be under evaluation."""

        def act(post: Posted) -> None:
            others = [path for _, _, path in self._files if path != post.file]
            other = others[int(draw * len(others))]
            post.replaced = True
            self._enter(other, {**post.body, "uri": str(other), "replace": True})

        return self._act(draw, act)

    def _act(self, draw: float, act: Callable[[Posted], None]) -> str | None:
        """Have a client do something to one of the evaluations that are not over."""
        with self._lock:
            free = [post for post in self.ledger.posts if not (post.busy or post.over or post.replaced)]
            if not free:
                return None
            post = free[int(draw * len(free))]
            post.busy = True

        def run() -> None:
            try:
                act(post)
            finally:
                post.busy = False

        self._running.append(self._actions.submit(run))
        return f"evaluation {post.evaluation}"

    def _train(self) -> None:
        try:
            self._ask("PUT", f"/v1/suites/{self._suite}", {"tasks": self._tasks})
            number = 0
            while not self._closing.is_set():
                if not self.posted_all() and self._outstanding() < self._backlog:
                    self._post_next(number)
                    number += 1
                else:
                    self._closing.wait(0.3)
        except Exception as error:
            self.ledger.failures.append(f"the trainer failed: {error!r}")

    def _post_next(self, number: int) -> None:
        family, step, path = self._files[number % len(self._files)]
        body = {
            "run": f"{family}-{number // len(self._files)}",
            "step": step,
            "uri": str(path),
            "suites": [self._suite],
            "layout": str(path.parents[2] / "layout.yaml"),
            "spool": SPOOLS[number % len(SPOOLS)],
        }
        self._enter(path, body)

    def _enter(self, path: Path, body: dict[str, Any]) -> None:
        answer = self._ask("POST", "/v1/checkpoints", body)
        ids = answer["checkpoint"]["id"], answer["evaluations"][0]["id"]
        with self._lock:
            self.ledger.posts.append(Posted(body, path, *ids, answers={ids}))

    def _post(self, post: Posted) -> None:
        answer = self._ask("POST", "/v1/checkpoints", post.body)
        with self._lock:
            post.answers.add((answer["checkpoint"]["id"], answer["evaluations"][0]["id"]))

    def _outstanding(self) -> int:
        """How many evaluations are not over, as far as the service says so now."""
        waiting = [post for post in self.ledger.posts if not post.over]
        for post in waiting:
            try:
                response = self._client.get(f"/v1/evaluations/{post.evaluation}")
            except httpx2.HTTPError:
                continue
            if response.is_success:
                state = response.json()["state"]
                post.over = state in ("succeeded", "failed", "partly_failed") or (
                    state == "cancelled" and post.replaced
                )
        return sum(not post.over for post in waiting)

    def _ask(self, method: str, path: str, body: Any = None, accepted: Sequence[int] = ()) -> Any:
        """Send a request until it is answered; a service that is down or has no database is asked again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status, answer = self._send(method, path, body)
            if status is not None and (status < 300 or status in accepted):
                return answer
            if status is not None and status != 503:
                raise AssertionError(f"{method} {path} was answered {status}: {answer}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{method} {path} was not answered for {PATIENCE} s; the last answer: {answer}")
            time.sleep(0.2)

    def _send(self, method: str, path: str, body: Any) -> tuple[int | None, Any]:
        try:
            response = self._client.request(method, path, json=body)
            answer = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            with self._lock:
                self.ledger.statuses["no answer"] += 1
            return None, repr(error)
        code = answer.get("code", "") if isinstance(answer, dict) else ""
        with self._lock:
            self.ledger.statuses[f"{response.status_code} {code}".strip()] += 1
        return response.status_code, answer
