"""The sampler of image tokens: prompts in, codes out."""

from evalsvc.sampling.sampler import Prompt, SamplerSpec, Samples, cache_bytes, generate, predicted_bytes
from evalsvc.sampling_params import SamplingParams

__all__ = ["Prompt", "SamplerSpec", "Samples", "SamplingParams", "cache_bytes", "generate", "predicted_bytes"]
