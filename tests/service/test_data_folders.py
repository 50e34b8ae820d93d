"""Workers with data folders of their own, which see statistics, answers and outputs in the shared folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import Laboratory
from machines import Command, Machines
from miniature_run import DECODER, LAYOUT
from posts_and_results import submission
from queue_steps import enter
from safetensors.numpy import load_file, save_file
from sqlalchemy import select
from tiny_vision import write_clip

from evalsvc.checkpoints.reference import identify
from evalsvc.files.kept import claim_shared
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import parse_suite
from evalsvc.store.queue import transitions
from evalsvc.store.tables import Shard, Task

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("child_process")]

REAL = 40
SAMPLES = 24


class Site:
    """A service in this process, and workers of its scheduler, each with an empty data folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines = Machines(folder / "machines")
        self.laboratory = Laboratory(folder)
        self.shared = self.laboratory.data / "shared"
        claim_shared(self.shared, "this service")
        self.mounted = folder / "mounted"
        self.mounted.symlink_to(self.shared)
        self.coordinator = self.laboratory.start(**self.machines.settings())
        self._started = 0

    def start_worker(self, shared: Path | None = None) -> Command:
        self._started += 1
        data = self.folder / f"worker-{self._started}"
        self.machines.environment = {"EVALSVC_DATA_DIR": str(data), "EVALSVC_SHARED": str(shared or self.mounted)}
        worker = self.machines.start_worker()
        self.laboratory.wait_until(lambda _: self.coordinator.workers() == 1)
        return worker

    def stop_worker(self, worker: Command) -> None:
        worker.stop()
        self.laboratory.wait_until(lambda _: self.coordinator.workers() == 0)

    def evaluate(self, step: int, suite_name: str, **task: Any) -> Task:
        """The task, once it has succeeded on the checkpoint of this step."""
        done = self.end_of(step, suite_name, **task)
        assert done.state == "succeeded", done.error
        return done

    def end_of(self, step: int, suite_name: str, **task: Any) -> Task:
        """The task, once it is over."""
        weights = ROOT / "runs" / "pretrained" / "checkpoints" / f"epoch_{step}.pt"
        suite = parse_suite({"tasks": [task]}, suite_name)
        posted = submission(
            step, uri=str(weights), path=str(weights), identity=identify(weights), layout=LAYOUT, run="run-a"
        )
        [evaluation] = enter(self.laboratory.store, posted, suite)
        self.laboratory.wake()
        self.laboratory.wait(evaluation, 300)
        with self.laboratory.store.reading() as session:
            [done] = session.scalars(select(Task).where(Task.evaluation_id == evaluation))
            return done

    def parts(self, task: Task) -> list[str]:
        """Which kinds of shards a task was cut into."""
        with self.laboratory.store.reading() as session:
            query = select(Shard.payload).where(Shard.task_id == task.id, Shard.stage == "run").order_by(Shard.index)
            return [str((payload or {})["part"]) for payload in session.scalars(query)]

    def close(self) -> None:
        self.laboratory.close()
        self.machines.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Any]:
    """Parameters of a small task of images, which compares with features of a tiny CLIP."""
    (tmp_path / "clip").mkdir()
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:REAL]}, tmp_path / "real.safetensors")
    return {
        "kind": "text_to_image",
        "name": "digits",
        "captions": str(ROOT / "captions.jsonl"),
        "samples": SAMPLES,
        "decoder": DECODER,
        "reference": str(tmp_path / "real.safetensors"),
        "clip": str(write_clip(tmp_path / "clip")),
        "metrics": ["cmmd"],
        "batch": SAMPLES,
        "keep": 0,
        "shard_size": 20,
    }


def test_features_are_computed_once_and_answers_asked_once(site: Site, images: dict[str, Any], tmp_path: Path) -> None:
    """The second worker has seen neither the real images' features nor the base's answers."""
    questions = {"kind": "language", "benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 12}
    first = site.start_worker()
    computed, asked = site.evaluate(5, "images", **images), site.evaluate(0, "text", **questions)
    assert site.parts(computed) == ["reference", "reference", "sample", "sample"]
    assert [shard["answers_reused"] for shard in asked.provenance["shards"]] == [0]
    kept = sorted(path.name[64:] for path in (site.shared / "statistics").glob("*.npz"))
    assert kept == [".features.npz", ".moments.npz"], "the service has them"
    assert not (tmp_path / "worker-1" / "statistics").exists(), "and not the worker"
    site.stop_worker(first)
    site.start_worker()
    found = site.evaluate(5, "images-again", **{**images, "samples": SAMPLES, "shard_size": 12})
    assert site.parts(found) == ["sample", "sample"], "nothing was computed again, not by the merge either"
    # Parts of another size round features otherwise, and a small CMMD is a difference of means that are close to 1.
    assert [metric["value"] for metric in found.metrics or ()] == pytest.approx(
        [metric["value"] for metric in computed.metrics or ()], rel=1e-5, abs=1e-7
    )
    again = site.evaluate(0, "text-again", **questions, shard_size=6)
    assert sum(shard["answers_reused"] for shard in again.provenance["shards"]) == 4 * 12
    assert again.metrics == asked.metrics


def test_a_worker_without_the_folder_fails_the_task(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards are tried again, on other workers where there are any; the results of a merge would be lost."""
    monkeypatch.setattr(transitions, "FIRST_BACK_OFF", 0.1)
    worker = site.start_worker(tmp_path / "elsewhere")
    failed = site.end_of(0, "text", kind="language", benchmarks=["cloze"], include_path=[str(ROOT)], limit=2)
    assert failed.error["code"] == "source_unreachable"
    assert f"cannot use {tmp_path / 'elsewhere'} as the folder" in failed.error["message"]
    site.stop_worker(worker)
