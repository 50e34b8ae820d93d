"""All sections, in the order in which they run: what would be wrong first, then what it costs."""

from __future__ import annotations

from on_card import footprint, machine, out_of_memory, sampling, shards, step
from on_card.kit import Section

SECTIONS = (
    Section("machine", "right", "which card is it, is float32 float32, what does it manage at best", machine.run),
    Section("shards", "memory", "does a second shard find the memory that the first one had", shards.run),
    Section("footprint", "memory", "does sampling take the memory that it predicts", footprint.run),
    Section("out_of_memory", "memory", "does an evaluation survive that memory runs out", out_of_memory.run),
    Section("sampling", "fast", "images a second, the roofline's share, and a peer", sampling.run, ("transformers",)),
    Section("step", "fast", "which kernels a step's time goes to, and how much of it to none", step.run),
)
