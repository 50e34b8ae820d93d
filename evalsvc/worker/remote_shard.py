"""Shards of a service whose data folder is on another machine: files are requested from, and sent back to, the
service."""

from __future__ import annotations

from dataclasses import replace

from evalsvc.cluster.nanny import Report
from evalsvc.cluster.questions import AskedService
from evalsvc.config import Settings
from evalsvc.files.service_files import ServiceFiles
from evalsvc.messages import ShardRequest, ShardResult
from evalsvc.worker.shard import run_shard


def run_remote_shard(request: ShardRequest, report: Report, settings: Settings) -> ShardResult:
    """Run a shard like `run_shard`, with files from the service instead of this machine's data folder."""
    files = ServiceFiles(AskedService(report.key), settings.copies_path)
    result = run_shard(request, report, settings, files)
    return result if result.error is not None else replace(result, kept=files.new)
