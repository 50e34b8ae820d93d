"""The language model: read from what a training run writes, and run for inference."""

from evalsvc.model_config import ModelConfig
from evalsvc.models.decoding import DecodePath, DecodeStep, WeightLayout, can_compile, compiled
from evalsvc.models.kv_cache import KVCache
from evalsvc.models.loading import load_model
from evalsvc.models.open_lm import Transformer
from evalsvc.models.packing import WeightFormat, packed_bytes, worth_packing

__all__ = [
    "DecodePath",
    "DecodeStep",
    "KVCache",
    "ModelConfig",
    "Transformer",
    "WeightFormat",
    "WeightLayout",
    "can_compile",
    "compiled",
    "load_model",
    "packed_bytes",
    "worth_packing",
]
