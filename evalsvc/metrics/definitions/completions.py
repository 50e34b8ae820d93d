"""Definitions of the metrics of text completions that checkpoints sample."""

from __future__ import annotations

from functools import partial

from evalsvc.metrics.definitions.definition import Definition
from evalsvc.metrics.definitions.standard_errors import RATIO, SHARE

_completions = partial(
    Definition,
    kind="completions",
    unit="fraction",
    direction="none",
    item="prompt",
    error=RATIO,
    estimator="completions/2",
)

COMPLETIONS = (
    _completions(
        names=("image_share",),
        formula="Σ image ids / Σ ids over all completions",
        item="completion",
        group="completions of one prompt",
        grouped_by="prompt",
    ),
    _completions(
        names=("same_as_base",),
        formula="share of the prompts whose greedy completion is the base's to the last id",
        error=SHARE,
    ),
    _completions(
        names=("greedy_seq_rep_4", "seeded_seq_rep_4"),
        formula="mean over prompts of 1 − different 4-grams / 4-grams of ids of a completion",
        source="S. Welleck et al., arXiv 1908.04319, 2020",
    ),
    _completions(
        names=("greedy_distinct_1", "greedy_distinct_2", "seeded_distinct_1", "seeded_distinct_2"),
        formula="mean over prompts of different n-grams / n-grams of ids of all completions of the prompt together",
        source="J. Li et al., arXiv 1510.03055, 2016, who divide by words for n = 2 too",
    ),
    _completions(
        names=("greedy_base_loss", "seeded_base_loss"),
        formula="Σ −ln p(id) / Σ ids of the text that completions begin with, under the base given the prompt, with "
        "the softmax over text ids",
        unit="nats/token",
    ),
    _completions(
        names=("greedy_length", "seeded_length"),
        formula="mean over prompts of the ids that were drawn",
        unit="tokens",
    ),
    _completions(
        names=("greedy_ended", "seeded_ended"),
        formula="mean over prompts of the share of completions that end with the text's end",
    ),
)
