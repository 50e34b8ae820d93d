"""Dask's settings in every process that uses Dask."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import dask
from distributed import Security

from evalsvc.cluster.certificates import CA, CERT, KEY
from evalsvc.config import Settings, thread_waits
from evalsvc.errors import DataDirectoryUnusable, InvalidRequest, os_reason
from evalsvc.log import adopt_dask

WIDGETS_ONLY = "1h"
"""Time between two inventories of the workers, which Dask makes for its widgets in notebooks; by default every second
or two."""

NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
"""Options of every scheduler, worker and nanny. If bokeh is installed, Dask by default shows its dashboard to every
user of the machine; with these options the address only answers whether the process lives."""

SCRATCH_PREFIX = "evalsvc-dask-"
"""Prefix of private folders for Dask, in processes without a data folder of their own."""

DASK_SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # SQL counts the attempts
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.http.routes": ["distributed.http.health"],
    "distributed.worker.daemon": False,  # a shard may start processes of its own
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "5s",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.client.scheduler-info-interval": WIDGETS_ONLY,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.comm.timeouts.connect": "5s",
    "distributed.comm.timeouts.tcp": "30s",
    "distributed.comm.require-encryption": True,
    "distributed.logging": {"distributed": "error"},
}


def configure(settings: Settings, scratch: Path, processes: int = 1) -> None:
    """Configure Dask here, overriding the user's own Dask configuration. `processes` workers share the cores. No other
    user may write `scratch`. Dask's default is shared by all users of the machine: a lock there stops every worker from
    starting, and Dask puts the folder first among those that Python imports from."""
    # Without a network, Dask warns that it found no address for a scheduler within this process.
    warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
    adopt_dask()
    threads = str(settings.worker_threads(processes))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    # With Triton installed, torch's compiler would otherwise start processes of its own when it is imported.
    environment |= {**thread_waits(), "TORCH_WARM_POOL": "0"}
    dask.config.set(
        {
            **DASK_SETTINGS,
            "temporary-directory": str(scratch),
            "distributed.scheduler.worker-ttl": f"{settings.worker_ttl}s",
            # The nanny's own default is one thread, which changes the speed and the order of summation.
            "distributed.nanny.pre-spawn-environ": environment,
        }
    )


def private_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(None, "it is a link, or the folder of another user")
        folder.chmod(0o700)
    except OSError as error:
        raise DataDirectoryUnusable(
            f"the folder {folder} cannot be used: {os_reason(error)}; remove it, or choose "
            "another data folder with --data-dir (EVALSVC_DATA_DIR)"
        ) from None
    return folder


def security_of(settings: Settings) -> Security:
    if not settings.tls:
        raise InvalidRequest(
            "an existing scheduler needs TLS; set --tls FOLDER (EVALSVC_TLS), which evalsvc certificates creates"
        )
    folder = Path(settings.tls).expanduser()
    if missing := [name for name in (CA, CERT, KEY) if not (folder / name).is_file()]:
        raise InvalidRequest(
            f"--tls {folder} (EVALSVC_TLS): there is no {', '.join(missing)}; run evalsvc certificates, or correct the "
            "path"
        )
    pair = {"cert": str(folder / CERT), "key": str(folder / KEY)}
    roles = {f"tls_{role}_{part}": file for role in ("client", "worker", "scheduler") for part, file in pair.items()}
    return Security(require_encryption=True, tls_ca_file=str(folder / CA), **roles)
