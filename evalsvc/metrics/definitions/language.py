"""Definitions of the metrics of text benchmarks."""

from __future__ import annotations

from functools import partial

from evalsvc.metrics.definitions.definition import ANY, OF_METRIC, Definition
from evalsvc.metrics.definitions.standard_errors import DOCUMENT_SHARES, PERPLEXITY, RATIO

_language = partial(
    Definition,
    kind="language",
    unit="fraction",
    direction="higher",
    item="document",
    error=RATIO,
    estimator="lm-eval/1",
)
LM_EVAL = "EleutherAI, lm-evaluation-harness, at the version in the protocol (`lm_eval`)"

LANGUAGE = (
    _language(
        names=("acc[_within][,<filter>]",),
        formula="share of the documents whose likeliest option is right; where there are no options, whose right "
        "answer is what greedy decoding gives",
        source=LM_EVAL,
    ),
    _language(
        names=("acc_norm[_within][,<filter>]",),
        formula="share of the documents whose option with the highest log-probability per character is right",
        source=LM_EVAL,
    ),
    _language(
        names=("acc_token[_within]",),
        formula="share of the documents whose option with the highest mean log-probability per token is right",
        source="llm-foundry's accuracy of multiple choice (MosaicML)",
    ),
    _language(
        names=("acc_<way>[_within][,<filter>]",),
        formula="share of the documents whose best option by lm-eval's rule of this name is right: `acc_bytes` per "
        "byte, `acc_mutual_info` less the option's log-probability without the question",
        source=LM_EVAL,
    ),
    _language(
        names=("exact_match[_within][,<filter>]", "em[_within][,<filter>]"),
        formula="share of the documents whose generated text, behind lm-eval's filters, is the right answer; of "
        "options, whose right option is what greedy decoding gives",
        source=LM_EVAL,
    ),
    _language(
        names=("bits_per_byte[_within][,<filter>]",),
        formula="Σ −log₂ p / Σ bytes of the right answers, of each with the delimiter before it; of benchmarks that "
        "score whole texts, of the texts",
        unit="bits/byte",
        direction="lower",
        source="L. Gao et al., arXiv 2101.00027, 2020, for whole texts",
    ),
    _language(
        names=(
            "perplexity[_within][,<filter>]",
            "word_perplexity[_within][,<filter>]",
            "byte_perplexity[_within][,<filter>]",
        ),
        formula="e to Σ −ln p / Σ weight of the texts: the weight is 1 for `perplexity`, else words or bytes",
        unit="perplexity",
        direction="lower",
        error=PERPLEXITY,
        source=LM_EVAL,
        companion_of=("^(word_|byte_)?perplexity", "bits_per_byte"),
    ),
    _language(
        names=("image_mass",),
        formula="Σ p(any image id) / Σ tokens over the places where a token of an answer is due, of right and wrong "
        "options alike",
        unit="probability",
        direction="none",
    ),
    _language(
        names=("mean[_within]",),
        formula="plain mean over the benchmarks of the first metric of `mean` that each has; a group counts as one. "
        "With different units, the unit is `score`; with different better sides, no side is better",
        unit=OF_METRIC,
        direction=OF_METRIC,
        error=DOCUMENT_SHARES,
    ),
    _language(
        names=("brier_score[_within][,<filter>]",),
        formula="mean over documents of Σ (p − y)² over the options, with p the softmax of their log-probabilities, "
        "and y 1 for the right one and 0 for others",
        unit="score",
        direction="lower",
        source="G. W. Brier, Monthly Weather Review 78, 1950",
    ),
    _language(
        names=ANY,
        formula="any other metric of lm-eval, as lm-eval aggregates the documents' values",
        unit="score",
        direction=OF_METRIC,
        error="of a mean, the linearised ratio's; of another aggregation, that of 200 bootstrap samples of documents, "
        "from 20 documents on and where a sample moves the value",
        estimator="lm-eval/1 or lm-eval/2",
        source=LM_EVAL,
        pairs="the aggregation is no mean over documents; where the aggregation is a mean, documents are paired",
    ),
)
