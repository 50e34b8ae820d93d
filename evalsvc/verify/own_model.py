"""The model of a context, where evalsvc's own arithmetic computes it."""

from __future__ import annotations

from evalsvc.errors import UnsupportedModel
from evalsvc.models import Transformer
from evalsvc.tasks.task import Context


def own_model(context: Context, rotary_inv_freq_dtype: str) -> Transformer:
    """Return the model in float32. Raises UnsupportedModel if another package computes it."""
    model = context.model(dtype="float32", rotary_inv_freq_dtype=rotary_inv_freq_dtype)
    if not isinstance(model, Transformer):
        raise UnsupportedModel(
            f"the package {model.config.family} computes the model itself, so that another program adds nothing; "
            "verify a checkpoint of a family"
        )
    return model
