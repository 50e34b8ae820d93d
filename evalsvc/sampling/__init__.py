"""The samplers: of image tokens, prompts in and codes out; and of text."""

from evalsvc.sampling.completion import Continuation, complete
from evalsvc.sampling.fitting import BatchShape, generate_fitting
from evalsvc.sampling.memory import predicted_bytes
from evalsvc.sampling.sampler import Prompt, SamplerSpec, Samples, cache_bytes, generate
from evalsvc.spec.sampling import SamplingParams

__all__ = [
    "BatchShape",
    "Continuation",
    "Prompt",
    "SamplerSpec",
    "Samples",
    "SamplingParams",
    "cache_bytes",
    "complete",
    "generate",
    "generate_fitting",
    "predicted_bytes",
]
