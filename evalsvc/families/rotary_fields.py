"""The rotary positions in a `config.json`, in both of transformers' spellings.

Older files have `rope_theta` and `rope_scaling`; newer ones have both in `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from evalsvc.errors import InvalidModelConfig, UnsupportedModel, show_name
from evalsvc.families.family import OTHERWISE

SCALINGS = ("default", "linear", "llama3")
"""Types of scaling that the Transformer computes."""


class RotaryFields(BaseModel):
    """Fields of the rotary positions."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0

    def rotary_switches(self, length: int) -> dict[str, Any]:
        """Return the switches of `ModelConfig` for the rotary positions of a model of sequences of `length` tokens."""
        parameters = self.rotary_parameters()
        if self.share(parameters) != 1:
            raise UnsupportedModel(
                f"partial_rotary_factor is not 1; evalsvc rotates a part of each head only for gpt_neox; {OTHERWISE}"
            )
        return self.frequency_switches(parameters, length)

    def frequency_switches(self, parameters: Mapping[str, Any], length: int) -> dict[str, Any]:
        """Return base and scaling of the frequencies in `parameters`. Raises as `rotary_switches`."""
        base = _number(parameters, "rope_theta", self.rope_theta)
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind not in SCALINGS:
            raise UnsupportedModel(
                f"the rotary frequencies have the rope_type {show_name(str(kind))}; evalsvc computes "
                f"{', '.join(SCALINGS)}; {OTHERWISE}"
            )
        if kind == "default":
            return {"rotary_base": base}
        scaling: dict[str, Any] = {"kind": kind, "factor": _number(parameters, "factor")}
        if kind == "llama3":
            scaling["low_freq_factor"] = _number(parameters, "low_freq_factor")
            scaling["high_freq_factor"] = _number(parameters, "high_freq_factor")
            scaling["original_length"] = int(_number(parameters, "original_max_position_embeddings", length))
        return {"rotary_base": base, "rotary_scaling": scaling}

    def rotary_parameters(self) -> Mapping[str, Any]:
        """Return the parameters of the one spelling that is set; empty if none is. Raises as `rotary_switches`."""
        older, newer = self.rope_scaling, self.rope_parameters
        if older and newer and older != newer:
            raise InvalidModelConfig("rope_scaling and rope_parameters differ; keep the one that the model has")
        parameters = older or newer or {}
        if any(isinstance(value, Mapping) for value in parameters.values()):
            raise UnsupportedModel(
                f"the rotary frequencies differ by kind of layer; evalsvc has one set for all layers; {OTHERWISE}"
            )
        return parameters

    def share(self, parameters: Mapping[str, Any]) -> float:
        """Return the share of each head's dimensions that is rotated."""
        return _number(parameters, "partial_rotary_factor", self.partial_rotary_factor)


def _number(parameters: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = parameters.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidModelConfig(f"{name} of the rotary frequencies is missing or no number; add it")
    if not abs(value) < 2**62:
        raise InvalidModelConfig(f"{name} of the rotary frequencies is not finite or too large; correct it")
    return float(value)
