"""Shards of a service: the functions that its workers run, which return packed results."""

from __future__ import annotations

from dataclasses import replace

from evalsvc.cluster.nanny import Report
from evalsvc.cluster.questions import AskedService
from evalsvc.config import Settings
from evalsvc.files.service_files import ServiceFiles
from evalsvc.messages import ShardRequest, pack_result
from evalsvc.worker.shard import run_shard


def run_packed_shard(request: ShardRequest, report: Report, settings: Settings) -> bytes:
    """Run a shard by `run_shard`, and pack its result."""
    return pack_result(request.stage, run_shard(request, report, settings))


def run_remote_shard(request: ShardRequest, report: Report, settings: Settings) -> bytes:
    """Run a shard of a service whose data folder is on another machine, with files that the service sends, and send new
    files back."""
    files = ServiceFiles(AskedService(report.key), settings.copies_path)
    result = run_shard(request, report, settings, files)
    return pack_result(request.stage, result if result.error is not None else replace(result, kept=files.new))
