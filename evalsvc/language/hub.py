"""Datasets of the Hugging Face hub, which only `evalsvc benchmarks prepare` fetches, never an evaluation.

An evaluation finds them in the cache of the package `datasets` (HF_HOME, HF_DATASETS_CACHE). Without a network, that
cache only finds datasets that were requested by name alone; for datasets with `dataset_kwargs` (`data_files`, …), a
copy is kept in the same folder.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import httpx2
import huggingface_hub.constants
from datasets.exceptions import DatasetsError

from evalsvc.checkpoints.network_guard import without_network
from evalsvc.errors import AssetMissing, InvalidData
from evalsvc.language.private import LOADERS, hub_offline
from evalsvc.language.schema import BUILDERS, by_split
from evalsvc.spec.protocol import digest

log = logging.getLogger(__name__)

LOADING = (OSError, ValueError, RuntimeError, DatasetsError)
"""Exceptions of `datasets.load_dataset` where the dataset or the network is at fault."""

REACH_SECONDS = 10.0
"""Timeout of the first contact with the hub before a download, whose client would retry for half a minute."""

Rows = Mapping[str, datasets.Dataset]


@dataclass(frozen=True)
class Source:
    """Source of a benchmark's rows, as arguments of `datasets.load_dataset`."""

    path: str
    name: str | None
    """Name of the configuration; None for the only or default configuration."""
    options: Mapping[str, object]
    splits: tuple[str, ...]

    @property
    def arguments(self) -> dict[str, object]:
        """`options` without those that `datasets` 4 and later refuse (scripts) or does not keep (streaming)."""
        return {key: value for key, value in self.options.items() if key not in ("trust_remote_code", "streaming")}

    @property
    def remote(self) -> bool:
        local = self.path in BUILDERS or Path(self.path).is_dir()
        return not local or "://" in str(self.options.get("data_files"))

    def __str__(self) -> str:
        name = f"configuration {self.name!r}, " if self.name else ""
        files = f"files {self.options['data_files']}, " if "data_files" in self.options else ""
        return f"the dataset {self.path!r} ({name}{files}splits {', '.join(map(repr, self.splits))})"


_DATASET = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_PART = re.compile(r"(?!\.\.$)[\w*?\[\]{}.,:+=@ ()-]{1,256}")


def require_named(source: Source) -> None:
    """Raise unless a submitter's source names a dataset of the hub: `datasets` prefers folders and loaders of files."""
    local = source.path in LOADERS or os.path.exists(source.path)
    if local or not _DATASET.fullmatch(source.path):
        raise InvalidData(
            "`dataset_path` is neither a dataset of the hub, such as allenai/ai2_arc, nor one of "
            f"{', '.join(BUILDERS)} with the paths of its `data_files`; correct `dataset_path`"
        )
    files = source.options.get("data_files") or []
    parts = [source.name or "default", *(name for names in by_split(files).values() for name in names)]
    if not all(_PART.fullmatch(piece) and "::" not in piece for part in parts for piece in part.split("/")):
        raise InvalidData(
            "`data_files` and `dataset_name` of a hub dataset are names or relative paths within it; correct them"
        )


def cached(source: Source) -> Rows:
    """Return a dataset from the cache, without a network."""
    copy = _copy(source)
    with offline():
        try:
            return datasets.load_from_disk(str(copy)) if copy.is_dir() else _load(source)
        except LOADING as error:
            if source.remote and (isinstance(error, OSError) or "find cache" in str(error)):
                raise AssetMissing(f"{source} is not in the cache") from error
            raise InvalidData(f"{source} cannot be read: {one_line(error)}") from error


def fetch(source: Source) -> Rows:
    """Download a dataset into the cache, unless `cached` finds it."""
    try:
        return cached(source)
    except AssetMissing:
        _require_hub()
    with online():
        try:
            rows = _load(source)
        except LOADING as error:
            raise AssetMissing(f"{source} cannot be fetched: {one_line(error)}") from error
    if source.arguments:
        folder = _copy(source)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
            datasets.DatasetDict(rows).save_to_disk(f"{temporary}/rows")
            with contextlib.suppress(OSError):  # another process was faster
                os.replace(f"{temporary}/rows", folder)
    return rows


def _require_hub() -> None:
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        httpx2.head(endpoint, timeout=REACH_SECONDS)
    except httpx2.HTTPError as error:
        raise AssetMissing(
            f"the Hugging Face hub {endpoint} cannot be reached ({one_line(error)}); try again on a machine with a "
            "network and copy its cache (HF_HOME) to this machine, or set HF_ENDPOINT to a mirror"
        ) from error


@contextmanager
def offline() -> Iterator[None]:
    """Block the network in this thread within the context, for the hub's clients and any other code."""
    with hub_offline(True), without_network():
        yield


online = partial(hub_offline, False)
"""Context in which the hub's clients may use the network, regardless of the environment."""


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.debug("%s: %s", record.name, record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Redirect output and logs of lm-eval, `datasets` and the code of benchmarks to evalsvc's log, at debug level."""
    printed, forward = io.StringIO(), _Forward()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "evaluate")]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [forward], False
        with redirect_stdout(printed), redirect_stderr(printed), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        if text := printed.getvalue().strip():
            log.debug("printed by a benchmark: %s", text)


def _load(source: Source) -> Rows:
    return datasets.load_dataset(source.path, source.name, **source.arguments)  # type: ignore[no-any-return]


def _copy(source: Source) -> Path:
    arguments = {key: repr(value) for key, value in source.arguments.items()}
    return Path(datasets.config.HF_DATASETS_CACHE) / "evalsvc" / digest([source.path, source.name, arguments])[:32]


def one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
