"""Where the time of a step goes: which kernels, how fast attention reads, and how long the card waits between them."""

from __future__ import annotations

import copy
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from card_model import ASSUMPTIONS, Rates, record, slots_read, step_cost
from roofline import CARDS, Card
from side_by_side import seconds
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from evalsvc.models import StepShape, Transformer
from evalsvc.models.attention import grouped_attention
from evalsvc.models.decoding import SPAN, attention_kernel, attention_kind, attention_problem
from evalsvc.sampling import SamplerSpec, SamplingParams, generate
from evalsvc.sampling.memory import footprint
from evalsvc.sampling.noise import stream_keys
from evalsvc.sampling.sampler import Draw, draw_by, noise_kind
from on_card.kit import GIB, Kit, Row, at_most, figure, goal, holds, left_out
from on_card.rates import bandwidth, product_rate
from on_card.shapes import Enough, Steps, Subject, codes_of, exact, large, shortened
from on_card.trace import PARTS, Account, Trace, account, named_parts, read_trace

BATCHES, SMALL_BATCHES = (256, 32), (8,)
NOISE, GAPS = 0.03, 0.05
"""Goals: of a step, at most."""
EQUAL_SHARE = 0.99
COMPARED = 128
LARGEST = 5


@dataclass(frozen=True)
class Window:
    """Steps of a batch that share a span, so that one graph is replayed in all of them."""

    clocked: range
    """Without the profiler."""
    profiled: range


WINDOW = Window(range(535, 551), range(556, 572))
"""With a prompt of 36 tokens in 48 slots: 600 live tokens on average under the profiler, in a span of 640."""
SMALL_WINDOW = Window(range(4, 12), range(14, 18))


def run(kit: Kit) -> Iterator[Row]:
    """Compare codes by graphs with those without, profile steps, then time each of torch's attentions."""
    yield from _equal(kit)
    kit.release()
    subject = large(kit)
    model = subject.build(kit.device)
    with _profiler_kept():
        for batch in SMALL_BATCHES if kit.small else BATCHES:
            yield from _profiled(kit, subject, model, batch)
            kit.release()
    del model
    kit.release()
    for rows in SMALL_BATCHES if kit.small else BATCHES:
        yield from _attentions(kit, subject, rows)
        kit.release()
        yield from _draws(kit, subject, rows)
        kit.release()


def _equal(kit: Kit) -> Iterator[Row]:
    """Draw in float32 by the path that is profiled, with a copy of the weights, and plainly."""
    subject = exact(kit)
    model, prompts = subject.build(kit.device), subject.prompts(COMPARED)
    other = kit.touched(copy.deepcopy(model))
    plain = codes_of(model, prompts, subject.spec(COMPARED, path="plain"))
    graph = codes_of(other, prompts, subject.spec(COMPARED, path="graph"))
    differing = float((plain != graph).double().mean())
    yield at_most("codes by graphs that differ from plain ones", differing, 1 - EQUAL_SHARE, codes=graph.numel())


# the steps


def _profiled(kit: Kit, subject: Subject, model: Transformer, batch: int) -> Iterator[Row]:
    window = SMALL_WINDOW if kit.small else WINDOW
    spec = subject.spec(batch, path="graph")
    what = f"{subject.name}, batch {batch}"
    predicted = footprint(subject.config, spec, subject.padded, subject.dtype, device=str(kit.device))
    needed = predicted.total - predicted.weights
    if kit.free_bytes() < needed:
        reason = f"needs {needed / GIB:.1f} GiB, {kit.free_bytes() / GIB:.1f} free"
        yield left_out(f"{what}: where a step goes", reason)
        return
    names = named_parts(_eager_trace(kit, subject, model, batch), subject.codebook)
    kit.release()
    step, trace = _steps(kit, subject, model, spec, window)
    found = account(trace, names, subject.codebook)
    count = len(window.profiled)
    busy = found.busy * 1e-6 / count
    seen = f"{found.launched / count:.0f} a step, {sum(part > 0 for part in found.parts.values())} parts"
    yield holds(f"{what}: the profiler saw a step", found.launched > 0 and found.parts["attention"] > 0, seen)
    if not found.launched:
        return
    live = subject.prompt + statistics.mean(window.profiled)
    yield figure(f"{what}: a step at {live:.0f} live", 1e3 * step, "ms", under_profiler_ms=found.between / count / 1e3)
    yield _predicted(kit, subject, model, spec, window, step, what)
    for part in PARTS:
        share = found.parts[part] * 1e-6 / count / step
        largest = {name[:120]: spent / count / 1e3 for name, spent in found.names[part].most_common(LARGEST)}
        row = f"{what}: {part} of a step"
        yield goal(row, share, NOISE, below=True, ms=largest) if part == "noise" else figure(row, share, ms=largest)
    waits = max(0.0, 1 - busy / step)
    yield goal(
        f"{what}: gaps of a step",
        waits,
        GAPS,
        below=True,
        under_profiler=1 - found.busy / found.between if found.between else None,
    )
    if found.parts["attention"]:
        yield _attention_rate(kit, subject, batch, window, found, what, _kind(subject, model, spec))
    together: Counter[str] = Counter()
    for part in PARTS:
        together.update(found.names[part])
    largest = {name[:120]: spent / count / 1e3 for name, spent in together.most_common(LARGEST)}
    yield figure(f"{what}: largest kernel", next(iter(largest.values())), "ms", ms=largest)


def _attention_rate(
    kit: Kit, subject: Subject, batch: int, window: Window, found: Account, what: str, kind: str
) -> Row:
    """Return bytes a second of keys and values, those of the slots that the attention reads."""
    span = slots_read(kind, window.profiled, subject.padded, [subject.prompt])
    config = subject.config
    count = 2 * config.n_layers * batch * config.kv_dim * span * subject.dtype.itemsize
    rate = count * len(window.profiled) / (found.parts["attention"] * 1e-6)
    return figure(
        f"{what}: attention reads",
        rate / 1e9,
        "GB/s",
        of_bandwidth=rate / bandwidth(kit.device),
        span=span,
        kernels=[name[:200] for name in found.names["attention"]],
    )


def _kind(subject: Subject, model: Transformer, spec: SamplerSpec) -> str:
    return attention_kind(model, StepShape(spec.rows, range(subject.codebook), subject.padded + spec.length, "graph"))


def _predicted(
    kit: Kit, subject: Subject, model: Transformer, spec: SamplerSpec, window: Window, step: float, what: str
) -> Row:
    """Return a measured step over its prediction, which takes the card's data sheet and assumed shares of it."""
    sheet, kind = _data_sheet(kit), _kind(subject, model, spec)
    _, launches = record(subject.config, spec, subject.prompt, kind, subject.dtype)
    cost = step_cost(
        launches,
        Rates(CARDS.get(sheet) or _measured(kit, subject), kind),
        slots_read(kind, window.clocked, subject.padded, [subject.prompt]),
    )
    details = {
        "predicted_ms": cost.milliseconds,
        "launches": cost.launches,
        "parts_ms": cost.parts,
        "attention": kind,
        "data_sheet": sheet,
    }
    return figure(f"{what}: a step over its prediction", 1e3 * step / cost.milliseconds, "x", **details)


def _data_sheet(kit: Kit) -> str:
    """Return the name of this card's data sheet in CARDS; empty without one."""
    name = torch.cuda.get_device_name(kit.device) if kit.on_card else ""
    return next((sheet for sheet in CARDS if sheet.removesuffix(" SXM") in name), "")


def _measured(kit: Kit, subject: Subject) -> Card:
    """Return what this device was measured at, whose bandwidth is already that of reads."""
    rate, single = product_rate(kit.device, subject.dtype), product_rate(kit.device, torch.float32)
    return Card(bandwidth(kit.device) / ASSUMPTIONS["reads"].value, rate, single)


@contextmanager
def _profiler_kept() -> Iterator[None]:
    """Keep the driver's profiler between uses, as torch does for its own graphs: starting it anew can crash on them."""
    settings = {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _activities(kit: Kit) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, ProfilerActivity.CUDA] if kit.on_card else [ProfilerActivity.CPU]


def _profile(kit: Kit) -> profile:
    return profile(activities=_activities(kit), record_shapes=True)


def _wait(kit: Kit) -> None:
    if kit.on_card:
        torch.cuda.synchronize(kit.device)


def _eager_trace(kit: Kit, subject: Subject, model: Transformer, batch: int) -> Trace:
    """Profile a step that runs without graphs, at a span that its attention need not pad."""
    step = SPAN - subject.padded  # stored in the last slot of the first span
    short = shortened(subject, SPAN + 1 - subject.padded + SPAN)  # buffers of two spans
    profiler, drawn = _profile(kit), 0

    def on_step(_: int) -> None:
        nonlocal drawn
        drawn += 1
        if drawn == step:  # the codes 0 … step - 1
            _wait(kit)
            profiler.start()
        elif drawn == step + 1:
            _wait(kit)
            profiler.stop()
            raise Enough

    _draw(model, short, short.spec(batch, path="plain"), on_step)
    return read_trace(profiler)


def _steps(kit: Kit, subject: Subject, model: Transformer, spec: SamplerSpec, window: Window) -> tuple[float, Trace]:
    """Return the seconds of a step without the profiler, and what it saw of the following ones."""
    codes_of(model, subject.prompts(spec.batch), replace(spec, length=4))
    kit.release()
    profiler, drawn, clock = _profile(kit), 0, Steps(kit.device)

    def on_step(_: int) -> None:
        nonlocal drawn
        drawn += 1
        if drawn in (window.clocked.start, window.clocked.stop):
            clock.mark()
        if drawn == window.profiled.start:
            _wait(kit)
            profiler.start()
        elif drawn == window.profiled.stop:
            _wait(kit)
            profiler.stop()
            raise Enough

    _draw(model, subject, spec, on_step)
    return clock.seconds()[0] / len(window.clocked), read_trace(profiler)


def _draw(model: Transformer, subject: Subject, spec: SamplerSpec, on_step: Callable[[int], None]) -> None:
    try:
        for _ in generate(model, subject.prompts(spec.batch), spec, on_step):
            pass
    except Enough:
        pass


# attention by itself

SPANS, SMALL_SPANS = (64, 256, 640, 1_088), (64, 128)
BACK_ENDS = {
    "flash, unmasked": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
LAYER_ROWS = 24 * 32
"""Layers times rows whose keys and values are read in turn: more than the card's caches hold even at the least span."""
TURNS = 5
DRAWS = 10


def _attentions(kit: Kit, subject: Subject, rows: int) -> Iterator[Row]:
    """Time one query of each row against spans of a cache that lies as that of the steps."""
    config, spans = subject.config, SMALL_SPANS if kit.small else SPANS
    layers = 2 if kit.small else max(1, LAYER_ROWS // rows)
    shape = (layers, rows, config.kv_heads, spans[-1], config.head_dim)
    generator = torch.Generator(kit.device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": kit.device, "dtype": subject.dtype}
    needed = 2 * torch.Size(shape).numel() * subject.dtype.itemsize
    if kit.free_bytes() < 2 * needed:
        yield left_out(f"attention, batch {rows}", f"needs {2 * needed / GIB:.1f} GiB")
        return
    keys, values = torch.randn(shape, **options), torch.randn(shape, **options)
    queries = torch.randn((rows, config.n_heads, 1, config.head_dim), **options)
    bias = torch.zeros((rows, spans[-1]), device=kit.device, dtype=subject.dtype)
    for name, back_end in BACK_ENDS.items():

        def attend(span: int, back_end: SDPBackend = back_end, name: str = name) -> None:
            mask = None if "unmasked" in name else bias[:, None, None, :span]
            with sdpa_kernel(back_end):
                for layer in range(layers):
                    grouped_attention(queries, keys[layer, :, :, :span], values[layer, :, :, :span], mask)

        what = f"attention by {name}, batch {rows}, span {spans[-1]:,}"
        try:
            spent = {span: _seconds(kit, attend, span) for span in spans}
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            yield left_out(what, str(error).splitlines()[0][:120])
            continue
        rates = {span: needed * span / spans[-1] / found for span, found in spent.items()}
        by_span = {str(span): rate / 1e9 for span, rate in rates.items()}
        share = rates[spans[-1]] / bandwidth(kit.device)
        yield figure(what, rates[spans[-1]] / 1e9, "GB/s", of_bandwidth=share, by_span=by_span)
    yield from _live_attention(kit, subject, rows, keys, values)


def _live_attention(kit: Kit, subject: Subject, rows: int, keys: torch.Tensor, values: torch.Tensor) -> Iterator[Row]:
    """Time the kernel that reads the live slots, on the same keys and values."""
    config = subject.config
    heads = (config.n_heads, config.kv_heads, config.head_dim)
    what = f"attention by the kernel, batch {rows}, span {keys.shape[3]:,}"
    problem = attention_problem(str(kit.device), subject.dtype, *heads) if kit.on_card else "it is compiled for a card"
    if problem:
        yield left_out(what, problem)
        return
    attend_one, options = attention_kernel(), {"device": kit.device, "dtype": subject.dtype}
    queries = torch.randn(rows, config.n_heads, config.head_dim, **options)
    new = torch.randn(rows, config.kv_heads, config.head_dim, **options)
    first = torch.zeros(rows, dtype=torch.int64, device=kit.device)
    slot = torch.zeros(1, dtype=torch.int64, device=kit.device)

    def attend(span: int) -> None:
        for layer in range(len(keys)):
            attend_one(queries, new, new, keys[layer], values[layer], first, slot)

    rates = {}
    for span in SMALL_SPANS if kit.small else SPANS:
        slot.fill_(span - 1)
        rates[span] = 2 * keys.nbytes * span / keys.shape[3] / _seconds(kit, attend, span)
    by_span, last = {str(span): rate / 1e9 for span, rate in rates.items()}, rates[keys.shape[3]]
    yield figure(what, last / 1e9, "GB/s", of_bandwidth=last / bandwidth(kit.device), by_span=by_span)


def _draws(kit: Kit, subject: Subject, rows: int) -> Iterator[Row]:
    """Time the draw of a batch from logits, by what narrows it."""
    generator = torch.Generator(kit.device).manual_seed(0)
    scores = torch.randn(2 * rows, subject.codebook, generator=generator, device=kit.device)
    keys = stream_keys(0, [str(row) for row in range(rows)], kit.device)
    top_k = min(1_000, subject.codebook // 2)
    for name, params in {
        "": SamplingParams(),
        ", guided": SamplingParams(guidance_scale=7.5),
        f", guided, top-k {top_k:,}": SamplingParams(guidance_scale=7.5, top_k=top_k),
        ", guided, top-p 0.9": SamplingParams(guidance_scale=7.5, top_p=0.9),
    }.items():
        given = scores if params.guided else scores[:rows]
        by = noise_kind("graph", kit.device, subject.codebook, params)
        draw = draw_by(by)

        def drawn(draw: Draw = draw, given: torch.Tensor = given, params: SamplingParams = params) -> None:
            with torch.inference_mode():
                for position in range(DRAWS):
                    draw(given, params, keys, position)

        drawn()
        spent = statistics.median(seconds(drawn) for _ in range(TURNS)) / DRAWS
        yield figure(f"draw, batch {rows}, {subject.codebook:,} codes{name}", 1e3 * spent, "ms", by=by)


@torch.inference_mode()
def _seconds(kit: Kit, attend: Callable[[int], None], span: int) -> float:
    """Return the median time of all layers, on a card as a graph: one by one, launching would take longer."""
    if not kit.on_card:
        attend(span)
        return statistics.median(seconds(lambda: attend(span)) for _ in range(TURNS))
    stream = torch.cuda.Stream(kit.device)
    stream.wait_stream(torch.cuda.current_stream(kit.device))
    with torch.cuda.stream(stream):
        attend(span)
    torch.cuda.current_stream(kit.device).wait_stream(stream)
    torch.cuda.synchronize(kit.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend(span)
    graph.replay()
    return statistics.median(seconds(graph.replay) for _ in range(TURNS))
