"""A nanny that takes a minute to notice that its worker has started."""

import asyncio
import os
from pathlib import Path
from typing import Self
from unittest.mock import patch

from evalsvc.cluster import supervisor
from evalsvc.cluster.nanny import WorkerNanny
from evalsvc.config import Settings


def serve_slowly(settings: Settings, scheduler: str, started: Path) -> None:
    """Do what `evalsvc worker` does; `started` is made once the worker process serves the scheduler."""

    class SlowNanny(WorkerNanny):
        async def __aenter__(self) -> Self:
            await super().__aenter__()
            started.touch()
            await asyncio.sleep(60)
            return self

    with patch.object(supervisor, "WorkerNanny", SlowNanny):
        os._exit(supervisor.run_workers(settings, scheduler, print))
