"""Models that evalsvc's own arithmetic computes, which are all that another program can verify."""

from __future__ import annotations

from evalsvc.errors import UnsupportedModel
from evalsvc.models import LanguageModel, Transformer


def require_own(model: LanguageModel) -> Transformer:
    """Return `model`. Raises UnsupportedModel if another package computes it."""
    if not isinstance(model, Transformer):
        raise UnsupportedModel(
            f"the package {model.config.family} computes the model itself, so that another program adds nothing; "
            "verify a checkpoint of a family"
        )
    return model
