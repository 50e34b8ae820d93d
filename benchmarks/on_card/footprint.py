"""Does sampling take the memory that it predicts? On a card: the most that was allocated, weights included."""

from __future__ import annotations

from collections.abc import Iterator

from evalsvc.models import Transformer
from evalsvc.sampling.memory import Footprint, footprint
from on_card.kit import GIB, Kit, Row, at_most, figure, holds, left_out
from on_card.shapes import Subject, codes_of, draw_some, large

BATCHES = (32, 128, 256)
SMALL_BATCHES = (4, 8)
STEPS = 100
"""Codes that are drawn in a cache for whole images: two graphs, and the look at whether logits are finite."""
SHORT = 16
TOLERANCE = 0.1
LIBRARIES = 128 << 20
"""Workspaces of cuBLAS, one for each stream, that are nobody's prediction."""


def run(kit: Kit) -> Iterator[Row]:
    """Compare the peak with the prediction at each batch, then codes from used memory with those from fresh memory."""
    subject = large(kit)
    model = subject.build(kit.device)
    kit.release()
    batches = SMALL_BATCHES if kit.small else BATCHES
    fresh = codes_of(model, subject.prompts(batches[0]), subject.spec(batches[0], length=SHORT))
    for batch in batches:
        yield from _peak(kit, subject, model, batch)
    again = codes_of(model, subject.prompts(batches[0]), subject.spec(batches[0], length=SHORT))
    equal = float((kit.touched(fresh) == again).double().mean())
    yield holds("codes from used memory are those from fresh memory", equal == 1, f"{equal:.4%}")


def _peak(kit: Kit, subject: Subject, model: Transformer, batch: int) -> Iterator[Row]:
    spec = subject.spec(batch)
    predicted = footprint(subject.config, spec, subject.padded, subject.dtype, device=str(kit.device))
    what, parts = f"{subject.name}, batch {batch}", _parts(predicted)
    yield figure(f"{what}: predicted", predicted.total / GIB, "GiB", **parts)
    needed = predicted.total - predicted.weights
    if kit.free_bytes() < needed:
        reason = f"needs {needed / GIB:.1f} GiB, {kit.free_bytes() / GIB:.1f} free"
        yield left_out(f"{what}: peak over predicted", reason)
        return
    kit.release()
    draw_some(model, subject.prompts(batch), spec, min(STEPS, spec.length))
    if kit.on_card:
        peak, most = kit.peak_bytes(), predicted.total
        off = max(0, abs(peak - most) - LIBRARIES) / most
        yield at_most(f"{what}: |peak / predicted − 1|", off, TOLERANCE, peak_gib=peak / GIB, ratio=peak / most)
    else:
        yield left_out(f"{what}: peak over predicted", "a CPU counts no allocations")
    kit.release()


def _parts(found: Footprint) -> dict[str, object]:
    names = ("weights", "packed", "cache", "step")
    return {f"{name}_gib": round(getattr(found, name) / GIB, 3) for name in names}
