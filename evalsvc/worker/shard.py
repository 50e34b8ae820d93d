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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalsvc import __version__
from evalsvc.checkpoints.expression import digest_of, require_parts
from evalsvc.checkpoints.opening import opened, opened_weights
from evalsvc.checkpoints.reference import (
    CheckpointRef,
    Virtual,
    check_sha256,
    hash_files,
    identify,
    named,
    parents_of,
    verify,
)
from evalsvc.checkpoints.remote.fetch import fetched
from evalsvc.config import Settings
from evalsvc.data.images import ImageSource, read_images
from evalsvc.errors import CheckpointGone, EvalsvcError, InternalError, MissingPackage, OutOfMemory
from evalsvc.files.opened import Allow, anywhere
from evalsvc.messages import ShardError, ShardRequest, ShardResult
from evalsvc.spec.layout import VocabularyLayout, parse_layout, text_only
from evalsvc.spec.looks import Until, stop_note
from evalsvc.spec.model_config import ModelConfig, resolve_config
from evalsvc.spec.paths import Readable, local_data
from evalsvc.spec.protocol import canonical_json, plain_json
from evalsvc.spec.suite import Suite, TaskSpec, build_task
from evalsvc.tasks.suspicions import few_warnings
from evalsvc.tasks.task import Context, TaskResult, Work, work_of

try:
    import torch

    from evalsvc.checkpoints.weights import read_weights
    from evalsvc.decoders import ImageDecoder, load_decoder
    from evalsvc.decoders.config import BESIDE
    from evalsvc.features import FeatureExtractor, load_extractor
    from evalsvc.features.digit_classifier import DigitClassifier, load_classifier
    from evalsvc.models.loading import load_model, saved_frequencies
    from evalsvc.models.open_lm import Transformer
    from evalsvc.models.virtual import agreed_config, load_virtual, virtual_frequencies
    from evalsvc.precision import use_full_float32
    from evalsvc.sampling.memory import is_out_of_memory
except ModuleNotFoundError as error:
    raise MissingPackage(f"evaluating needs the package {error.name!r}; run: pip install 'evalsvc[worker]'") from None

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]

Report = Callable[[int], None]
"""Called with the units done in this shard so far; raises Cancelled when the work is to stop."""


def run_shard(request: ShardRequest, report: Report) -> ShardResult:
    """Plan a task, run one of its shards, merge the first or merge them all, as `request.stage` says.

    Raises nothing but KeyboardInterrupt and SystemExit: every other exception comes back as `ShardResult.error`.
    """
    started = time.monotonic()
    context: RunnerContext | None = None
    try:
        settings = Settings.load()
        wanted = [request.checkpoint] if request.base is None else [request.checkpoint, request.base]
        with fetched(wanted, settings, report) as (checkpoint, *base):
            context = RunnerContext(checkpoint, settings, report, base[0] if base else None)
            context.is_first |= request.is_first
            output = _run_stage(work_of(build_task(request.task)), request, context)
        return ShardResult(output, None, _provenance(context, started))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a library's Rust is no Exception, and would end the worker
        return ShardResult(None, _shard_error(error), _provenance(context, started))


def _run_stage(work: Work[Any], request: ShardRequest, context: RunnerContext) -> Any:
    if request.stage == "plan":
        # A file that is no checkpoint shall say so before the suite's data are looked at.
        context.inspect_checkpoint()
        plan = work.plan(context)
        return {
            "shards": [dict(shard) for shard in plan.shards],
            "total": plan.total,
            "unit": plan.unit,
            "looks": [list(look) for look in plan.looks],
            "until": None if plan.until is None else plan.until.model_dump(),
        }
    if request.stage == "run":
        return work.run(context, request.shards[0])
    output = _merge_output(work.merge(context, request.shards, request.outputs))
    return output if request.stage == "merge" else {key: output[key] for key in ("metrics", "protocols")}


def _merge_output(result: TaskResult) -> dict[str, Any]:
    return {
        "metrics": [metric.to_json() for metric in result.metrics],
        "protocols": {metric.protocol.id: dict(metric.protocol.content) for metric in result.metrics},
        "items": plain_json(list(result.items)),
        "artifacts": [artifact.to_message() for artifact in result.artifacts],
        "notes": plain_json(result.notes),
        "warnings": plain_json([warning.to_json() for warning in few_warnings(result.warnings)]),
    }


class RunnerContext(Context):
    """What a task gets from this process: its device, the checkpoint's model and layout, local files."""

    base: RunnerContext | None

    def __init__(
        self, checkpoint: CheckpointRef, settings: Settings, report: Report, base: CheckpointRef | None = None
    ) -> None:
        self.checkpoint = _confined(checkpoint, settings)
        self.base = None if base is None else RunnerContext(base, settings, report)
        self._beside = base
        self.is_first = base is not None and base.path == checkpoint.path
        if self.base is not None:
            self._beside = self.base.checkpoint
            self.base._beside = self.checkpoint
        self.device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_tokens = settings.batch_tokens
        self.allow_benchmark_code = bool(settings.allow_benchmark_code)
        self.readable = Readable(settings)
        self.report = report
        self.dtype: str | None = None
        self.provenance: dict[str, Any] = {}
        self._frequencies: tuple[float, ...] | None = None
        self._settings = settings
        self._assets = settings.assets_path
        self._statistics = settings.statistics_path
        torch.set_num_threads(settings.worker_threads())
        use_full_float32()

    def inspect_checkpoint(self) -> None:
        """Raise what opening the checkpoint would raise, short of reading its weights."""
        verify(self.checkpoint)
        with opened(self.checkpoint) as checkpoint, named(checkpoint):
            for file in parents_of(checkpoint) or [checkpoint]:
                read_weights(Path(file.path))
            if checkpoint.virtual is not None:
                config = _resolve_config(checkpoint)
                require_parts(checkpoint.virtual.expression, config.n_layers, config.weight_tying)

    def digest(self) -> str:
        loaded = _models.loaded(self.checkpoint)
        return loaded.digests[""] if loaded else _known_digest(self.checkpoint)

    def model(self, *, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
        self.dtype = dtype
        model = _models.get(self.checkpoint, dtype, self.device, rotary_inv_freq_dtype, self._beside)
        self._frequencies = model.saved_inv_freq
        return model

    def rotary(self) -> Mapping[str, str]:
        if self._frequencies is None:
            self._frequencies = self._read_frequencies()
        return {"rotary": "file"} if self._frequencies else {}

    def rotary_values(self) -> Mapping[str, Sequence[float]]:
        """What the provenance says of rotary frequencies that are a checkpoint's own, as far as they were asked for."""
        found = {"rotary_inv_freq": self._frequencies, "base_rotary_inv_freq": self.base and self.base._frequencies}
        return {name: list(values) for name, values in found.items() if values}

    def _read_frequencies(self) -> tuple[float, ...]:
        if (loaded := _models.loaded(self.checkpoint)) is not None:
            return loaded.model.saved_inv_freq
        verify(self.checkpoint)
        with opened(self.checkpoint) as checkpoint, named(checkpoint):
            saved = _saved_frequencies(checkpoint)
        return () if saved is None else tuple(saved.tolist())

    def layout(self) -> VocabularyLayout:
        rows = self.model_config().vocab_size
        with named(self.checkpoint):
            layout = text_only(rows) if self.checkpoint.layout is None else parse_layout(self.checkpoint.layout)
            if layout.text.tokenizer is not None:
                self.dataset(layout.text.tokenizer)
            return layout.resolve(rows)

    def dataset(self, path: str) -> str:
        return local_data(self._settings, path)

    def images(self, path: str) -> ImageSource:
        return read_images(self.dataset(path), self.readable)

    def classifier(self, path: str) -> DigitClassifier:
        with opened_weights(Path(self.dataset(path)), self.readable) as pinned:
            return load_classifier(pinned, device=self.device)

    def _allow_of(self, name: str) -> Allow:
        """What may be read of an asset: the operator's own folder may well be made of links."""
        return self.readable if "/" in name else anywhere

    def asset(self, name: str) -> Path:
        from evalsvc.assets import locate_asset

        return Path(self.dataset(name)) if "/" in name else locate_asset(name, self._assets)

    def decoder(self, name: str, config: str | None = None, ema: bool = False, dtype: str = "float32") -> ImageDecoder:
        path = self.asset(name)
        if config is None and "/" not in name:
            config = name  # an asset's shape is registered under its name
        elif config is not None and "/" in config:
            config = self.dataset(config)
        key = (f"decoder {dtype}", path, identify(path), config, ema, self.device)

        def load() -> ImageDecoder:
            with ExitStack() as stack:
                pinned = stack.enter_context(opened_weights(path, self._allow_of(name), (BESIDE,)))
                shape = config
                if config is not None and "/" in config:
                    shape = str(stack.enter_context(opened_weights(Path(config), self.readable)))
                return load_decoder(pinned, shape, ema, dtype=dtype, device=self.device)

        decoder: ImageDecoder = _companions.get(key, load)
        return decoder

    def extractor(self, name: str, kind: str = "inception") -> FeatureExtractor:
        path = self.asset(name)
        key = (f"extractor {kind}", path, identify(path), self.device)

        def load() -> FeatureExtractor:
            with opened_weights(path, self._allow_of(name)) as pinned:
                return load_extractor(kind, pinned, device=self.device)

        extractor: FeatureExtractor = _companions.get(key, load)
        return extractor

    def statistics_folder(self) -> Path:
        return self._statistics

    def model_config(self) -> ModelConfig:
        loaded = _models.loaded(self.checkpoint)
        if loaded is not None:
            return loaded.model.config
        verify(self.checkpoint)
        with opened(self.checkpoint) as checkpoint, named(checkpoint):
            return _resolve_config(checkpoint)


def _confined(checkpoint: CheckpointRef, settings: Settings) -> CheckpointRef:
    """Return a reference that is opened only where this process may read checkpoints, and its own copies of them."""
    if checkpoint.virtual is None:
        roots = (*settings.root_paths, *settings.kept_paths)
        return replace(checkpoint, roots=roots, closed=settings.private_paths)
    parents = {name: _confined(parent, settings) for name, parent in checkpoint.virtual.parents.items()}
    return replace(checkpoint, virtual=Virtual(checkpoint.virtual.expression, parents))


@dataclass(frozen=True)
class LoadedModel:
    source: tuple[Any, ...]
    """Which checkpoint it is: path, identity, configuration, and its parents."""
    form: tuple[str, str, str]
    """How it was loaded: dtype, device, rotary_inv_freq_dtype."""
    model: Transformer
    digests: Mapping[str, str]
    """SHA-256 of a virtual checkpoint's parents by their names, and of the checkpoint itself by ""."""


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
        check_sha256(checkpoint, loaded.digests[""], loaded.digests)
        return loaded.model


_models = ModelCache()


class CompanionCache:
    """The image decoder and the feature extractors that were loaded last: every checkpoint of a run needs the same."""

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
    if checkpoint.virtual is not None:
        return checkpoint.path, tuple(map(_source, parents_of(checkpoint)))
    identity = checkpoint.identity or identify(Path(checkpoint.path))
    return checkpoint.path, identity, canonical_json(checkpoint.model and dict(checkpoint.model))


def _load(checkpoint: CheckpointRef, form: tuple[str, str, str]) -> LoadedModel:
    """Load and hash at the same time, both from one open file; it must be the posted one before and after."""
    verify(checkpoint)
    source = _source(checkpoint)
    with (
        opened(checkpoint) as pinned,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="hash") as executor,
    ):
        verify(pinned)
        digests = executor.submit(_digests, pinned)
        try:
            with named(checkpoint):
                model = _load_model(pinned, form)
        except Exception:
            # What was replaced while it was read fails in many ways; that it was replaced is the thing to say.
            _require_posted(checkpoint, digests)
            raise
        _require_posted(checkpoint, digests)
    return LoadedModel(source, form, model, digests.result())


def _load_model(checkpoint: CheckpointRef, form: tuple[str, str, str]) -> Transformer:
    dtype, device, rotary = form
    config = _resolve_config(checkpoint)
    if checkpoint.virtual is None:
        path = Path(checkpoint.path)
        return load_model(path, config, dtype=dtype, device=device, rotary_inv_freq_dtype=rotary)
    paths = {name: Path(parent.path) for name, parent in checkpoint.virtual.parents.items()}
    expression = checkpoint.virtual.expression
    return load_virtual(expression, paths, config, dtype=dtype, device=device, rotary_inv_freq_dtype=rotary)


def _saved_frequencies(checkpoint: CheckpointRef) -> torch.Tensor | None:
    config = _resolve_config(checkpoint)
    if checkpoint.virtual is None:
        path = Path(checkpoint.path)
        return saved_frequencies(path, config, read_weights(path).tensors)
    paths = {name: Path(parent.path) for name, parent in checkpoint.virtual.parents.items()}
    return virtual_frequencies(checkpoint.virtual.expression, paths, config)


def _resolve_config(checkpoint: CheckpointRef) -> ModelConfig:
    if checkpoint.virtual is None:
        return resolve_config(checkpoint.model, Path(checkpoint.path))
    parents = checkpoint.virtual.parents
    return agreed_config({name: _resolve_config(parent) for name, parent in parents.items()})


def _known_digest(checkpoint: CheckpointRef) -> str:
    """What was found before, or is found now."""
    if checkpoint.sha256 is not None:
        return checkpoint.sha256
    if checkpoint.virtual is not None:
        parents = checkpoint.virtual.parents
        return digest_of(checkpoint.virtual.expression, {name: _known_digest(parents[name]) for name in parents})
    verify(checkpoint)
    with opened(checkpoint) as pinned:
        found = _hash(pinned)
    verify(checkpoint)
    return found


def _digests(checkpoint: CheckpointRef) -> dict[str, str]:
    """As `LoadedModel.digests`, all of them found now."""
    if checkpoint.virtual is None:
        return {"": _hash(checkpoint)}
    found = {name: _hash(parent) for name, parent in checkpoint.virtual.parents.items()}
    return {"": digest_of(checkpoint.virtual.expression, found), **found}


def _hash(checkpoint: CheckpointRef) -> str:
    try:
        return hash_files(Path(checkpoint.path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointGone(f"{checkpoint.label}: {checkpoint.path} went away while it was read: {reason}") from None


def _require_posted(checkpoint: CheckpointRef, digests: Future[dict[str, str]]) -> None:
    verify(checkpoint)
    check_sha256(checkpoint, digests.result()[""], digests.result())


# what goes wrong, and what is recorded


def _shard_error(error: BaseException) -> ShardError:
    if isinstance(error, EvalsvcError):
        return ShardError(error.code, error.message)
    reason = " ".join(str(error).split())
    if is_out_of_memory(error):
        advice = "lower EVALSVC_BATCH_TOKENS, evaluate in bfloat16, or use a device with more memory"
        log.error("out of memory", exc_info=error)
        return ShardError(OutOfMemory.code, f"the worker ran out of memory; {advice} ({reason or 'MemoryError'})")
    log.error("a shard failed with an unexpected error", exc_info=error)
    where = f" at {frame}" if (frame := _innermost_frame(error)) else ""
    return ShardError(
        InternalError.code, f"{type(error).__name__}: {reason}{where}; the worker's log has the whole traceback"
    )


def _innermost_frame(error: BaseException) -> str:
    entries = [(Path(entry.filename), entry.lineno) for entry in traceback.extract_tb(error.__traceback__)]
    ours = [f"{path.relative_to(PACKAGE.parent)}:{line}" for path, line in entries if path.is_relative_to(PACKAGE)]
    return ours[-1] if ours else ""


def _provenance(context: RunnerContext | None, started: float) -> dict[str, Any]:
    common = {
        # As plain text: torch's own kind of it would bring torch into the process that receives it.
        "versions": {"evalsvc": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
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
        **_known_digests(context.checkpoint),
        **context.rotary_values(),
        **plain_json(context.provenance),
        **common,
    }


def _known_digests(checkpoint: CheckpointRef) -> dict[str, Any]:
    try:
        loaded = _models.loaded(checkpoint)
    except EvalsvcError:  # gone since, which is for the next shard to say
        loaded = None
    if loaded is None:
        return {"checkpoint_sha256": checkpoint.sha256}
    parents = {name: sha256 for name, sha256 in loaded.digests.items() if name}
    return {"checkpoint_sha256": loaded.digests[""], **({"parents_sha256": parents} if parents else {})}


# evalsvc run


@dataclass(frozen=True)
class TaskLook:
    """What is known of a task when some of its shards are done, or all."""

    task: str
    result: ShardResult
    """Of the merge of these shards; or of the stage that failed."""
    shards: Sequence[Mapping[str, Any]]
    """Provenance of each of them."""
    units: int
    """What the result rests on, of `total`; 0 where a stage failed."""
    total: int
    unit: str
    last: bool


def run_suite(
    suite: Suite,
    checkpoint: CheckpointRef,
    report: Callable[[str, int, int, str], None],
    base: CheckpointRef | None = None,
    interim: Callable[[TaskLook], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint in this process, without a service. `base` is what it is compared with, if anything.

    `report` gets the task's name, the units done, the units in all, and what they are; `interim` what is known of a
    task before its end, where it can be looked at then. A task that fails is an entry of `errors`, and the others go
    on. For the result see `result_document`.
    """
    ends = []
    for task in suite.tasks:
        for look in walk_task(task, checkpoint, report, base, between=interim is not None):
            if look.last:
                ends.append(look)
            elif interim is not None:
                interim(look)
    return result_document(suite, checkpoint, ends)


def result_document(suite: Suite, checkpoint: CheckpointRef, looks: Sequence[TaskLook]) -> dict[str, Any]:
    """What these looks, one a task, say of a checkpoint.

    JSON-able but for the contents of artifacts, with the keys `checkpoint`, `suite`, `metrics` (each with its `task`),
    `protocols`, and, by task, `items`, `artifacts`, `errors`, `warnings` and `provenance`.
    """
    by_task: dict[str, Any] = {"items": {}, "artifacts": {}, "errors": {}, "warnings": {}, "provenance": {}}
    result: dict[str, Any] = {"metrics": [], "protocols": {}, **by_task}
    sha256 = checkpoint.sha256
    for look in looks:
        found, task = look.result, look.task
        if found.error is not None:
            result["errors"][task] = found.error.to_json()
        else:
            result["metrics"] += [{**metric, "task": task} for metric in found.output["metrics"]]
            result["protocols"] |= found.output["protocols"]
            result["items"][task] = found.output["items"]
            result["artifacts"][task] = found.output["artifacts"]
            if found.output["warnings"]:
                result["warnings"][task] = found.output["warnings"]
        notes = found.output["notes"] if found.output else {}
        result["provenance"][task] = {**found.provenance, "shards": look.shards, "notes": notes}
        sha256 = found.provenance.get("checkpoint_sha256") or sha256
    return {
        "checkpoint": {"path": checkpoint.path, "label": checkpoint.label, "sha256": sha256},
        "suite": {"name": suite.name, "digest": suite.digest, "tasks": suite.to_json()["tasks"]},
        **result,
    }


def walk_task(
    task: TaskSpec,
    checkpoint: CheckpointRef,
    report: Callable[[str, int, int, str], None],
    base: CheckpointRef | None = None,
    *,
    between: bool,
) -> Iterator[TaskLook]:
    """Evaluate one task shard by shard, and give what is known at its end; before it, too, where `between` is set.

    Whoever needs no more may stop asking: a shard runs only when what follows it is asked for.
    """
    plan = run_shard(ShardRequest(task, "plan", checkpoint, base=base), lambda done: None)
    if plan.error is not None:
        yield TaskLook(task.name, plan, [], 0, 0, "", last=True)
        return
    payloads, total, unit = plan.output["shards"], plan.output["total"], plan.output["unit"]
    until = None if plan.output["until"] is None else Until(**plan.output["until"])
    looks = dict(plan.output["looks"])
    sample = max(looks.values(), default=total)
    outputs: list[Any] = []
    provenance: list[Mapping[str, Any]] = []
    before = 0

    def look(result: ShardResult, units: int, last: bool) -> TaskLook:
        return TaskLook(task.name, result, list(provenance), units, sample, unit, last)

    def merge() -> ShardResult:
        request = ShardRequest(task, "merge", checkpoint, payloads[: len(outputs)], list(outputs), base)
        return run_shard(request, lambda done: None)

    for payload in payloads:

        def progress(done: int, before: int = before) -> None:
            report(task.name, before + done, total, unit)

        result = run_shard(ShardRequest(task, "run", checkpoint, [payload], base=base), progress)
        if result.error is not None:
            yield look(result, 0, last=True)
            return
        outputs.append(result.output)
        provenance.append(result.provenance)
        before += payload["units"]
        units = looks.get(len(outputs))
        if units is None or len(outputs) == len(payloads) or not (between or until):
            continue
        merged = merge()
        if merged.error is not None:  # too little for a result so far
            continue
        if until and (reason := until.reached(merged.output["metrics"])):
            merged.output["notes"]["stopped"] = stop_note(reason, units, sample, unit)
            yield look(merged, units, last=True)
            return
        if between:
            yield look(merged, units, last=False)
    yield look(merge(), sample, last=True)
