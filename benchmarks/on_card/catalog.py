"""All sections, in the order in which they run: what matters most before the time limit, and peers last."""

from __future__ import annotations

from on_card import (
    decoding,
    features,
    footprint,
    frechet,
    golden,
    graphs,
    inception,
    losses,
    machine,
    miniature,
    noise,
    out_of_memory,
    pipeline,
    places,
    sampling,
    shards,
    step,
    text,
    vllm_peer,
)
from on_card.kit import Section

SECTIONS = (
    Section("machine", "right", "which card is it, is float32 float32, what does it manage at best", machine.run),
    Section("golden", "right", "are logits and pixels those of the authors' own code", golden.run),
    Section("noise", "right", "does the device draw the codes that a CPU draws", noise.run),
    Section("graphs", "right", "do CUDA graphs, plain steps and SDPA's back ends compute the same", graphs.run),
    Section("places", "right", "are a prompt's codes the same in every order, shard and place", places.run),
    Section("shards", "memory", "does a second shard find the memory that the first one had", shards.run),
    Section("sampling", "fast", "images a second, the roofline's share, draws from a part of the codes", sampling.run),
    Section("step", "fast", "which kernels a step's time goes to, how much of it to none, the prediction", step.run),
    Section("pipeline", "fast", "prompts to features as the task does it: stages, overlap, shards", pipeline.run),
    Section("decoding", "fast", "MoVQGAN in images a second, against diffusers' with the same weights", decoding.run),
    Section("miniature", "right", "has the bundled run the numbers that it has on a CPU", miniature.run),
    Section("inception", "right", "are FID's features and distances those of a CPU", inception.run),
    Section("second_card", "right", "is a card right that is not the current one", graphs.run_second_card),
    Section("footprint", "memory", "does sampling take the memory that it predicts", footprint.run),
    Section("out_of_memory", "memory", "does an evaluation survive that memory runs out", out_of_memory.run),
    Section("features", "fast", "FID's Inception in images a second", features.run),
    Section("loss", "fast", "the loss task in tokens a second, against Hugging Face with all logits", losses.run),
    Section("text", "fast", "options scored in requests a second, against HFLM; texts in ms an id", text.run),
    Section("frechet", "fast", "the Fréchet distance and its error in seconds", frechet.run),
    Section("peers", "fast", "steps in the time of Hugging Face's, compiled", sampling.run_peers, ("transformers",)),
    Section("vllm", "fast", "steps in the time of vLLM's", vllm_peer.run, ("vllm", "transformers")),
)
