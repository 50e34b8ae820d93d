"""Read this first: how one piece of an evaluation is done.

    run_shard(request) → the task's plan, run or merge → ShardResult, an error in it if there was one

The service sends every shard through `run_shard` in its worker processes, and `evalsvc run` sends them through it one
after the other (`run_suite`): the numbers are the same, since nothing else computes them. A worker process does one
shard at a time and keeps the last model, and that of the run's base, for the next one.
"""

from __future__ import annotations

import logging
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalsvc import __version__
from evalsvc.checkpoints import CheckpointRef, check_sha256, hash_files, identify, verify
from evalsvc.config import Settings
from evalsvc.errors import CheckpointGone, EvalsvcError, InternalError, MissingPackage, OutOfMemory
from evalsvc.layout import VocabularyLayout, parse_layout, text_only
from evalsvc.model_config import ModelConfig, resolve_config
from evalsvc.protocol import canonical_json, plain_json
from evalsvc.shard import ShardError, ShardRequest, ShardResult
from evalsvc.suite import Suite, TaskSpec, build_task
from evalsvc.tasks.task import Context, Task, TaskResult

try:
    import torch

    from evalsvc.decoders import ImageDecoder, load_decoder
    from evalsvc.features import Inception, load_extractor
    from evalsvc.models.loading import load_model
    from evalsvc.models.open_lm import Transformer
    from evalsvc.weights import read_weights
except ModuleNotFoundError as error:
    raise MissingPackage(f"evaluating needs the package {error.name!r}; run: pip install 'evalsvc[worker]'") from None

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent

Report = Callable[[int], None]
"""Called with the units done in this shard so far; raises Cancelled when the work is to stop."""


def run_shard(request: ShardRequest, report: Report) -> ShardResult:
    """Plan a task, run one of its shards, or merge them all, as `request.stage` says.

    Raises nothing but KeyboardInterrupt and SystemExit: every other exception comes back as `ShardResult.error`.
    """
    started = time.monotonic()
    context: RunnerContext | None = None
    try:
        context = RunnerContext(request.checkpoint, Settings.load(), report, request.base)
        output = _run_stage(build_task(request.task), request, context)
        return ShardResult(output, None, _provenance(context, started))
    except Exception as error:
        return ShardResult(None, _shard_error(error), _provenance(context, started))


def _run_stage(task: Task, request: ShardRequest, context: RunnerContext) -> Any:
    if request.stage == "plan":
        # A file that is no checkpoint shall say so before the suite's data are looked at.
        context.inspect_checkpoint()
        plan = task.plan(context)
        return {"shards": [dict(shard) for shard in plan.shards], "total": plan.total, "unit": plan.unit}
    if request.stage == "run":
        return task.run(context, request.shards[0])
    return _merge_output(task.merge(context, request.shards, request.outputs))


def _merge_output(result: TaskResult) -> dict[str, Any]:
    return {
        "metrics": [metric.to_json() for metric in result.metrics],
        "protocols": {metric.protocol.id: dict(metric.protocol.content) for metric in result.metrics},
        "items": plain_json(list(result.items)),
        "artifacts": [artifact.to_message() for artifact in result.artifacts],
        "notes": plain_json(result.notes),
    }


class RunnerContext(Context):
    """What a task gets from this process: its device, the checkpoint's model and layout, local files."""

    def __init__(
        self, checkpoint: CheckpointRef, settings: Settings, report: Report, base: CheckpointRef | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.base = None if base is None else RunnerContext(base, settings, report)
        self._beside = base
        if self.base is not None:
            self.base._beside = checkpoint
        self.device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_tokens = settings.batch_tokens
        self.allow_benchmark_code = bool(settings.allow_benchmark_code)
        self.report = report
        self.dtype: str | None = None
        self._datasets = settings.datasets_path
        self._assets = settings.assets_path
        self._statistics = settings.statistics_path
        torch.set_num_threads(settings.worker_threads())

    def inspect_checkpoint(self) -> None:
        """Raise what opening the checkpoint would raise, short of reading its weights."""
        verify(self.checkpoint)
        with _named(self.checkpoint.label):
            read_weights(Path(self.checkpoint.path))

    def digest(self) -> str:
        loaded = _models.loaded(self.checkpoint)
        known = loaded.sha256 if loaded else self.checkpoint.sha256
        if known is None:
            verify(self.checkpoint)
            known = _hash(self.checkpoint)
            verify(self.checkpoint)
        return known

    def model(self, *, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
        self.dtype = dtype
        return _models.get(self.checkpoint, dtype, self.device, rotary_inv_freq_dtype, self._beside)

    def layout(self) -> VocabularyLayout:
        rows = self.model_config().vocab_size
        with _named(self.checkpoint.label):
            layout = text_only(rows) if self.checkpoint.layout is None else parse_layout(self.checkpoint.layout)
            return layout.resolve(rows)

    def dataset(self, path: str) -> str:
        return str(self._datasets / path.removeprefix("datasets:")) if path.startswith("datasets:") else path

    def asset(self, name: str) -> Path:
        from evalsvc.assets import locate_asset

        return Path(self.dataset(name)) if "/" in name else locate_asset(name, self._assets)

    def decoder(self, name: str, config: str | None = None, ema: bool = False) -> ImageDecoder:
        path = self.asset(name)
        if config is None and "/" not in name:
            config = name  # an asset's shape is registered under its name
        elif config is not None and "/" in config:
            config = self.dataset(config)
        key = ("decoder", path, identify(path), config, ema, self.device)
        decoder: ImageDecoder = _companions.get(key, lambda: load_decoder(path, config, ema, device=self.device))
        return decoder

    def extractor(self, name: str) -> Inception:
        path = self.asset(name)
        key = ("extractor", path, identify(path), self.device)
        extractor: Inception = _companions.get(key, lambda: load_extractor(path, device=self.device))
        return extractor

    def statistics_folder(self) -> Path:
        return self._statistics

    def model_config(self) -> ModelConfig:
        loaded = _models.loaded(self.checkpoint)
        if loaded is not None:
            return loaded.model.config
        verify(self.checkpoint)
        with _named(self.checkpoint.label):
            return resolve_config(self.checkpoint.model, Path(self.checkpoint.path))


@dataclass(frozen=True)
class LoadedModel:
    source: tuple[Any, ...]
    """Which checkpoint it is: path, identity, configuration."""
    form: tuple[str, str, str]
    """How it was loaded: dtype, device, rotary_inv_freq_dtype."""
    model: Transformer
    sha256: str


class ModelCache:
    """The model that was used last, and the one that is wanted beside it: a checkpoint's and its base's."""

    def __init__(self) -> None:
        self._loaded: list[LoadedModel] = []

    def loaded(self, checkpoint: CheckpointRef) -> LoadedModel | None:
        """What is there of this checkpoint."""
        source = _source(checkpoint) if self._loaded else None
        return next((loaded for loaded in self._loaded if loaded.source == source), None)

    def get(
        self,
        checkpoint: CheckpointRef,
        dtype: str,
        device: str,
        rotary_inv_freq_dtype: str,
        beside: CheckpointRef | None = None,
    ) -> Transformer:
        """The checkpoint's model. All others but that of `beside` are dropped first, since more may not fit.

        Raises:
            CheckpointGone, CheckpointChanged: it is not what was posted, or became so while it was read.
            CheckpointError, NonFinite, InvalidModelConfig: see `load_model`.
        """
        form = (dtype, device, rotary_inv_freq_dtype)
        loaded = self.loaded(checkpoint)
        if loaded is None or loaded.form != form:
            self._loaded = [
                other for other in self._loaded if beside and other.source[0] == beside.path != checkpoint.path
            ]
            loaded = None
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
            loaded = _load(checkpoint, form)
            self._loaded.append(loaded)
        check_sha256(checkpoint, loaded.sha256)
        return loaded.model


_models = ModelCache()


class CompanionCache:
    """The image decoder and the feature extractor that were loaded last: every checkpoint of a run needs the same."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def get(self, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
        """What was loaded under `key`, whose first part is its kind; one of each kind is kept."""
        kind = str(key[0])
        if kind not in self._loaded or self._loaded[kind][0] != key:
            self._loaded.pop(kind, None)
            self._loaded[kind] = (key, load())
        return self._loaded[kind][1]


_companions = CompanionCache()


def _source(checkpoint: CheckpointRef) -> tuple[Any, ...]:
    identity = checkpoint.identity or identify(Path(checkpoint.path))
    return checkpoint.path, identity, canonical_json(checkpoint.model and dict(checkpoint.model))


def _load(checkpoint: CheckpointRef, form: tuple[str, str, str]) -> LoadedModel:
    """Load and hash at the same time; the file must be the posted one before, after and in between."""
    verify(checkpoint)
    source = _source(checkpoint)
    path, (dtype, device, rotary) = Path(checkpoint.path), form
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="hash") as executor:
        sha256 = executor.submit(_hash, checkpoint)
        try:
            with _named(checkpoint.label):
                config = resolve_config(checkpoint.model, path)
                model = load_model(path, config, dtype=dtype, device=device, rotary_inv_freq_dtype=rotary)
        except Exception:
            # What was replaced while it was read fails in many ways; that it was replaced is the thing to say.
            _require_posted(checkpoint, sha256)
            raise
        _require_posted(checkpoint, sha256)
    return LoadedModel(source, form, model, sha256.result())


def _hash(checkpoint: CheckpointRef) -> str:
    try:
        return hash_files(Path(checkpoint.path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointGone(f"{checkpoint.label}: {checkpoint.path} went away while it was read: {reason}") from None


def _require_posted(checkpoint: CheckpointRef, sha256: Future[str]) -> None:
    verify(checkpoint)
    check_sha256(checkpoint, sha256.result())


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Put the checkpoint's name before the message of an error."""
    try:
        yield
    except EvalsvcError as error:
        raise type(error)(f"{label}: {error.message}") from error


# what goes wrong, and what is recorded


def _shard_error(error: Exception) -> ShardError:
    if isinstance(error, EvalsvcError):
        return ShardError(error.code, error.message)
    reason = " ".join(str(error).split())
    if _is_out_of_memory(error):
        advice = "lower EVALSVC_BATCH_TOKENS, evaluate in bfloat16, or use a device with more memory"
        log.error("out of memory", exc_info=error)
        return ShardError(OutOfMemory.code, f"the worker ran out of memory; {advice} ({reason or 'MemoryError'})")
    log.error("a shard failed with an unexpected error", exc_info=error)
    where = f" at {frame}" if (frame := _innermost_frame(error)) else ""
    return ShardError(
        InternalError.code, f"{type(error).__name__}: {reason}{where}; the worker's log has the whole traceback"
    )


def _is_out_of_memory(error: Exception) -> bool:
    # torch's allocator for the CPU raises a plain RuntimeError.
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return allocator or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _innermost_frame(error: Exception) -> str:
    entries = [(Path(entry.filename), entry.lineno) for entry in traceback.extract_tb(error.__traceback__)]
    ours = [f"{path.relative_to(PACKAGE.parent)}:{line}" for path, line in entries if path.is_relative_to(PACKAGE)]
    return ours[-1] if ours else ""


def _provenance(context: RunnerContext | None, started: float) -> dict[str, Any]:
    common = {
        "versions": {"evalsvc": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "host": platform.node(),
        "seconds": round(time.monotonic() - started, 3),
    }
    if context is None:
        return common
    return {
        "device": context.device,
        "device_name": torch.cuda.get_device_name(context.device) if context.device.startswith("cuda") else None,
        "dtype": context.dtype,
        "batch_tokens": context.batch_tokens,
        "threads": torch.get_num_threads(),
        "checkpoint_sha256": _known_sha256(context.checkpoint),
        **common,
    }


def _known_sha256(checkpoint: CheckpointRef) -> str | None:
    try:
        loaded = _models.loaded(checkpoint)
    except EvalsvcError:  # gone since, which is for the next shard to say
        loaded = None
    return loaded.sha256 if loaded else checkpoint.sha256


# evalsvc run


def run_suite(
    suite: Suite,
    checkpoint: CheckpointRef,
    report: Callable[[str, int, int, str], None],
    base: CheckpointRef | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint in this process, without a service. `base` is what it is compared with, if anything.

    `report` gets the task's name, the units done, the units in all, and what they are. A task that fails is an entry
    of `errors`, and the others go on. The result is JSON-able but for the contents of artifacts, with the keys
    `checkpoint`, `suite`, `metrics` (each with its `task`), `protocols`, and, by task, `items`, `artifacts`, `errors`
    and `provenance`.
    """
    by_task: dict[str, Any] = {"items": {}, "artifacts": {}, "errors": {}, "provenance": {}}
    result: dict[str, Any] = {"metrics": [], "protocols": {}, **by_task}
    sha256 = checkpoint.sha256
    for task in suite.tasks:
        final, shards = _run_task(task, checkpoint, report, base)
        if final.error is not None:
            result["errors"][task.name] = final.error.to_json()
        else:
            result["metrics"] += [{**metric, "task": task.name} for metric in final.output["metrics"]]
            result["protocols"] |= final.output["protocols"]
            result["items"][task.name] = final.output["items"]
            result["artifacts"][task.name] = final.output["artifacts"]
        notes = final.output["notes"] if final.output else {}
        result["provenance"][task.name] = {**final.provenance, "shards": shards, "notes": notes}
        sha256 = final.provenance.get("checkpoint_sha256") or sha256
    return {
        "checkpoint": {"path": checkpoint.path, "label": checkpoint.label, "sha256": sha256},
        "suite": {"name": suite.name, "digest": suite.digest, "tasks": suite.to_json()["tasks"]},
        **result,
    }


def _run_task(
    task: TaskSpec,
    checkpoint: CheckpointRef,
    report: Callable[[str, int, int, str], None],
    base: CheckpointRef | None,
) -> tuple[ShardResult, list[Mapping[str, Any]]]:
    """The merge of one task, or the first stage that failed; and the provenance of the shards that ran."""
    plan = run_shard(ShardRequest(task, "plan", checkpoint, base=base), lambda done: None)
    if plan.error is not None:
        return plan, []
    payloads, total, unit = plan.output["shards"], plan.output["total"], plan.output["unit"]
    outputs: list[Any] = []
    provenance: list[Mapping[str, Any]] = []
    before = 0
    for payload in payloads:

        def progress(done: int, before: int = before) -> None:
            report(task.name, before + done, total, unit)

        result = run_shard(ShardRequest(task, "run", checkpoint, [payload], base=base), progress)
        if result.error is not None:
            return result, provenance
        outputs.append(result.output)
        provenance.append(result.provenance)
        before += payload["units"]
    merged = run_shard(ShardRequest(task, "merge", checkpoint, payloads, outputs, base), lambda done: None)
    return merged, provenance
