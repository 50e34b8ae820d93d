"""One shard in one process; `shard.py` is the first file to read."""

from evalsvc.errors import MissingPackage

try:
    import evalsvc.worker.context  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingPackage(f"evaluating needs the package {error.name!r}; run: pip install 'evalsvc[worker]'") from None
