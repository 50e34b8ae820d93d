"""Workers as Slurm jobs, by dask-jobqueue: a scheduler in this process, and jobs that run `evalsvc worker` for it."""

from __future__ import annotations

import atexit
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evalsvc.cluster.settings import NO_DASHBOARD, SCRATCH_PREFIX, configure, security_of
from evalsvc.config import Settings
from evalsvc.errors import MissingPackage

try:
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.slurm import SLURMJob
except ModuleNotFoundError as error:
    raise MissingPackage(f"Slurm jobs need the package {error.name!r}; run: pip install dask-jobqueue") from None


class WorkerJob(SLURMJob):  # type: ignore[misc]
    """A job that runs `evalsvc worker` on the devices that Slurm gives it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        settings = Settings.load()
        command = [sys.executable, "-m", "evalsvc.cli", "worker", str(self.scheduler)]
        command += ["--tls-ca", settings.tls_ca, "--tls-cert", settings.tls_cert, "--tls-key", settings.tls_key]
        # In the shell's place: Slurm's signal goes to the first process of the job, and drains it.
        self._command_template = f"exec {shlex.join(command)}"


def slurm_cluster(
    jobs: int, *, host: str = "0.0.0.0", port: int = 8786, warning: int = 300, **options: Any
) -> SLURMCluster:
    """Start a scheduler here and ask Slurm for `jobs` jobs; the service is given its `scheduler_address`.

    The certificates are those of the settings (EVALSVC_TLS_CA and so on), under the same paths on all machines.

    Args:
        host, port: where the scheduler listens.
        warning: seconds before the end of a job's time at which it is told to finish its shards.
        options: of dask_jobqueue.SLURMCluster, such as queue, walltime, memory and job_extra_directives.

    Raises:
        InvalidRequest: a certificate is not given, or not there.
    """
    settings = Settings.load()
    security = security_of(settings)
    scratch = TemporaryDirectory(prefix=SCRATCH_PREFIX)
    atexit.register(scratch.cleanup)
    configure(settings, Path(scratch.name))
    directives = [f"--signal=B:TERM@{warning}", *options.pop("job_extra_directives", [])]
    listen = {"host": host, "port": port, **NO_DASHBOARD}
    defaults = {"cores": 1, "memory": "16GB", "protocol": "tls://"}
    return SLURMCluster(
        n_workers=jobs,
        job_cls=WorkerJob,
        security=security,
        scheduler_options=listen,
        job_extra_directives=directives,
        **(defaults | options),
    )
