"""What a LoRA adapter changes in the Transformer: its factors and tensors, by the parameters' names.

An adapter names the tensors of its base's file. A parameter may be several of them, in another order of rows, so the
factors are put together and arranged as the family arranges those tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evalsvc.checkpoints.adapter import LoraWeights, LowRank, read_adapter
from evalsvc.checkpoints.formats import merge_it
from evalsvc.checkpoints.tensors import listed, some
from evalsvc.errors import CheckpointMismatch, UnsupportedModel
from evalsvc.families.family import Source
from evalsvc.families.reading import family_of
from evalsvc.spec.model_config import ModelConfig


@dataclass(frozen=True, eq=False)
class Change:
    """A change of a parameter."""

    source: Source
    rows: tuple[int, ...]
    """Number of rows of each tensor that the parameter is made of."""
    added: Mapping[int, LowRank]
    """Products that are added to tensors, by their places in `source`."""
    whole: tuple[Tensor, ...]
    """All tensors of the parameter, in place of the base's; empty if the base's are kept."""

    def value(self) -> Tensor:
        """Return the parameter in place of the base's."""
        return self._arranged(torch.cat(self.whole))

    def products(self, block: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield what is added to the parameter, in float64, with the rows that it is added to."""
        if not self.added:
            return
        ranks = [pair.left.shape[1] for pair in self.added.values()]
        left = torch.zeros(sum(self.rows), sum(ranks), dtype=torch.float64)
        for place, column, pair in zip(self.added, _starts(ranks), self.added.values(), strict=True):
            row = sum(self.rows[:place])
            left[row : row + self.rows[place], column : column + pair.left.shape[1]] = pair.scale * pair.left.double()
        left, right = self._arranged(left), torch.cat([pair.right.double() for pair in self.added.values()])
        step = max(1, block // right.shape[1])
        for begin in range(0, len(left), step):
            rows = slice(begin, begin + step)
            yield rows, left[rows] @ right

    def _arranged(self, rows: Tensor) -> Tensor:
        return rows if self.source.arrange is None else self.source.arrange(rows)


def read_changes(folder: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Change]:
    """Read an adapter, and return its changes of the parameters of a model with these shapes, by name."""
    lora = read_adapter(folder)
    given = family_of(config).sources(config)
    sources = {name: given.get(name, Source((name,))) for name in shapes}
    if config.weight_tying:
        del sources["output.weight"]
    known = {name: each for each, source in sources.items() for name in (*source.names, *source.aliases)}
    names = sorted(lora.added.keys() | lora.whole.keys())
    if problems := listed("unknown", (name for name in names if name not in known)):
        raise CheckpointMismatch(f"{folder} changes parameters that the base does not have; {problems[0]}")
    changes = {}
    for each in dict.fromkeys(known[name] for name in names):
        source, shape = sources[each], shapes[each]
        changed = [name for name in names if known[name] == each]
        if config.weight_tying and each == "tok_embeddings.weight":
            raise UnsupportedModel(
                f"{folder} changes {some(changed)}, one of two tables that are tied in its base; {merge_it(folder)}"
            )
        rows = source.rows or shape[:1]
        whole = tuple(lora.whole[name] for name in _in_file(source) if name in lora.whole)
        added = {at % len(rows): lora.added[name] for at, name in enumerate(_in_file(source)) if name in lora.added}
        once = len(added) == len([name for name in changed if name in lora.added])
        if source.shapes or not once or len(whole) not in (0, len(rows)):
            held = some([name for name in changed if name in lora.whole] or changed)
            raise UnsupportedModel(f"{folder} holds {held}, a part of a tensor that evalsvc joins; {merge_it(folder)}")
        if wrong := [*_wrong_shapes(lora, source, rows, shape)]:
            raise CheckpointMismatch(f"{folder} does not fit its base: {'; '.join(listed('wrongly shaped', wrong))}")
        changes[each] = Change(source, rows, added, whole)
    return changes


def _in_file(source: Source) -> tuple[str, ...]:
    return (*source.names, *source.aliases)


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:at]) for at in range(len(sizes))]


def _wrong_shapes(lora: LoraWeights, source: Source, rows: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[str]:
    for at, name in enumerate(_in_file(source)):
        expected = (rows[at % len(rows)], *shape[1:])
        found = [tuple(lora.whole[name].shape)] if name in lora.whole else []
        if (pair := lora.added.get(name)) is not None:
            found.append((pair.left.shape[0], pair.right.shape[1]))
        yield from (f"{name} {list(item)} instead of {list(expected)}" for item in found if item != expected)
