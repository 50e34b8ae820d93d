"""What a model answered, and how it travels from the worker that asked to the one that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from evalsvc.scoring import Score


@dataclass(frozen=True)
class Answer:
    """To a log-likelihood request."""

    score: Score
    tokens: int
    """Of the continuation."""
    cut: bool
    """The context had lost its beginning."""
    continuation_cut: bool = False
    """So had the continuation."""


@dataclass(frozen=True)
class Generation:
    """To a generation request."""

    text: str
    text_within: str
    """What is drawn when only text ids can come."""
    cut: bool


def to_message(answers: Sequence[Answer | Generation]) -> list[list[Any]]:
    """JSON-able; floats are kept to the last bit."""
    return [[*astuple(one.score), *astuple(one)[1:]] if isinstance(one, Answer) else [*astuple(one)] for one in answers]


def from_message(message: Sequence[Sequence[Any]]) -> list[Answer | Generation]:
    """What `to_message` was given."""
    return [Generation(*one) if isinstance(one[0], str) else Answer(Score(*one[:-3]), *one[-3:]) for one in message]
