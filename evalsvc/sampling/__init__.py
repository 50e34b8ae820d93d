"""Samplers of image codes and of text."""

from evalsvc.sampling.completion import Continuation, complete
from evalsvc.sampling.sampler import Prompt, SamplerSpec, Samples, cache_bytes, generate
from evalsvc.spec.sampling import SamplingParams

__all__ = ["Continuation", "Prompt", "SamplerSpec", "Samples", "SamplingParams", "cache_bytes", "complete", "generate"]
