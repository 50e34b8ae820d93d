"""Virtual checkpoints: the meaning of expressions such as `lerp(run@0, run@5000, 0.3)`.

Every function is linear, so an expression gives each checkpoint a coefficient for each tensor: see `coefficients`. The
grammar is in `expression_parser.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalsvc.errors import InvalidRequest
from evalsvc.spec.names import checkpoint_name

ARITHMETIC = 1
"""Version of the arithmetic on tensors; part of a virtual checkpoint's digest."""

FUNCTIONS = ("avg", "lerp", "graft")
PARTS = ("embeddings", "head", "norm")
"""Parts that a graft may choose in addition to layers: token table (with its norm, if there is one), output table, last
norm."""

MAX_CHECKPOINTS = 256
"""Maximum number of checkpoints in an expression, each counted once."""

_PLAIN = re.compile(r"""[^\s,()"'@]+""")
"""Text that needs no quotes and is not a step."""

Part = int | str
"""A layer, or one of PARTS."""


@dataclass(frozen=True)
class Step:
    """A checkpoint of the service."""

    run: str
    step: int
    variant: str = "raw"

    def __str__(self) -> str:
        return checkpoint_name(self.run, self.step, self.variant)


@dataclass(frozen=True)
class Steps:
    """Checkpoints of a run from `first` to `last`: every `stride` steps, or all that exist if `stride` is None."""

    run: str
    first: int
    last: int
    stride: int | None = None
    variant: str = "raw"

    def __str__(self) -> str:
        stride = "" if self.stride is None else f"/{self.stride}"
        variant = "" if self.variant == "raw" else f":{self.variant}"
        return f"{self.run}@{self.first}..{self.last}{stride}{variant}"


@dataclass(frozen=True)
class Base:
    """The checkpoint that the run's checkpoints are compared with."""

    def __str__(self) -> str:
        return "base"


@dataclass(frozen=True)
class File:
    """A checkpoint file that is not part of a run."""

    path: str

    def __str__(self) -> str:
        if self.path != "base" and _PLAIN.fullmatch(self.path):
            return self.path
        return f"'{self.path}'" if '"' in self.path else f'"{self.path}"'


@dataclass(frozen=True)
class Average:
    members: tuple[Expression | Steps, ...]


@dataclass(frozen=True)
class Lerp:
    first: Expression
    second: Expression
    weight: float
    """Weight of the second checkpoint; the first has 1 − weight."""


@dataclass(frozen=True)
class Graft:
    first: Expression
    second: Expression
    chosen: frozenset[Part]
    """Layers and parts that are taken from the second checkpoint."""


Leaf = Step | Base | File
Expression = Leaf | Average | Lerp | Graft


def canonical(expression: Expression | Steps, name: Callable[[Leaf], str] = str) -> str:
    """Return the canonical form, which does not depend on spacing, on the order of an average or on the order of
    choices.

    `name` returns the text for a checkpoint.
    """
    if isinstance(expression, Steps):
        return str(expression)
    if isinstance(expression, Leaf):
        return name(expression)
    if isinstance(expression, Average):
        return f"avg({', '.join(sorted((canonical(item, name) for item in expression.members), key=_natural))})"
    operands = f"{canonical(expression.first, name)}, {canonical(expression.second, name)}"
    if isinstance(expression, Lerp):
        return f"lerp({operands}, {_number(expression.weight)})"
    layers = sorted(part for part in expression.chosen if isinstance(part, int))
    parts = [part for part in PARTS if part in expression.chosen]
    choices = [f"layers={_spans(layers)}"] * bool(layers) + [f"parts={'|'.join(parts)}"] * bool(parts)
    return f"graft({operands}, {', '.join(choices)})"


def digest_of(expression: Expression, digests: Mapping[str, str]) -> str:
    """Return the digest of a virtual checkpoint, computed from its checkpoints' digests by name: 64 hexadecimal digits.

    Names are not part of the digest: the same files under other names are the same virtual checkpoint.
    """
    content = canonical(expression, lambda leaf: digests[str(leaf)])
    return hashlib.sha256(f"virtual checkpoint {ARITHMETIC}\n{content}".encode()).hexdigest()


def default_variant(expression: Expression) -> str:
    """Return a name that distinguishes the virtual checkpoint from all others, such as `lerp-3f2a91bc04`."""
    text = canonical(expression)
    return f"{text.partition('(')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def written(expression: Expression | Steps) -> list[Leaf | Steps]:
    """Return the checkpoints and ranges in an expression, each once, in the order of the text."""
    if isinstance(expression, Leaf | Steps):
        return [expression]
    return list(dict.fromkeys(leaf for argument in _arguments(expression) for leaf in written(argument)))


def leaves(expression: Expression) -> list[Leaf]:
    """Return the checkpoints in an expression, each once, in the order of the text."""
    return [leaf for leaf in written(expression) if not isinstance(leaf, Steps)]


def replaced(
    expression: Expression, leaf: Callable[[Leaf], Expression], steps: Callable[[Steps], Sequence[Expression]]
) -> Expression:
    """Return the expression with its checkpoints and ranges replaced."""
    if isinstance(expression, Leaf):
        return leaf(expression)
    if isinstance(expression, Average):
        members: list[Expression] = []
        for member in expression.members:
            members += steps(member) if isinstance(member, Steps) else [replaced(member, leaf, steps)]
        return Average(tuple(members))
    first, second = (replaced(argument, leaf, steps) for argument in (expression.first, expression.second))
    if isinstance(expression, Lerp):
        return Lerp(first, second, expression.weight)
    return Graft(first, second, expression.chosen)


def coefficients(expression: Expression, part: Part) -> dict[str, float]:
    """Return the coefficient of each checkpoint in the tensors of a layer or part, by name; coefficients sum to 1."""
    if isinstance(expression, Leaf):
        return {str(expression): 1.0}
    if isinstance(expression, Graft):
        return coefficients(expression.second if part in expression.chosen else expression.first, part)
    if isinstance(expression, Lerp):
        terms = [(expression.first, 1 - expression.weight), (expression.second, expression.weight)]
    else:
        terms = [(member, 1 / len(expression.members)) for member in _whole(expression)]
    total: dict[str, float] = {}
    for term, weight in terms:
        for leaf, share in coefficients(term, part).items():
            total[leaf] = total.get(leaf, 0.0) + weight * share
    return total


def part_of(name: str) -> Part:
    """Return the layer or part that a tensor of open_lm's Transformer belongs to, by the tensor's name."""
    first, _, rest = name.partition(".")
    if first == "layers":
        return int(rest.partition(".")[0])
    return {"output": "head", "norm": "norm"}.get(first, "embeddings")


def require_parts(expression: Expression, n_layers: int, weight_tying: bool) -> None:
    """Raise InvalidRequest if a graft chooses layers or parts that a model of this shape does not have."""
    if isinstance(expression, Leaf):
        return
    for argument in _arguments(expression):
        if not isinstance(argument, Steps):
            require_parts(argument, n_layers, weight_tying)
    if not isinstance(expression, Graft):
        return
    beyond = sorted(part for part in expression.chosen if isinstance(part, int) and part >= n_layers)
    if beyond:
        raise InvalidRequest(
            f"the graft chooses layers={_spans(beyond)}, but the model has {n_layers} layers; "
            f"choose among 0-{n_layers - 1}"
        )
    if weight_tying and ("head" in expression.chosen) != ("embeddings" in expression.chosen):
        raise InvalidRequest(
            "the graft chooses one of embeddings and head, but the model has one table for both; "
            "write parts=embeddings|head"
        )


# spelling


def _number(value: float) -> str:
    return repr(value + 0.0).removesuffix(".0")


def _spans(numbers: Sequence[int]) -> str:
    """Return numbers as spans: `0-3|7` for [0, 1, 2, 3, 7]."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return "|".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def _natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """Sort naturally: step 200 comes before step 1000."""
    return [(len(piece), piece) if piece.isdigit() else (0, piece) for piece in re.split(r"(\d+)", text)], text


# structure


def _arguments(expression: Average | Lerp | Graft) -> Sequence[Expression | Steps]:
    return expression.members if isinstance(expression, Average) else (expression.first, expression.second)


def _whole(average: Average) -> list[Expression]:
    members = [member for member in average.members if not isinstance(member, Steps)]
    assert len(members) == len(average.members), "ranges are replaced by what is in them first"
    return members
