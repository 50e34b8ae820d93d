"""Running one shard in one process. Read `shard.py` first."""

from evalsvc.installation import missing_package

try:
    import evalsvc.worker.context  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_package(str(error.name), "evaluating") from None
