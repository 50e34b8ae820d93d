"""The job that Slurm is given: its script is what runs there."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from evalsvc.cluster.certificates import write_certificates
from evalsvc.errors import InvalidRequest, MissingPackage


def test_what_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    monkeypatch.delitem(sys.modules, "evalsvc.cluster.slurm", raising=False)
    with pytest.raises(MissingPackage, match=r"Slurm jobs need the package 'dask_jobqueue'; run: pip install dask-job"):
        importlib.import_module("evalsvc.cluster.slurm")


def test_a_job_runs_our_worker_in_the_place_of_its_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask-jobqueue's own command starts workers that do not drain, and that no shard is given to."""
    from evalsvc.cluster.slurm import slurm_cluster

    with pytest.raises(InvalidRequest, match="give --tls-ca FILE"):
        slurm_cluster(0)
    for name, path in write_certificates(tmp_path / "tls").items():
        monkeypatch.setenv(f"EVALSVC_TLS_{name.removesuffix('.pem').upper()}", str(path))
    port = free_port()
    with slurm_cluster(0, host="127.0.0.1", port=port, walltime="02:00:00") as cluster:
        script = cluster.job_script()
        address = cluster.scheduler_address
    assert address == f"tls://127.0.0.1:{port}"
    lines = script.splitlines()
    assert "#SBATCH --signal=B:TERM@300" in lines
    assert "#SBATCH -t 02:00:00" in lines
    assert f" -m evalsvc.cli worker {address} --tls-ca {tmp_path}/tls/ca.pem " in lines[-1]
    assert lines[-1].startswith("exec ")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
