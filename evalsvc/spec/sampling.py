"""Sampling parameters: how codes are drawn from a model's logits, as a part of the protocol. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from evalsvc.errors import InvalidRequest

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingParams:
    """Parameters that turn logits into codes, checked when they are set.

    Guidance comes first, then temperature, top-k and top-p. Parameters without an effect are refused or normalised, so
    that equal parameters mean equal draws and one series.

    Raises:
        InvalidRequest: a parameter is out of range, or has no effect.
    """

    temperature: float = 1.0
    """Divisor of the logits; 0 always takes the likeliest code."""
    top_k: int | None = None
    """Number of likeliest codes to draw from, with any that tie with the last of them; None: all codes."""
    top_p: float | None = None
    """Probability of the likeliest codes to draw from: the fewest codes that reach it are kept; None or 1: all
    codes."""
    guidance_scale: float = 1.0
    """The scale s in u + s·(c − u), of the logits c with and u without the text; 1 is the model itself, 0 ignores the
    text."""
    seed: int = 0
    """Seed of the draws; another seed gives other images."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, _temperature(self.temperature), _TEMPERATURE)
        _check("top_k", self.top_k, self.top_k is None or (_whole(self.top_k) and self.top_k >= 1), _TOP_K)
        _check("top_p", self.top_p, self.top_p is None or (_finite(self.top_p) and 0 < self.top_p <= 1), _TOP_P)
        _check("guidance_scale", self.guidance_scale, _finite(self.guidance_scale) and self.guidance_scale >= 0, _SCALE)
        _check("seed", self.seed, _whole(self.seed) and 0 <= self.seed <= MAX_SEED, f"a whole number, 0…{MAX_SEED}")
        for field in ("temperature", "guidance_scale"):
            object.__setattr__(self, field, float(getattr(self, field)))
        object.__setattr__(self, "top_p", None if self.top_p in (None, 1) else self.top_p)
        narrowed = [field for field in ("top_k", "top_p") if getattr(self, field) is not None]
        if self.temperature == 0 and narrowed:
            raise InvalidRequest(
                f"{narrowed[0]} has no effect at temperature 0, which takes the likeliest code; remove one of the two"
            )

    @property
    def guided(self) -> bool:
        """Whether the unconditional prompt is run as well."""
        return self.guidance_scale != 1.0

    def to_json(self) -> dict[str, JsonValue]:
        """Return the parameters for the protocol: equal content draws equal codes from equal logits."""
        return asdict(self)


MIN_TEMPERATURE = 1e-3
"""Smallest temperature above 0. Smaller ones would overflow float32 logits."""

_TEMPERATURE = f"0, or {MIN_TEMPERATURE} or more"
_TOP_K = "a whole number above 0; leave it out to draw from all codes"
_TOP_P = "above 0 and at most 1; leave it out to draw from all codes"
_SCALE = "0 or more; 1 is the model without guidance"


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _temperature(value: float) -> bool:
    return _finite(value) and (value == 0 or value >= MIN_TEMPERATURE)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(field: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise InvalidRequest(f"{field} is {value!r}; it must be {expected}")
