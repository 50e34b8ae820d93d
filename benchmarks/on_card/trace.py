"""What torch's profiler saw, by what it is for in a step that draws codes.

The kernels of a replayed graph name no operator. Which operator a kernel belongs to is seen in steps that run without
graphs; a name that is not among those is judged by its words.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.profiler import profile

Part = Literal["attention", "products", "head", "noise", "other"]
PARTS: tuple[Part, ...] = ("attention", "products", "head", "noise", "other")
ATTENTION_WORDS = ("fmha", "attention", "flash", "sdpa", "attend_part", "join_parts")
PRODUCT_WORDS = ("gemm", "cublas", "cutlass", "nvjet", "splitk", "gemv")
PRODUCTS = ("aten::linear", "aten::mm", "aten::addmm", "aten::matmul", "mkldnn::_linear_pointwise")


@dataclass(frozen=True)
class Span:
    """Something that took time, on a processor's thread or on the card; times in microseconds."""

    name: str
    start: float
    length: float
    arguments: Mapping[str, Any]

    @property
    def end(self) -> float:
        return self.start + self.length

    def number(self, *names: str) -> int | None:
        """Return the first argument of these names that is there."""
        return next((int(self.arguments[name]) for name in names if name in self.arguments), None)


@dataclass(frozen=True)
class Trace:
    operators: list[tuple[Span, tuple[Span, ...], float]]
    """On the processor, each with those around it and the time that none inside of it took."""
    kernels: list[Span]
    """On the card, copies and fills included."""
    graphs: frozenset[int]
    """Correlations of what graphs launched."""

    @property
    def by_id(self) -> dict[int, tuple[Span, ...]]:
        """By the number that kernels name: an operator and those around it."""
        found = {}
        for operator, around, _ in self.operators:
            if (number := operator.number("External id", "external id")) is not None:
                found[number] = (operator, *around)
        return found


def read_trace(profiler: profile) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    whole = [event for event in events if event.get("ph") == "X"]
    by_kind: dict[str, list[Span]] = defaultdict(list)
    by_thread: dict[Any, list[Span]] = defaultdict(list)
    for event in whole:
        span = Span(str(event["name"]), float(event["ts"]), float(event.get("dur", 0)), event.get("args", {}))
        by_kind[str(event.get("cat", ""))].append(span)
        if event.get("cat") == "cpu_op":
            by_thread[event.get("tid")].append(span)
    launches = [*by_kind["cuda_runtime"], *by_kind["cuda_driver"]]
    graphs = {span.number("correlation") for span in launches if "GraphLaunch" in span.name}
    return Trace(
        operators=[found for spans in by_thread.values() for found in _nested(spans)],
        kernels=[*by_kind["kernel"], *by_kind["gpu_memcpy"], *by_kind["gpu_memset"]],
        graphs=frozenset(number for number in graphs if number is not None),
    )


def _nested(spans: Sequence[Span]) -> Iterator[tuple[Span, tuple[Span, ...], float]]:
    """Yield each span of one thread with those around it, innermost first, and the time that is its own."""
    inside: dict[int, float] = defaultdict(float)
    found: list[tuple[Span, tuple[Span, ...]]] = []
    around: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.length)):
        while around and around[-1].end < span.end:
            around.pop()
        if around:
            inside[id(around[-1])] += span.length
        found.append((span, tuple(reversed(around))))
        around.append(span)
    for span, outer in found:
        yield span, outer, max(0.0, span.length - inside[id(span)])


def part_of(operators: Sequence[Span], codes: int) -> Part:
    """Return what an operator, with those around it, is for in a step that draws from so many codes."""
    names = [operator.name for operator in operators]
    if any("attention" in name for name in names):
        return "attention"
    shapes = [
        (shape, kind)
        for operator in operators
        for shape, kind in zip(
            operator.arguments.get("Input Dims", ()), operator.arguments.get("Input type", ()), strict=False
        )
        if isinstance(shape, list)
    ]
    if any(name in PRODUCTS for name in names):
        return "head" if any(codes in shape for shape, _ in shapes) else "products"
    if any(name.startswith(("triton", "draw_row")) for name in names):
        return "noise"  # nothing else is compiled where graphs are replayed
    of_codes = [kind for shape, kind in shapes if shape[-1:] == [codes]]
    if any(kind in ("long int", "double") for kind in of_codes):
        return "noise"
    return "head" if of_codes else "other"


def named_parts(trace: Trace, codes: int) -> dict[str, Part]:
    """Return the parts of kernels by their names, where all of one name are for the same."""
    operators = trace.by_id
    parts: dict[str, set[Part]] = defaultdict(set)
    for kernel in trace.kernels:
        number = kernel.number("External id", "external id")
        if number in operators:
            found = part_of(operators[number], codes)
            parts[kernel.name].add("products" if found == "head" else found)
    return {name: found.pop() if len(found) == 1 else "other" for name, found in parts.items()}


def _by_words(name: str) -> Part:
    lowered = name.lower()
    if any(word in lowered for word in ATTENTION_WORDS):
        return "attention"
    return "products" if any(word in lowered for word in PRODUCT_WORDS) else "other"


@dataclass(frozen=True)
class Account:
    """Where the profiled steps went; microseconds of all of them."""

    parts: Mapping[Part, float]
    names: Mapping[Part, Counter[str]]
    """Microseconds by kernel."""
    between: float
    """From the first beginning to the last end."""
    launched: int
    """Kernels, or operators on a CPU."""

    @property
    def busy(self) -> float:
        return sum(self.parts.values())


def account(trace: Trace, names: Mapping[str, Part], codes: int) -> Account:
    """Sum up kernels, or on a CPU operators, by what they are for."""
    found = list(_sorted_out(trace, names, codes))
    parts: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
    by_name: dict[Part, Counter[str]] = {part: Counter() for part in PARTS}
    for span, part, own in found:
        parts[part] += own
        by_name[part][span.name] += own
    first = min((span.start for span, _, _ in found), default=0.0)
    return Account(parts, by_name, max((span.end for span, _, _ in found), default=0.0) - first, len(found))


def _sorted_out(trace: Trace, names: Mapping[str, Part], codes: int) -> Iterator[tuple[Span, Part, float]]:
    if not trace.kernels:
        for operator, around, own in trace.operators:
            yield operator, part_of((operator, *around), codes), own
        return
    operators = trace.by_id
    last_product: dict[int, Span] = {}
    replayed: list[tuple[Span, Part, int]] = []
    for kernel in sorted(trace.kernels, key=lambda one: one.start):
        launch = kernel.number("correlation")
        if launch is not None and launch in trace.graphs:
            part = names.get(kernel.name) or _by_words(kernel.name)
            replayed.append((kernel, part, launch))
            if part == "products":
                last_product[launch] = kernel
            continue
        around = operators.get(kernel.number("External id", "external id") or -1, ())
        if kernel.name.startswith("triton"):
            yield kernel, "noise", kernel.length
        elif around:
            yield kernel, part_of(around, codes), kernel.length
        else:
            yield kernel, names.get(kernel.name) or _by_words(kernel.name), kernel.length
    for kernel, part, launch in replayed:
        yield kernel, "head" if last_product.get(launch) is kernel else part, kernel.length
