"""A shard of a service whose data folder is not this machine's: files are asked for, and new ones sent back."""

from __future__ import annotations

from dataclasses import replace

from evalsvc.cluster.nanny import Report
from evalsvc.cluster.questions import AskedService
from evalsvc.config import Settings
from evalsvc.files.service_files import ServiceFiles
from evalsvc.messages import ShardRequest, ShardResult
from evalsvc.worker.shard import run_shard


def run_remote_shard(request: ShardRequest, report: Report, settings: Settings) -> ShardResult:
    """Do what `run_shard` does, with the files of the service in the place of this machine's."""
    files = ServiceFiles(AskedService(report.key), settings.copies_path)
    result = run_shard(request, report, settings, files)
    return result if result.error is not None else replace(result, kept=files.new)
