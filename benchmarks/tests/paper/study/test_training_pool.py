"""The pool that trains and posts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from study import training_pool
from study.runs import main_runs, training_folder
from study.scales import QUICK
from trainer.checkpoint_files import Saved


@dataclass
class PostedTo:
    """The two methods of the client that a pool posts with; every evaluation of a checkpoint at step 2 had failed."""

    posts: list[tuple[str, int, str, list[str]]] = field(default_factory=list)
    retried: list[int] = field(default_factory=list)

    def submit(self, run: str, step: int, uri: str, *, variant: str, suites: list[str], layout: str) -> SimpleNamespace:
        self.posts.append((run, step, variant, suites))
        state = "failed" if step == 2 else "queued"
        return SimpleNamespace(evaluations=[SimpleNamespace(id=10 * step + i, state=state) for i in range(len(suites))])

    def retry(self, evaluation: int) -> None:
        self.retried.append(evaluation)


def test_a_pool_posts_each_checkpoint_once_and_retries_what_had_failed(
    material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = [Saved(0, "raw", tmp_path / "a"), Saved(2, "ema_0.5", tmp_path / "b"), Saved(6, "raw", tmp_path / "c")]
    monkeypatch.setattr(training_pool, "saved_checkpoints", lambda folder: saved)
    client: Any = PostedTo()
    pool = training_pool.Pool(client, QUICK, material.layout, tmp_path)
    run = main_runs(QUICK, material)[0]
    pool._post(run)
    pool._post(run)
    assert client.posts == [
        ("pretrained-0", 0, "raw", ["paper-losses", "paper-language", "paper-floor"]),
        ("pretrained-0", 2, "ema_0.5", ["paper-losses"]),
        ("pretrained-0", 6, "raw", ["paper-losses", "paper-language", "paper-images"]),
    ]
    assert client.retried == [20]
    assert set(pool.evaluations.values()) == {"pretrained-0@0", "pretrained-0@2:ema_0.5", "pretrained-0@6"}


def test_a_training_that_fails_ends_the_pool_with_its_log(
    material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended:
        stdin = None

        def poll(self) -> int:
            return 3

        def terminate(self) -> None: ...

        def wait(self) -> int:
            return 3

    def start(command: list[str], log: Path, environment: object) -> Ended:
        log.write_text("the loss is nan at step 4")
        return Ended()

    monkeypatch.setattr(training_pool, "start_guarded", start)
    client: Any = PostedTo()
    pool = training_pool.Pool(client, QUICK, material.layout, tmp_path)
    with pytest.raises(SystemExit, match=r"pretrained-0 ended with the exit code 3.*\n.*the loss is nan at step 4"):
        pool.train(main_runs(QUICK, material)[:1])
    assert not (training_folder(tmp_path, "pretrained-0") / training_pool.DONE).exists()
