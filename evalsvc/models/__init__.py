"""The language model: read from what a training run writes, and run for inference."""

from evalsvc.model_config import ModelConfig
from evalsvc.models.kv_cache import KVCache
from evalsvc.models.loading import load_model
from evalsvc.models.open_lm import Transformer

__all__ = ["KVCache", "ModelConfig", "Transformer", "load_model"]
