"""All sections, in the order in which they run: what matters most before the time limit, and peers last."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from on_card.kit import Kit, Row, Section


def of(module: str, name: str = "run") -> Callable[[Kit], Iterator[Row]]:
    """Return what a module of this folder asks. It is imported when it is asked: a package that it lacks costs no
    other section."""

    def run(kit: Kit) -> Iterator[Row]:
        yield from getattr(importlib.import_module(f"on_card.{module}"), name)(kit)

    return run


SECTIONS = (
    Section("machine", "right", "which card is it, is float32 float32, what does it manage at best", of("machine")),
    Section("golden", "right", "are logits and pixels those of the authors' own code", of("golden")),
    Section("noise", "right", "does the device draw the codes that a CPU draws", of("noise")),
    Section("graphs", "right", "do CUDA graphs, plain steps and SDPA's back ends compute the same", of("graphs")),
    Section("places", "right", "are a prompt's codes the same in every order, shard and place", of("places")),
    Section("shards", "memory", "does a second shard find the memory that the first one had", of("shards")),
    Section(
        "sampling", "fast", "images a second, the roofline's share, draws from a part of the codes", of("sampling")
    ),
    Section("step", "fast", "which kernels a step's time goes to, how much of it to none, the prediction", of("step")),
    Section("pipeline", "fast", "prompts to features as the task does it: stages, overlap, shards", of("pipeline")),
    Section("decoding", "fast", "MoVQGAN in images a second, against diffusers' with the same weights", of("decoding")),
    Section("miniature", "right", "has the bundled run the numbers that it has on a CPU", of("miniature")),
    Section("inception", "right", "are FID's features and distances those of a CPU", of("inception")),
    Section("second_card", "right", "is a card right that is not the current one", of("graphs", "run_second_card")),
    Section("footprint", "memory", "does sampling take the memory that it predicts", of("footprint")),
    Section("out_of_memory", "memory", "does an evaluation survive that memory runs out", of("out_of_memory")),
    Section("features", "fast", "FID's Inception in images a second", of("features")),
    Section("loss", "fast", "the loss task in tokens a second, against Hugging Face with all logits", of("losses")),
    Section("text", "fast", "options scored in requests a second, against HFLM; texts in ms an id", of("text")),
    Section("frechet", "fast", "the Fréchet distance and its error in seconds", of("frechet")),
    Section(
        "peers", "fast", "steps in the time of Hugging Face's, compiled", of("sampling", "run_peers"), ("transformers",)
    ),
    Section("vllm", "fast", "steps in the time of vLLM's", of("vllm_peer"), ("vllm", "transformers")),
)
