"""The language model: read from a training run's checkpoint, and run for inference."""

from evalsvc.models.attention import KVCache
from evalsvc.models.decoding import DecodeStep, can_compile, compiled, compiler_problem
from evalsvc.models.language_model import DecodePath, LanguageModel, StepShape
from evalsvc.models.loading import load_model
from evalsvc.models.packing import WeightFormat, packed_bytes, worth_packing
from evalsvc.models.transformer import Transformer
from evalsvc.models.trie import build_trie, read_trie
from evalsvc.spec.model_config import ModelConfig

__all__ = [
    "DecodePath",
    "DecodeStep",
    "KVCache",
    "LanguageModel",
    "ModelConfig",
    "StepShape",
    "Transformer",
    "WeightFormat",
    "build_trie",
    "can_compile",
    "compiled",
    "compiler_problem",
    "load_model",
    "packed_bytes",
    "read_trie",
    "worth_packing",
]
