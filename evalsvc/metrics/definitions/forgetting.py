"""Definitions of the metrics that compare a checkpoint with its base."""

from __future__ import annotations

from functools import partial

from evalsvc.metrics.definitions.definition import OF_METRIC, Definition
from evalsvc.metrics.definitions.loss import ALONE, TEXTS
from evalsvc.metrics.definitions.standard_errors import DIFFERENCE, DOCUMENT_SHARES, RATIO, SHARE

_text = partial(
    Definition,
    kind="forgetting",
    unit="nats/token",
    direction="lower",
    item="text",
    error=RATIO,
    estimator="forgetting/1",
    group=TEXTS,
    grouped_by="text_group",
)
_forgetting = partial(
    Definition,
    kind="forgetting",
    unit="fraction",
    range="any",
    direction="higher",
    item="document",
    error=SHARE,
    estimator="lm-eval/1 + forgetting/2",
)
DCLM = "J. Li et al., DataComp-LM, arXiv 2406.11794, 2024, for accuracies above chance (CORE)"

FORGETTING = (
    _text(names=("loss",), formula=f"Σ −ln p(token) / Σ tokens of the fixed text, over all ids; {ALONE}"),
    _text(
        names=("loss_within",),
        formula="Σ −ln p(token) / Σ tokens of `loss`, with the softmax over text ids only",
    ),
    _text(
        names=("loss_change", "loss_within_change"),
        range="any",
        formula="loss of the checkpoint less that of the base, on the same tokens",
        error=DIFFERENCE,
    ),
    _text(
        names=("kl",),
        formula="Σ KL(base ‖ checkpoint) / Σ tokens of `loss`, with KL = Σ p (ln p − ln q) over all ids at each place; "
        "where the two tables differ, p is over the text ids that both have, and q over all ids of the checkpoint",
        source="S. Kullback, R. A. Leibler, Annals of Mathematical Statistics 22, 1951",
    ),
    _text(
        names=("kl_within",),
        formula="Σ KL(base ‖ checkpoint) / Σ tokens of `loss`, with both distributions over text ids only",
    ),
    _text(
        names=("top1_agreement",),
        formula="share of the tokens of `loss` at whose place both models have the same likeliest id",
        unit="fraction",
        direction="higher",
    ),
    _text(
        names=("image_mass",),
        formula="Σ p(any image id) / Σ tokens of `loss`",
        unit="probability",
        direction="none",
    ),
    _text(
        names=("icl_loss",),
        range="any",
        formula="mean over texts of the loss at the later of two places less that at the earlier one [500 and 50]",
        item="text that reaches the later place",
        source="C. Olsson et al., arXiv 2209.11895, 2022",
    ),
    _text(
        names=("icl_loss_change",),
        range="any",
        formula="`icl_loss` of the checkpoint less that of the base",
        item="text that reaches the later place",
        error=DIFFERENCE,
    ),
    _forgetting(
        names=("text_retained[_within]",),
        formula="Σ c of the checkpoint / Σ c of the base over all benchmarks with an accuracy, c = (accuracy − "
        "chance) / (1 − chance), where the sum of the base is above zero by two of its standard errors",
        error=DOCUMENT_SHARES,
        estimator="text_retained/2 + forgetting/1",
        source=DCLM,
        least=2,
    ),
    _forgetting(
        names=("centred[_within]",),
        formula="mean over benchmarks of (accuracy − chance) / (1 − chance) of the checkpoint",
        error=DOCUMENT_SHARES,
        estimator="forgetting/1",
        source=DCLM,
    ),
    _forgetting(
        names=("<benchmark>_lost[_within]",),
        range="share",
        formula="share of the documents that only the base answers right, or better where answers are right in part",
        direction="lower",
    ),
    _forgetting(
        names=("<benchmark>_gained[_within]",),
        range="share",
        formula="share of the documents that only the checkpoint answers right, or better where answers are right "
        "in part",
    ),
    _forgetting(
        names=("<benchmark>_retained[_within]",),
        formula="(accuracy − chance) of the checkpoint / (accuracy − chance) of the base, where the base is above "
        "chance by two of its standard errors",
        error="of the linearised ratio over documents, both accuracies together; its interval is Fieller's. Near "
        "chance the value is too low on average, since a base that is above chance by luck has a value",
        source=f"{DCLM}; E. C. Fieller, JRSS B 16, 1954",
        least=2,
    ),
    _forgetting(
        names=("<benchmark>_icl[_within]",),
        formula="accuracy with five fixed documents solved before each question less that without any",
        error=DIFFERENCE,
    ),
    _forgetting(
        names=("<benchmark>_bits_per_byte[_within]_change",),
        formula="bits per byte of the right answers of the checkpoint less those of the base",
        unit="bits/byte",
        direction="lower",
        error=DIFFERENCE,
        estimator="lm-eval/1 + forgetting/1",
    ),
    _forgetting(
        names=("<benchmark>_<metric>_change",),
        formula="the metric of the checkpoint less that of the base, for every other metric of a benchmark that is a "
        "mean over documents and has a better side",
        unit=OF_METRIC,
        direction=OF_METRIC,
        error=DIFFERENCE,
    ),
)
