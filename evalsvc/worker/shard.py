"""Running one shard of an evaluation. Read this module first.

    run_shard(request, report, settings) → the task's plan, run or merge → ShardResult with an output or an error

The service runs every shard by `run_packed_shard` in worker processes, and `evalsvc run` by `run_shard` in its own
process (`local.py`). A worker process runs one shard at a time and caches the last model, and that of the run's base,
for the next shard (`models.py`).
"""

from __future__ import annotations

import logging
import platform
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from evalsvc import __version__
from evalsvc.checkpoints.remote.fetch import fetched
from evalsvc.config import Settings
from evalsvc.errors import ArtifactNotWritten, EvalsvcError, InternalError, OutOfMemory
from evalsvc.files.kept import CarriedFiles, KeptFolder, require_shared
from evalsvc.files.outputs import OutputsLost, read_output
from evalsvc.messages import ShardError, ShardRequest, ShardResult, pack_result
from evalsvc.sampling.memory import is_out_of_memory
from evalsvc.spec.engines import chosen_engines
from evalsvc.spec.suite import build_task
from evalsvc.tasks.stages import run_stage
from evalsvc.tasks.task import work_of
from evalsvc.worker.context import Report, ShardContext

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]


def run_shard(
    request: ShardRequest, report: Report, settings: Settings, files: KeptFolder | None = None
) -> ShardResult:
    """Plan a task, run one of its shards, or merge some or all shards, depending on `request.stage`.

    `settings` are those of the process, which the command line or the worker's nanny has read once. `files` are kept
    files [those of the settings].

    Raises only KeyboardInterrupt and SystemExit: every other exception is returned as `ShardResult.error`.
    """
    started = time.monotonic()
    context: ShardContext | None = None
    try:
        if request.service:
            require_shared(settings.shared_path, request.service)
        wanted = [request.checkpoint] if request.base is None else [request.checkpoint, request.base]
        with fetched(wanted, settings, report) as (checkpoint, *base):
            task = build_task(request.task)
            engines = chosen_engines(request.task.parameters.get("engine"))
            context = ShardContext(checkpoint, settings, report, base[0] if base else None, files, engines)
            context.is_first |= request.is_first
            context.sampler.reserve((request.stage, request.task, request.checkpoint))
            if request.stage == "plan":
                # Report a file that is not a checkpoint before reading the suite's data.
                context.inspect_checkpoint(task.reads)
            read = partial(read_output, settings.outputs_path)
            output = run_stage(work_of(task), request, context, read)
        return ShardResult(output, None, _provenance(context, started))
    except (KeyboardInterrupt, SystemExit):
        raise
    except OutputsLost as error:
        lost = ShardError(ArtifactNotWritten.code, f"outputs of other shards cannot be read: {error}")
        return ShardResult(None, lost, _provenance(context, started), error.files)
    except BaseException as error:  # a panic in a library's Rust code is not an Exception, and would end the worker
        return ShardResult(None, _shard_error(error), _provenance(context, started))


def run_packed_shard(request: ShardRequest, report: Report, settings: Settings) -> bytes:
    """Run a shard for a service, and pack its result, which carries new kept files to the service."""
    files = CarriedFiles(settings.statistics_path)
    result = run_shard(request, report, settings, files)
    return pack_result(request.stage, result if result.error is not None else replace(result, kept=files.carried()))


def _shard_error(error: BaseException) -> ShardError:
    if isinstance(error, EvalsvcError):
        return ShardError(error.code, error.told)
    reason = " ".join(str(error).split())
    if is_out_of_memory(error):
        advice = "lower EVALSVC_BATCH_TOKENS, evaluate in bfloat16, or use a device with more memory"
        log.error("out of memory", exc_info=error)
        return ShardError(OutOfMemory.code, f"the worker ran out of memory; {advice} ({reason or 'MemoryError'})")
    log.error("a shard failed with an unexpected error", exc_info=error)
    where = ""
    for entry in traceback.extract_tb(error.__traceback__):
        if Path(entry.filename).is_relative_to(PACKAGE):
            where = f" at {Path(entry.filename).relative_to(PACKAGE.parent)}:{entry.lineno}"  # the innermost of ours
    return ShardError(
        InternalError.code, f"{type(error).__name__}: {reason}{where}; the worker's log has the whole traceback"
    )


def _provenance(context: ShardContext | None, started: float) -> dict[str, object]:
    return {
        **({} if context is None else context.to_provenance()),
        # As plain text: torch's own version class would import torch in the process that receives it.
        "versions": {"evalsvc": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "host": platform.node(),
        "seconds": round(time.monotonic() - started, 3),
    }
