"""Running whole sequences through a model and summing their losses: the part of the loss task that needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evalsvc.errors import NonFinite, OutOfMemory
from evalsvc.metrics.table_rows import RowStatistics, row_statistics
from evalsvc.metrics.token_loss import TokenLosses, belongs, chunk_rows, token_losses
from evalsvc.models.language_model import LanguageModel, nonfinite_cause
from evalsvc.sampling.memory import is_out_of_memory
from evalsvc.scoring.scorer import token_batches
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.loss.profile import POSITION_STARTS, Grid
from evalsvc.tasks.task import Context

COLUMNS = (
    "n_text",
    "n_image",
    "n_special",
    "nll_text",
    "nll_image",
    "nll_special",
    "within_text",
    "within_image",
    "image_mass",
)
"""Numbers per sequence: targets of each type, their summed losses over all ids and over the ids of their own type, and
the summed probability of image ids at text targets. Losses are in nats."""


SPAN_TOKENS, SPAN_GROUPS = 1 << 18, 1 << 12
"""Maximum numbers of tokens and groups whose sums by bin are in memory simultaneously: some 100 MiB."""


class ProfileSums:
    """The sums behind a `profile.Profile`, collected over the batches of a shard.

    `moments` holds, by group of bins, float64 [bins, 10]: sums over the independent units (sequences, or groups of
    sequences) with targets in a bin. With the unit's number c of targets in the bin, their summed loss x over all ids,
    w within their type, and the number s of sequences with such targets, the sums are of 1, c, x, cc, cx, xx, w, cw, ww
    and s. A mean and its standard error need no more, and sums of shards add up if no group is in two shards.
    """

    def __init__(self, layout: VocabularyLayout, grid: Grid | None, groups: Sequence[int] | None = None) -> None:
        """Set up the sums; without `grid`, by position. `groups` are those of the shard's sequences, ascending."""
        self.layout = layout
        self.grid = grid
        self.groups = groups
        self.moments: dict[str, Tensor] = {}
        self._unit: dict[int, int] = {}
        """Index of each group of the current span in `_held`."""
        self._held: dict[str, Tensor] = {}
        """Sums of the groups of the current span, by group of bins [groups, bins, 4]."""

    def spans(self, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield ranges of sequences of these lengths, cut between groups. Add each range before requesting the next."""
        if self.groups is None:
            yield 0, len(lengths)
            return
        start, tokens, self._unit = 0, 0, {}
        for index, (group, length) in enumerate(zip(self.groups, lengths, strict=True)):
            if group not in self._unit and (tokens >= SPAN_TOKENS or len(self._unit) >= SPAN_GROUPS):
                yield start, index
                self._close()
                start, tokens = index, 0
            self._unit.setdefault(group, len(self._unit))
            tokens += length
        yield start, len(lengths)
        self._close()

    def add(
        self,
        ids: Tensor,  # [B, T]
        target_mask: Tensor,  # [B, T - 1] bool
        losses: TokenLosses,  # of the N targets
        rows: Sequence[int] = (),
    ) -> None:
        """Add the targets of one batch of the sequences `rows`, which groups need."""
        units = None
        if self.groups is not None:
            units = torch.tensor([self._unit[self.groups[row]] for row in rows], device=ids.device)
        owners = target_mask.nonzero()[:, 0]
        targets = ids[:, 1:][target_mask]
        values = torch.stack((torch.ones_like(losses.nll), losses.nll, losses.within), dim=1).double()  # [N, 3]
        for kind, blocks in (("text", self.layout.text_ranges), ("image", (self.layout.image_range,))):
            inside = belongs(ids, *blocks)
            of_type = belongs(targets, *blocks)
            places = (inside.cumsum(1) - 1)[:, 1:][target_mask][of_type]  # number of earlier ids of the same type, [n]
            if not len(places):
                continue
            numbers = len(ids), owners[of_type], values[of_type]
            if kind == "image" and self.grid is not None:
                cells = _bin_sums(*numbers, places, self.grid[0] * self.grid[1])
                grid = cells.reshape(len(ids), *self.grid, 3)
                by_group = {"image_cell": cells, "image_row": grid.sum(2), "image_column": grid.sum(1)}
            else:
                starts = torch.tensor(POSITION_STARTS, device=places.device)
                bins = torch.bucketize(places, starts, right=True) - 1
                by_group = {f"{kind}_position": _bin_sums(*numbers, bins, len(starts))}
            for group, binned in by_group.items():
                sums = torch.cat((binned, (binned[..., :1] > 0).double()), dim=2)  # [B, bins, 4]
                if units is None:
                    self._add_up(group, sums)
                    continue
                if group not in self._held:
                    self._held[group] = sums.new_zeros(len(self._unit), *sums.shape[1:])
                self._held[group].index_add_(0, units, sums)

    def columns(self) -> dict[str, list[list[float]]]:
        return {group: moments.T.tolist() for group, moments in self.moments.items()}

    def _close(self) -> None:
        for group, sums in self._held.items():
            self._add_up(group, sums)
        self._held, self._unit = {}, {}

    def _add_up(self, group: str, sums: Tensor) -> None:
        c, x, w, s = sums.unbind(2)  # of [units, bins, 4]
        columns = ((c > 0).double(), c, x, c * c, c * x, x * x, w, c * w, w * w, s)
        moments = torch.stack([column.sum(0) for column in columns], dim=1)
        self.moments[group] = self.moments[group] + moments if group in self.moments else moments


def _bin_sums(batch: int, owners: Tensor, values: Tensor, bins: Tensor, count: int) -> Tensor:
    sums = values.new_zeros(batch * count, 3).index_add_(0, owners * count + bins, values)
    return sums.reshape(batch, count, 3)


def sequence_sums(
    context: Context,
    model: LanguageModel,
    layout: VocabularyLayout,
    sequences: Sequence[Sequence[int]],
    names: Sequence[str],
    profile: ProfileSums | None = None,
) -> dict[str, list[float]]:
    """Return `COLUMNS` with one number per sequence; every position after the first is a target unless it is the pad.

    A model with a head of its own for images has no `image_mass`. `names` are for messages. `profile` gets the losses
    by position; its groups determine the order of batches.
    """
    sums = torch.zeros(len(sequences), len(COLUMNS), dtype=torch.float64)
    done = 0
    context.report(done)
    for batch in _batches([len(sequence) for sequence in sequences], context.batch_tokens, profile):
        rows = [torch.tensor(sequences[index], dtype=torch.int64) for index in batch]
        # Attention is causal, so the ids of the padding do not matter.
        ids = pad_sequence(rows, batch_first=True).to(context.device)  # [B, T]
        lengths = torch.tensor([len(row) for row in rows], device=context.device)
        target_mask = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]  # [B, T - 1]
        if layout.pad_id is not None:
            target_mask &= ids[:, 1:] != layout.pad_id
        if bool(target_mask.any()):
            targets = ids[:, 1:][target_mask]
            with torch.inference_mode():
                hidden = model.hidden(ids[:, :-1])[target_mask]  # [N, D]: the head processes no padding
                chunk = chunk_rows(model.config.vocab_size)
                blocks = layout.text_ranges, layout.image_range
                losses = token_losses(hidden, targets, model.head, *blocks, chunk, model.config.heads_apart)
            owners = target_mask.nonzero()[:, 0]
            bad = owners[~losses.nll.isfinite()]
            if len(bad):
                row = int(bad[0])
                cause = nonfinite_cause(model, ids[row : row + 1, : int(lengths[row])])
                label = context.checkpoint.label
                raise NonFinite(f"{label}: the loss of {names[batch[row]]} is not finite; {cause}")
            if profile is not None:
                profile.add(ids, target_mask, losses, batch)
            numbers = _columns(losses, targets, layout)
            sums[batch] = numbers.new_zeros(len(batch), len(COLUMNS)).index_add_(0, owners, numbers).cpu()
        done += len(batch)
        context.report(done)
    columns = {name: column.tolist() for name, column in zip(COLUMNS, sums.unbind(1), strict=True)}
    return {name: column for name, column in columns.items() if name != "image_mass" or not model.config.heads_apart}


def _batches(lengths: Sequence[int], batch_tokens: int, profile: ProfileSums | None) -> Iterator[list[int]]:
    for start, stop in [(0, len(lengths))] if profile is None else profile.spans(lengths):
        for batch in token_batches(lengths[start:stop], batch_tokens):
            yield [start + index for index in batch]


def _columns(losses: TokenLosses, targets: Tensor, layout: VocabularyLayout) -> Tensor:
    text, image = belongs(targets, *layout.text_ranges), belongs(targets, layout.image_range)
    types = torch.stack((text, image, ~text & ~image), dim=1)  # [N, 3]
    nll = torch.where(types, losses.nll[:, None], 0)
    within = torch.where(types[:, :2], losses.within[:, None], 0)
    mass = torch.where(text, losses.image_log_mass.double().exp(), 0)
    return torch.cat((types.double(), nll.double(), within.double(), mass[:, None]), dim=1)


class ModelEvidence:
    """Evidence of a model for the layout doctor, with the batches and the device of `context`."""

    def __init__(self, context: Context, model: LanguageModel) -> None:
        self._context = context
        self._model = model

    def sums(self, layout: VocabularyLayout, sequences: Sequence[Sequence[int]]) -> dict[str, list[float]]:
        names = [f"pair {number}" for number in range(1, len(sequences) + 1)]
        with _out_of_memory():
            return sequence_sums(self._context, self._model, layout, sequences, names)

    def next_log_masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log probabilities that some id of a group comes next, by prefix and group; -inf for an empty group."""
        log_masses: list[list[float]] = [[] for _ in prefixes]
        for batch in token_batches([len(prefix) for prefix in prefixes], self._context.batch_tokens):
            with torch.inference_mode(), _out_of_memory():
                rows = self._masses([prefixes[index] for index in batch], groups)
            for index, row in zip(batch, rows, strict=True):
                log_masses[index] = row
        return log_masses

    def rows(self) -> RowStatistics:
        return row_statistics(self._model.input_table, self._model.output_table)

    def _masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        device = self._context.device
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        ids = pad_sequence([torch.tensor(prefix, dtype=torch.int64) for prefix in prefixes], batch_first=True)
        hidden = self._model.hidden(ids.to(device))  # [B, T, D]
        last = hidden[torch.arange(len(prefixes), device=device), lengths - 1]
        tables = self._model.config.image_tables
        logits = self._model.head(last).double()  # [B, V]
        # Rows of images that have a head of their own are no alternatives to the other rows.
        parts = (logits,) if tables is None else torch.split(logits, [logits.shape[1] - tables.rows, tables.rows], 1)
        log_probs = torch.cat([part.log_softmax(-1) for part in parts], dim=1)
        columns = [log_probs[:, torch.tensor(group, dtype=torch.int64, device=device)] for group in groups]
        return torch.stack([column.logsumexp(-1) for column in columns], dim=1).tolist()


@contextmanager
def _out_of_memory() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                "a batch of sequences did not fit into memory; lower EVALSVC_BATCH_TOKENS, or use a device with more"
            ) from None
        raise
