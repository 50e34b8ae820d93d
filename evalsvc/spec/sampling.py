"""Sampling parameters: how codes are drawn from a model's logits, as a part of the protocol. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from evalsvc.errors import InvalidRequest

MAX_SEED = 2**63 - 1

MIN_TEMPERATURE = 1e-3
"""Smallest temperature above 0. Smaller ones would overflow float32 logits."""

MAX_GUIDANCE = 1e6
"""Largest guidance scale. Much larger ones would overflow float32 logits, as those of a run that has diverged."""


@dataclass(frozen=True)
class SamplingParams:
    """Parameters that turn logits into codes, checked when they are set.

    Guidance comes first, then temperature, top-k and top-p. Parameters without an effect are refused or normalised, so
    that equal parameters mean equal draws and one series.
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
        t, k, p, scale, seed = self.temperature, self.top_k, self.top_p, self.guidance_scale, self.seed
        all_codes = "leave it out to draw from all codes"
        checks: Mapping[str, tuple[bool, str]] = {
            "temperature": (_finite(t) and (t == 0 or t >= MIN_TEMPERATURE), f"0, or {MIN_TEMPERATURE} or more"),
            "top_k": (k is None or (_whole(k) and k >= 1), f"a whole number above 0; {all_codes}"),
            "top_p": (p is None or (_finite(p) and 0 < p <= 1), f"above 0 and at most 1; {all_codes}"),
            "guidance_scale": (
                _finite(scale) and 0 <= scale <= MAX_GUIDANCE,
                f"0 to {MAX_GUIDANCE:,.0f}; 1 is the model without guidance",
            ),
            "seed": (_whole(seed) and 0 <= seed <= MAX_SEED, f"a whole number, 0…{MAX_SEED}"),
        }
        for field, (valid, expected) in checks.items():
            if not valid:
                raise InvalidRequest(f"{field} is {getattr(self, field)!r}; it must be {expected}")
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


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
