"""Computing the results of a checkpoint again, by evalsvc and by reference engines, and comparing them item by item.

    verify_tasks → first items of a task → run_shard with each engine → compare → findings

Each reference engine computes one stage, and evalsvc computes the others. Both sides compute in float32.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError
from evalsvc.files.kept import CarriedFiles
from evalsvc.messages import MergeResult, PlanResult, ShardDocument, ShardRequest, ShardResult, Stage
from evalsvc.spec import catalog
from evalsvc.spec.engines import EXTRACTOR, FLOAT64, GROUPS, OWN, engine_names, has_stage, release_of, with_engine
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.protocol import canonical_json
from evalsvc.spec.suite import TaskSpec, build_task
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.golden_checks import FEATURES, compare_arrays
from evalsvc.verify.recorded import RecordedTask
from evalsvc.worker.context import ShardContext
from evalsvc.worker.shard import run_shard

FACTOR, LEAST, MEASURED = 8, 1e-6, 4
"""Ratio of a tolerance to the rounding, as two programs round; least tolerance; items that rounding is measured on."""

ROUNDING = f"tolerance: {FACTOR} times the rounding of float32, measured against float64"

TIES = 10
"""Number of images or texts of which one may differ: rounding decides between equally likely ids."""

SHARE = 0.025
"""Share of an image's pixels that may differ by a level of 8 bits: rounding parts values on two sides of a tie."""

IN_FLOAT32: Mapping[str, Any] = {
    "dtype": "float32",
    "decoder_dtype": "float32",
    "weights": "plain",
    "cache_dtype": None,
    "engine": None,
}
"""Parameters of the comparison. Items that were recorded with other values cannot be compared."""

_BARE: Mapping[str, Any] = {"protocol": None, "metrics": [], "classifier": None, "until": None}

CUT: Mapping[str, Mapping[str, Any]] = {
    "images": _BARE,
    "language": {},
    "loss": {},
    "reconstruction": {"extractor": None},
    "text_to_image": _BARE,
}
"""Kinds of tasks whose items are compared, with parameters that leave out everything but items."""

BY_IMAGES = ("images", "reconstruction", "text_to_image")
"""Kinds of tasks whose shards are ranges of images; others limit the number of their items."""

CONTENT = {"data", "decoder", "fit", "images", "layout", "rotary", "tokenizer"}
"""Entries of a protocol for the inputs of an item, whatever the number of items."""

RECORDED = "recorded items"

KEYS = ("benchmark", "index", "id", "guidance_scale")
"""Keys by which items are matched."""

Row: TypeAlias = NDArray[np.float64] | tuple[str, ...]
"""Item: numbers that are compared by their relative difference, or words that are equal or not."""

Rows: TypeAlias = Mapping[tuple[object, ...], Row]


@dataclass(frozen=True)
class VerifyRequest:
    settings: Settings
    engines: Sequence[tuple[str, str]] = ()
    """Stages with the reference engines to compare with [all]."""
    n: int = 64
    """Maximum number of items of a task: images, sequences, or documents of each benchmark."""
    report: Callable[[str, int], None] = lambda task, done: None
    """Callback with a task's name and the number of finished items."""


@dataclass(frozen=True)
class Computed:
    rows: Rows
    images: Sequence[NDArray[np.uint8]]  # sampled, [H, W, 3]
    protocols: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]


def verify_tasks(tasks: Sequence[RecordedTask], request: VerifyRequest) -> list[Finding]:
    """Compute the first items of tasks again. A comparison that cannot be made here is a finding with the reason."""
    return [finding for task in tasks for finding in _verify(task, request)]


def cut_task(spec: TaskSpec, n: int) -> TaskSpec:
    """Return a task of a kind in CUT with at most its first `n` items, in float32."""
    known = {name: value for name, value in IN_FLOAT32.items() if name in spec.parameters}
    parameters = {**spec.parameters, **known, **CUT[spec.kind]}
    if spec.kind in BY_IMAGES:  # only the first shard is run
        parameters |= {name: n for name in ("shard_size", "keep") if name in parameters}
    else:
        limits = ["sample" if parameters.get("sample") else "limit"]
        limits += ["general_text_limit"] if parameters.get("general_text") else []
        parameters |= {name: min(n, parameters.get(name) or n) for name in limits}
    return TaskSpec(spec.kind, "verified", parameters)


def reference_engines(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    """Yield the stages of a task whose items can be compared, with the reference engines of each."""
    for stage in GROUPS:
        # Where codes lead to losses, one code at a tie between two entries would change every loss after it.
        if has_stage(spec, stage) and (stage != "decoder" or spec.kind in BY_IMAGES):
            yield from ((stage, name) for name in engine_names(stage) if name not in (OWN, FLOAT64))
    if spec.kind in BY_IMAGES and has_stage(spec, EXTRACTOR):
        yield from ((EXTRACTOR, name) for name in PROGRAMS)


def _verify(task: RecordedTask, request: VerifyRequest) -> Iterator[Finding]:
    name, spec = task.spec.name, task.spec
    if spec.kind == "forgetting":  # whose benchmarks are those of the task `language`
        fields = catalog.load("tasks", "language").model_fields
        spec = TaskSpec("language", name, {key: value for key, value in spec.parameters.items() if key in fields})
    if spec.kind not in CUT:
        yield Untried(name, "", f"items of a task of kind {spec.kind} are not compared")
        return
    bare = cut_task(spec, request.n)
    try:
        own = _compute(task, bare, request)
        is_numeric = any(isinstance(row, np.ndarray) for row in own.rows.values())
        tolerance = _rounding(task, spec, request) if is_numeric else LEAST
    except EvalsvcError as error:
        yield Untried(name, "", error.message)
        return
    if task.items and spec.kind != "images":  # whose items are of given pixels, which only features are computed of
        try:
            yield from list(_compare_recorded(task, spec, own, tolerance))
        except (AttributeError, LookupError, TypeError, ValueError):  # a service of another version
            yield Untried(name, RECORDED, "they are in the form of another version of evalsvc; evaluate again")
    for stage, engine in reference_engines(spec):
        if request.engines and (stage, engine) not in request.engines:
            continue
        program = f"{stage} by {release_of(engine)}"
        try:
            if stage == EXTRACTOR:
                yield _compare_features(task, own, engine, program, request)
                continue
            theirs = _compute(task, with_engine(bare, stage, engine), request)
            if stage == "decoder" and own.images:
                yield _compare_images(name, program, own, theirs)
            else:
                yield from _compare_rows(task.spec, program, own.rows, theirs.rows, tolerance)
        except EvalsvcError as error:
            yield Untried(name, program, error.message)


def _compute(task: RecordedTask, spec: TaskSpec, request: VerifyRequest, settings: Settings | None = None) -> Computed:
    """Plan a task, run its shards and merge, as a worker does. Answers of earlier evaluations are not reused."""
    with tempfile.TemporaryDirectory(prefix="evalsvc-verify-") as folder:
        files = CarriedFiles(Path(folder))

        def step(stage: Stage, shards: Sequence[ShardDocument] = (), outputs: Sequence[bytes] = ()) -> ShardResult:
            wanted = ShardRequest(spec, stage, task.checkpoint, shards, outputs)
            result = run_shard(wanted, partial(request.report, task.spec.name), settings or request.settings, files)
            if result.error is not None:
                raise EvalsvcError(result.error.message)
            return result

        plan = step("plan").output
        assert isinstance(plan, PlanResult), "the output of a plan"
        shards = [shard for shard in plan.shards if spec.kind not in BY_IMAGES or shard["start"] == 0]
        results = [step("run", [shard]) for shard in shards]
        merged = step("merge", shards, [each.output for each in results if isinstance(each.output, bytes)]).output
    assert isinstance(merged, MergeResult), "the output of a merge"
    files_of_images = [artifact.content for artifact in merged.artifacts if artifact.kind == "sample"]
    images = [np.asarray(Image.open(io.BytesIO(content), formats=("PNG",))) for content in files_of_images]
    return Computed(_rows(spec.kind, merged.items), images, list(merged.protocols.values()), results[-1].provenance)


def _rows(kind: str, items: Sequence[Mapping[str, Any]]) -> dict[tuple[object, ...], Row]:
    rows: dict[tuple[object, ...], Row] = {}
    for item in items:
        key = tuple(item.get(name) for name in KEYS)
        if kind == "loss":
            names = sorted(name for name in item if name.startswith(("nll_", "within_", "image_mass")))
            rows[key] = np.array([item[name] for name in names], np.float64)
        elif "scores" in item:  # a log-probability and a flag for each scope of ids
            rows[key] = np.array([score[::2] for score in item["scores"]], np.float64)
        elif "text" in item:
            rows[key] = (*item["text"], *item.get("text_within", ()))
        elif "codes" in item:
            rows[key] = (str(item["codes"]),)
        elif "psnr" in item:
            rows[key] = (f"{float(item['psnr']):.1f} dB",)
    return rows


def _rounding(task: RecordedTask, spec: TaskSpec, request: VerifyRequest) -> float:
    # Rounding is measured on the CPU: a device that is less exact than float32 must not widen its own tolerance.
    few, settings = cut_task(spec, MEASURED), replace(request.settings, devices="cpu")
    narrow = _compute(task, few, request, settings)
    wide = _compute(task, with_engine(few, "model", FLOAT64), request, settings)
    return max(FACTOR * _difference(narrow.rows, wide.rows), LEAST)


def _difference(ours: Rows, theirs: Rows) -> float:
    gaps = [0.0]
    for key, row in ours.items():
        if isinstance(row, np.ndarray):
            other = theirs.get(key)
            if not isinstance(other, np.ndarray) or other.shape != row.shape:
                return np.inf
            gaps.append((np.abs(row - other) / np.maximum(1, np.abs(row))).max(initial=0))
    return float(np.max(gaps))  # NaN stays


def _compare_rows(spec: TaskSpec, program: str, ours: Rows, theirs: Rows, tolerance: float) -> Iterator[Agreement]:
    numbers = {key: row for key, row in ours.items() if isinstance(row, np.ndarray)}
    if numbers:
        what = "losses" if spec.kind == "loss" else "log-probabilities"
        quantity = f"{spec.name}: {what} of {len(numbers)} items"
        yield Agreement(quantity, program, _difference(numbers, theirs), tolerance, note=ROUNDING)
    values = {key: row for key, row in ours.items() if isinstance(row, tuple)}
    if values:
        differing = sum(row != theirs.get(key) for key, row in values.items())
        kinds = {"text_to_image": "images with other codes", "reconstruction": "images with another PSNR"}
        changed = kinds.get(spec.kind, "items with other texts")
        quantity = f"{spec.name}: {changed}, of {len(values)}"
        note = "rounding decides between equally likely ids" if spec.kind != "reconstruction" else ""
        yield Agreement(quantity, program, differing, len(values) // TIES, note=note)


def _compare_images(name: str, program: str, own: Computed, theirs: Computed) -> Agreement:
    gaps = [np.abs(first.astype(int) - second) for first, second in zip(own.images, theirs.images, strict=True)]
    differing = sum(bool(gap.max() > 1 or (gap > 0).mean() > SHARE) for gap in gaps)
    note = f"an image differs if a pixel does by 2 of 256 levels, or {SHARE:.1%} of its pixels by 1"
    return Agreement(f"{name}: images with other pixels, of {len(gaps)}", program, differing, 0, note=note)


def _compare_features(
    task: RecordedTask, own: Computed, engine: str, program: str, request: VerifyRequest
) -> Agreement:
    context = ShardContext(task.checkpoint, request.settings, lambda done: None)
    spec = build_task(task.spec)
    if own.images:
        pixels = torch.from_numpy(np.stack(own.images)).permute(0, 3, 1, 2)
    else:
        source = context.images(spec.images)
        decoder = context.decoder(spec.decoder, spec.decoder_config, spec.decoder_ema)
        count = min(request.n, len(source))
        fit = ImageCoder(decoder, spec.size, spec.crop, spec.filter).fit
        pixels = torch.cat(list(source.batches(range(count), fit, count)))
    asset = "inception" if spec.extractor in PROGRAMS else spec.extractor
    ours, theirs = context.extractor(asset), context.extractor(asset, engine)
    findings = []
    for tap in sorted(set(ours.taps) & set(theirs.taps)):
        first, second = (side.features(pixels, spec.resize, [tap])[tap].cpu() for side in (ours, theirs))
        quantity = f"{spec.name}: {tap:,} features of {len(pixels)} images"
        findings.append(compare_arrays(quantity, program, first, second, FEATURES[tap]))
    return min(findings, key=lambda finding: (finding.agrees, -finding.difference / finding.tolerance))


def _compare_recorded(task: RecordedTask, spec: TaskSpec, own: Computed, tolerance: float) -> Iterator[Finding]:
    others = [key for key, value in IN_FLOAT32.items() if spec.parameters.get(key, value) != value]
    recorded = _rows(spec.kind, task.items)
    common = {key: row for key, row in own.rows.items() if key in recorded}
    if others or not common:
        reason = f"recorded with another {', '.join(others)}" if others else "no item of the same data is recorded"
        yield Untried(task.spec.name, RECORDED, reason)
        return
    for finding in _compare_rows(task.spec, RECORDED, common, recorded, tolerance):
        reasons = [] if finding.agrees else _changes(task, own, of_machine=spec.kind != "loss")
        if reasons:
            yield Untried(finding.quantity, RECORDED, f"{finding.difference:.2g}, and {'; '.join(reasons)}")
        else:
            yield finding


def _changes(task: RecordedTask, own: Computed, *, of_machine: bool) -> list[str]:
    sides: list[dict[str, set[str]]] = []
    for protocols, provenance in (
        (task.protocols, (task.provenance.get("shards") or [{}])[-1]),
        (own.protocols, own.provenance),
    ):
        values: dict[str, set[str]] = {}
        for protocol in protocols:
            for key in protocol.keys() & CONTENT:
                values.setdefault(key, set()).add(canonical_json(protocol[key]))
        machine = {**provenance, "torch": provenance.get("versions", {}).get("torch")}
        values |= {key: {str(machine.get(key))} for key in ("device", "device_name", "threads", "torch") if of_machine}
        sides.append(values)
    before, now = sides
    return [
        f"{key} was {min(before[key])}, is {min(now[key])}"
        for key in sorted(before.keys() & now.keys())
        if before[key].isdisjoint(now[key])
    ]
