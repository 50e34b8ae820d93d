"""Workers ask for files of a data folder that they cannot read, while their shard runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from watched_cluster import Watched

from evalsvc.cluster import questions
from evalsvc.config import Settings
from evalsvc.files.served import PART_BYTES


@pytest.fixture(scope="module")
def cluster(child_process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "statistics").mkdir()
    (folder / "statistics" / "coco.npz").write_bytes(os.urandom(2 * PART_BYTES + 5))
    cluster = Watched(Settings(data_dir=str(folder), devices="cpu,cpu", threads=1))
    cluster.start()
    yield cluster
    cluster.close()


def test_a_shard_gets_a_large_file_in_parts(cluster: Watched, tmp_path: Path) -> None:
    for number, worker in enumerate(cluster.free()):
        cluster.submit(f"fetch-{number}", "cluster_jobs:fetch", ("statistics/coco.npz", tmp_path / str(number)), worker)
    content = (cluster._settings.data_path / "statistics" / "coco.npz").read_bytes()
    for _ in range(2):
        outcome = cluster.outcome()
        assert outcome.kind == "result", outcome.value
        assert outcome.value == b"coco.npz:" + content


def test_a_file_that_is_not_there_fails_the_shard_and_no_other(cluster: Watched, tmp_path: Path) -> None:
    cluster.submit("lost", "cluster_jobs:fetch", ("outputs/1/2-3", tmp_path))
    outcome = cluster.outcome()
    assert outcome.kind == "error"
    assert "the service has no file outputs/1/2-3" in outcome.value
    cluster.submit("again", "cluster_jobs:fetch", ("statistics/coco.npz", tmp_path))
    assert cluster.outcome().kind == "result"


def test_a_service_that_does_not_answer_is_not_waited_for_for_ever(cluster: Watched) -> None:
    cluster.submit("unheard", "cluster_jobs:ask_nobody", {})
    outcome = cluster.outcome()
    assert outcome.kind == "error"
    assert "did not answer a worker's question about statistics within 0.3 s" in outcome.value


def test_an_answer_that_comes_too_late_is_dropped() -> None:
    questions.deliver("unknown", ["coco.npz"])
    assert questions._waiting == {}
