"""What a command of the console script gives."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]
"""Run with the arguments of `evalsvc`."""
