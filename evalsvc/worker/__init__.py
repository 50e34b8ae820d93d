"""One shard in one process; `shard.py` is the first file to read."""

from evalsvc.installation import missing_package

try:
    import evalsvc.worker.context  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_package(str(error.name), "evaluating") from None
