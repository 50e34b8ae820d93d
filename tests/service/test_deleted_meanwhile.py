"""A run is deleted while a worker is at it: the worker stops, nothing of the run comes back, the next run goes on."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from service_process import ServiceProcess

from evalsvc.miniature import ROOT

pytestmark = pytest.mark.usefixtures("child_process")

TIMEOUT = 40.0


def steps(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("spool", ["link", pytest.param("copy", marks=pytest.mark.long)])
def test_a_run_that_is_deleted_while_it_is_evaluated(tmp_path: Path, spool: str) -> None:
    weights, log = tmp_path / "epoch_1.pt", tmp_path / "steps.log"
    shutil.copy(ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_1.pt", weights)
    service = ServiceProcess(tmp_path / "service", "--devices", "cpu").start()
    try:
        slow: dict[str, Any] = {"kind": "steps", "name": "s", "log": str(log), "shards": 3, "steps": 2000}
        service.put_suite("slow", slow | {"seconds": 0.05, "leaves": True, "size": 100_000})
        service.put_suite("fast", slow | {"seconds": 0.0, "steps": 2, "log": str(tmp_path / "fast.log")})
        (old,) = service.post("run-a", 5, weights, ["slow"], spool=spool)
        deadline = time.monotonic() + TIMEOUT
        while not steps(log):
            assert time.monotonic() < deadline, service.evaluation(old)
            time.sleep(0.05)
        deleted = service.request("DELETE", "/v1/runs/run-a", params={"confirm": "run-a", "cancel": True})
        assert (deleted["checkpoints"], deleted["evaluations"]) == (1, 1)
        # Its one worker takes this up only once it was told to stop: the shard would take 100 s.
        (new,) = service.post("run-a", 5, weights, ["fast"])
        assert new > old
        found = service.wait(new, TIMEOUT)
        assert found["state"] == "succeeded", found
        assert [task["shards"]["attempts"] for task in found["tasks"]] == [3]
        assert service.history("run-a") == {("s/total", 5): 6.0}
        before = steps(log)
        time.sleep(0.5)
        assert steps(log) == before
        left = [
            path for name in ("spool", "outputs") for path in (service.data_dir / name).rglob("*") if path.is_file()
        ]
        assert left == []
    finally:
        service.stop()
