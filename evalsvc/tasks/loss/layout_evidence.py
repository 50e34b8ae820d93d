"""A model's evidence for a layout: losses of sequences, expected next ids, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.utils.rnn import pad_sequence

from evalsvc.errors import OutOfMemory
from evalsvc.metrics.table_rows import RowStatistics, row_statistics
from evalsvc.models.language_model import LanguageModel
from evalsvc.sampling.memory import is_out_of_memory
from evalsvc.scoring.scorer import token_batches
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.loss.teacher_forcing import sequence_sums
from evalsvc.tasks.task import Context


class ModelEvidence:
    """Evidence of a model for the layout doctor, with the batches and the device of `context`."""

    def __init__(self, context: Context, model: LanguageModel) -> None:
        self._context = context
        self._model = model

    def sums(self, layout: VocabularyLayout, sequences: Sequence[Sequence[int]]) -> dict[str, list[float]]:
        """Return `teacher_forcing.COLUMNS` of each sequence."""
        names = [f"pair {number}" for number in range(1, len(sequences) + 1)]
        with _out_of_memory():
            return sequence_sums(self._context, self._model, layout, sequences, names)

    def next_log_masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log probabilities that some id of a group comes next: for each prefix, one number per group.

        An empty group has -inf.
        """
        log_masses: list[list[float]] = [[] for _ in prefixes]
        for batch in token_batches([len(prefix) for prefix in prefixes], self._context.batch_tokens):
            with torch.inference_mode(), _out_of_memory():
                rows = self._masses([prefixes[index] for index in batch], groups)
            for index, row in zip(batch, rows, strict=True):
                log_masses[index] = row
        return log_masses

    def rows(self) -> RowStatistics:
        """Return statistics of the rows of both tables: untrained rows, and borders between blocks."""
        return row_statistics(self._model.input_table, self._model.output_table)

    def _masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        device = self._context.device
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        ids = pad_sequence([torch.tensor(prefix, dtype=torch.int64) for prefix in prefixes], batch_first=True)
        hidden = self._model.hidden(ids.to(device))  # [B, T, D]
        last = hidden[torch.arange(len(prefixes), device=device), lengths - 1]
        log_probs = self._model.head(last).double().log_softmax(-1)  # [B, V]
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
