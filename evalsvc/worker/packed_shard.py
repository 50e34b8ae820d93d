"""Shards of a service: the function that its workers run, on its own machine and on others."""

from __future__ import annotations

from dataclasses import replace

from evalsvc.cluster.nanny import Report
from evalsvc.config import Settings
from evalsvc.files.kept import CarriedFiles
from evalsvc.messages import ShardRequest, pack_result
from evalsvc.worker.shard import run_shard


def run_packed_shard(request: ShardRequest, report: Report, settings: Settings) -> bytes:
    """Run a shard by `run_shard`, and pack its result, which carries new kept files to the service."""
    files = CarriedFiles(settings.statistics_path)
    result = run_shard(request, report, settings, files)
    return pack_result(request.stage, result if result.error is not None else replace(result, kept=files.new))
