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

from evalsvc.checkpoints.adapter import LowRank, read_adapter
from evalsvc.checkpoints.formats import merge_it
from evalsvc.checkpoints.tensors import listed, some
from evalsvc.errors import CheckpointMismatch, UnsupportedModel
from evalsvc.families.family import Source
from evalsvc.families.reading import family_of
from evalsvc.spec.model_config import ModelConfig


@dataclass(frozen=True, eq=False)
class Change:
    """A change of a parameter, by the tensors of a file that it is made of."""

    source: Source
    rows: tuple[int, ...]
    """Number of rows of each tensor."""
    added: Mapping[int, LowRank]
    """Products that are added to tensors, by the places of the tensors."""
    whole: Mapping[int, Tensor]
    """All tensors, in place of the base's; empty if the base's are kept."""

    def value(self) -> Tensor:
        """Return the parameter in place of the base's."""
        return self._arranged(torch.cat([self.whole[place] for place in sorted(self.whole)]))

    def products(self, block: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield what is added to the parameter, in float64 and about `block` values at a time, with its rows."""
        factors = [self.added.get(place) for place in range(len(self.rows))]
        nothing = (torch.zeros(rows, 0, dtype=torch.float64) for rows in self.rows)
        lefts = [
            rows if pair is None else pair.scale * pair.left.double()
            for rows, pair in zip(nothing, factors, strict=True)
        ]
        left = self._arranged(torch.block_diag(*lefts))  # type: ignore[no-untyped-call]
        right = torch.cat([pair.right.double() for pair in factors if pair is not None])
        step = max(1, block // right.shape[1])
        for begin in range(0, len(left), step):
            yield slice(begin, begin + step), left[begin : begin + step] @ right

    def _arranged(self, rows: Tensor) -> Tensor:
        return rows if self.source.arrange is None else self.source.arrange(rows)


def read_changes(folder: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Change]:
    """Read an adapter, and return its changes of the parameters of a model with these shapes, by name."""
    lora = read_adapter(folder)
    given = family_of(config).sources(config)
    sources = {name: given.get(name, Source((name,))) for name in shapes}
    if config.weight_tying:
        del sources["output.weight"]
    places = {
        name: (each, at % len(source.names))
        for each, source in sources.items()
        for at, name in enumerate((*source.names, *source.aliases))
    }
    changed = [(name, tuple(tensor.shape)) for name, tensor in lora.whole.items()]
    changed += [(name, (pair.left.shape[0], pair.right.shape[1])) for name, pair in lora.added.items()]
    if problems := listed("unknown", (name for name, _ in changed if name not in places)):
        raise CheckpointMismatch(f"{folder} changes parameters that the base does not have; {problems[0]}")
    changes = {}
    for each in dict.fromkeys(places[name][0] for name, _ in changed):
        source, own = sources[each], [(name, shape) for name, shape in changed if places[name][0] == each]
        names = some(sorted({name for name, _ in own}))
        if config.weight_tying and each == "tok_embeddings.weight":
            raise UnsupportedModel(f"{folder} changes {names}, one of two tables that are tied; {merge_it(folder)}")
        rows = source.rows or shapes[each][:1]
        added = {places[name][1]: pair for name, pair in lora.added.items() if places[name][0] == each}
        whole = {places[name][1]: tensor for name, tensor in lora.whole.items() if places[name][0] == each}
        if source.shapes or len(whole) not in (0, len(rows)) or len(added) + len(whole) < len(own):
            raise UnsupportedModel(f"{folder} holds {names}, a part of a tensor that evalsvc joins; {merge_it(folder)}")
        expected = {name: (rows[places[name][1]], *shapes[each][1:]) for name, _ in own}
        wrong = [(name, shape) for name, shape in own if shape != expected[name]]
        texts = (f"{name} {list(shape)} instead of {list(expected[name])}" for name, shape in wrong)
        if problems := listed("wrongly shaped", texts):
            raise CheckpointMismatch(f"{folder} does not fit its base; {problems[0]}")
        changes[each] = Change(source, rows, added, whole)
    return changes
