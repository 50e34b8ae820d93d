"""Does a second shard find the memory that the first one had, and do captured graphs give theirs back?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalsvc.models import Transformer
from evalsvc.models.decoding import SPAN
from evalsvc.sampling import SamplerSpec
from evalsvc.sampling.fitting import BatchShape, generate_fitting
from evalsvc.sampling.memory import footprint
from on_card.kit import GIB, Kit, Row, at_most, figure, holds, left_out
from on_card.shapes import Course, Steps, Subject, codes_of, large, shortened

BATCH, LENGTH = 512, 400
"""Keys and values of 45 GB in few steps: twice as much does not fit on a card of 80 GB."""
SMALL_BATCH, SMALL_LENGTH = 8, 24
ROOM = 1.05
"""Of what a shard is predicted to take; where less is free, it is left out."""
MIB = 1 << 20
KEPT_MIB = 256.0
"""Bound of what a first shard may leave: workspaces of cuBLAS, and weights laid out for the steps."""
MORE_MIB = 64.0
"""Bound of what every later one may leave in addition."""
CAPTURES, CAPTURES_AT_ONCE = 40, 5
"""Graphs that are captured, and how many of them in one call of `generate`."""


@dataclass(frozen=True)
class Shard:
    """What became of one."""

    shapes: list[BatchShape]
    codes: Tensor
    """[B, length] int64, on the CPU."""
    allocated: int
    """Bytes on the card when it was done."""


def run(kit: Kit) -> Iterator[Row]:
    """Draw two shards of the same prompts with one model, then capture many graphs."""
    batch, length = (SMALL_BATCH, SMALL_LENGTH) if kit.small else (BATCH, LENGTH)
    subject = shortened(large(kit), length)
    model = subject.build(kit.device)
    spec = subject.spec(batch)
    kit.release()
    use = footprint(subject.config, spec, subject.padded, subject.dtype, device=str(kit.device))
    needed = int(ROOM * use.added)
    if kit.free_bytes() < needed:
        reason = f"a shard needs {needed / GIB:.1f} GiB, {kit.free_bytes() / GIB:.1f} free"
        yield left_out("two shards one after the other", reason)
        return
    before = _allocated(kit)
    first = _shard(kit, subject, model, spec)
    yield _declared(first, "first")
    second = _shard(kit, subject, model, spec)
    yield _declared(second, "second")
    equal = float((first.codes == kit.touched(second.codes)).double().mean())
    yield holds("both shards' codes are equal", equal == 1, f"{equal:.4%}")
    if not kit.on_card:
        yield left_out("memory that shards leave", "a CPU counts no allocations")
        yield left_out("memory that captures leave", "nothing is captured on a CPU")
        return
    kept, more = first.allocated - before, second.allocated - first.allocated
    yield at_most("memory that the first shard leaves", kept / MIB, KEPT_MIB, "MiB")
    yield at_most("more that the second shard leaves", more / MIB, MORE_MIB, "MiB")
    kit.release()
    yield from _captures(kit, subject, model)


def _declared(shard: Shard, which: str) -> Row:
    shape = shard.shapes[0]
    found = f"{shape.batch} of {shape.declared}, {shape.reason}"
    available = None if shape.available_bytes is None else shape.available_bytes / GIB
    as_declared = len(shard.shapes) == 1 and shape.reason == "declared"
    return holds(
        f"the {which} shard has the declared batch",
        as_declared,
        found,
        predicted_gib=shape.predicted_bytes / GIB,
        available_gib=available,
        shapes=[shape.to_json() for shape in shard.shapes],
    )


def _shard(kit: Kit, subject: Subject, model: Transformer, spec: SamplerSpec) -> Shard:
    """Draw a batch as the service does. Nothing is collected by hand: the service does not either."""
    shapes: list[BatchShape] = []
    prompts = subject.prompts(spec.batch)
    codes = torch.empty(len(prompts), spec.length, dtype=torch.int64)
    for samples in generate_fitting(model, prompts, spec, on_shape=shapes.append):
        codes[list(samples.indices)] = samples.codes.cpu()
        del samples
    return Shard(shapes, codes, _allocated(kit))


def _allocated(kit: Kit) -> int:
    return torch.cuda.memory_allocated(kit.device) if kit.on_card else 0


def _captures(kit: Kit, subject: Subject, model: Transformer) -> Iterator[Row]:
    """Time the captures of the whole model, then look at what those of a few of its layers leave."""
    length = (CAPTURES_AT_ONCE - 1) * SPAN + 8
    timed = shortened(subject, length)
    steps = Steps(kit.device)
    steps.draw(model, timed.prompts(SMALL_BATCH), timed.spec(SMALL_BATCH))
    captures = Course(timed, steps.seconds()).captures
    yield figure("one capture", 1e3 * statistics.median(captures), "ms", captures_ms=[1e3 * one for one in captures])
    del steps
    config = subject.config.model_copy(update={"n_layers": min(4, subject.config.n_layers)})
    shallow = replace(timed, config=config)
    few = shallow.build(kit.device)
    held: list[tuple[float, float]] = []
    for _ in range(-(-CAPTURES // len(captures))):
        codes_of(few, shallow.prompts(SMALL_BATCH), shallow.spec(SMALL_BATCH))
        kit.release()
        held.append((torch.cuda.memory_reserved(kit.device) / MIB, torch.cuda.memory_allocated(kit.device) / MIB))
    count = len(captures) * len(held)
    what = f"reserved more after {count} captures than after {len(captures)}"
    yield at_most(what, held[-1][0] - held[0][0], MORE_MIB, "MiB", reserved_and_allocated_mib=held)
