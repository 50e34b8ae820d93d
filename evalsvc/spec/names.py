"""Names of runs, variants and suites, and references to checkpoints: RUN@STEP, RUN@STEP:VARIANT, RUN:VARIANT."""

from __future__ import annotations

import re

from evalsvc.errors import InvalidRequest, UnknownName

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Names of runs, variants, suites and tasks, as in addresses and in names of metrics."""

MAX_STEP = 2**53 - 1
"""Largest training step: the largest whole number that every JSON reader keeps exactly."""

_RUN = r"(?P<run>[A-Za-z0-9][A-Za-z0-9._-]*)"
_VARIANT = r"(:(?P<variant>[^/:]+))?"
_STEP = "[0-9]{1,19}"

RUN = re.compile(_RUN + _VARIANT)
"""RUN or RUN:VARIANT."""

CHECKPOINT = re.compile(_RUN + "@(?P<step>[0-9]{1,18})" + _VARIANT)  # 18 digits fit every database
"""RUN@STEP or RUN@STEP:VARIANT. Where a path is also accepted, everything else is a path."""

NAMED = re.compile(_RUN + "@(?:(?P<word>newest|base)|best(:(?P<metric>[^/:]+/[^:]+))?)" + _VARIANT)
"""RUN@newest, RUN@base, RUN@best or RUN@best:METRIC, with or without :VARIANT: a checkpoint that its values name."""

STEPS = re.compile(
    rf"(?P<run>{NAME.pattern})@(?P<first>{_STEP})(\.\.(?P<last>{_STEP})(/(?P<stride>{_STEP}))?)?"
    rf"(:(?P<variant>{NAME.pattern}))?"
)
"""RUN@STEP or RUN@FIRST..LAST[/STRIDE], with or without :VARIANT, in an expression."""


def checkpoint_name(run: str, step: int, variant: str) -> str:
    """Return RUN@STEP for the variant `raw`, RUN@STEP:VARIANT for any other."""
    return f"{run}@{step}" + ("" if variant == "raw" else f":{variant}")


def is_checkpoint(name: str) -> bool:
    """Tell whether a name is RUN@STEP[:VARIANT] or `NAMED`, and no path."""
    return CHECKPOINT.fullmatch(name) is not None or NAMED.fullmatch(name) is not None


def parse_checkpoint(name: str) -> tuple[str, int, str]:
    """Return run, step and variant of RUN@STEP[:VARIANT]."""
    if (match := CHECKPOINT.fullmatch(name)) is None:
        raise InvalidRequest(
            f"{name!r} is not a checkpoint; write RUN@STEP or RUN@STEP:VARIANT, such as pretrained@400, or RUN@best, "
            "RUN@best:METRIC, RUN@newest or RUN@base"
        )
    if (step := int(match["step"])) > MAX_STEP:
        raise UnknownName(f"there is no checkpoint {name!r}: the largest step is {MAX_STEP:,}")
    return match["run"], step, match["variant"] or "raw"


def parse_run(name: str) -> tuple[str, str]:
    """Return run and variant of RUN[:VARIANT]."""
    if (match := RUN.fullmatch(name)) is None:
        raise InvalidRequest(f"{name!r} is not a run; write RUN or RUN:VARIANT, such as pretrained:ema_0.9999")
    return match["run"], match["variant"] or "raw"
