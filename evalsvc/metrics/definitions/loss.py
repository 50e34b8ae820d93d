"""Definitions of losses over sequences, and of the metrics derived from losses."""

from __future__ import annotations

from functools import partial

from evalsvc.metrics.definitions.definition import Definition
from evalsvc.metrics.definitions.standard_errors import PERPLEXITY, RATIO

TEXTS = "records that name the same `document`, and equal texts"
ALONE = (
    "before a text stands the token of `bos`, if there is one, and nothing else unless `text_prefix` is `layout`; an "
    "id that nothing precedes is not predicted"
)
SEQUENCES = (
    "captions of one image (the same file, or equal codes), records that name the same `document`, and equal texts "
    "without an image"
)

_loss = partial(
    Definition,
    kind="loss",
    unit="nats/token",
    direction="lower",
    item="sequence with tokens of the type",
    error=RATIO,
    estimator="ratio-of-sums/2",
    group=SEQUENCES,
    grouped_by="group",
)
_general = partial(
    _loss,
    item="general text",
    grouped_by="group_general_text",
    group=TEXTS,
)

_unigram = partial(
    _loss,
    direction="none",
    estimator="held-out-dirichlet/1",
    least=2,
    grouped_by="",
    pairs="it is a property of the data, the same for every checkpoint",
    companion_of=("_unigram(_by_place)?$", ""),
    source="D. J. C. MacKay, L. C. Bauman Peto, Natural Language Engineering 1, 1995; M. Stone, JRSS B 36, 1974, "
    "for leaving out",
)

LOSS = (
    _loss(
        names=("text", "image", "special"),
        formula="Σ −ln p(token) / Σ tokens over the tokens of the type, with the softmax over all ids; the first token "
        "of a sequence is not predicted; a text without an image is outside of the layout's template unless "
        "`text_prefix` is `layout`",
    ),
    _loss(
        names=("total",),
        formula="Σ n·L / Σ n over the three types, with n the tokens of a type and L its loss; padding is left out",
        item="sequence",
    ),
    _loss(
        names=("text_within", "image_within"),
        formula="Σ −ln p(token | an id of its type) / Σ tokens: the softmax is over the ids of the type only",
    ),
    _loss(
        names=("text[_within]_perplexity", "image[_within]_perplexity", "special_perplexity", "total_perplexity"),
        formula="e to the loss of that name",
        unit="perplexity",
        error=PERPLEXITY,
        companion_of=("_perplexity$", ""),
    ),
    _loss(
        names=("image_mass",),
        formula="Σ p(any image id) / Σ tokens over the places where a text token is due",
        unit="probability",
        direction="none",
        item="sequence with text",
    ),
    _unigram(
        names=("text_unigram", "image_unigram", "general_text_unigram"),
        formula="Σ −ln p(id) / Σ ids with p(id) = (c + a / V) / (n + a): c of the n ids in the other groups of "
        "sequences are this one, V are possible, and a is fitted to one half of the groups for the other; not below "
        "the entropy of the ids",
    ),
    _unigram(
        names=("image_unigram_by_place",),
        formula="Σ −ln p(id | place) / Σ ids with p(id | place) = (c + b · p(id)) / (n + b): c of the n ids at this "
        "place of the image in the other groups of sequences are this one, p(id) is that of `image_unigram`, and b "
        "is fitted as a is for `image_unigram`",
    ),
    _general(
        names=("general_text[_within]",),
        formula="the loss of the tokens of `general_text`: Σ −ln p(token) / Σ tokens; `_within` over text ids only; "
        f"{ALONE}",
    ),
    _general(
        names=("general_text_gap[_within]",),
        range="any",
        formula="loss of the general text less that of the captions' text",
        direction="none",
        item="general text or caption",
        error="√(s² + t²), with s and t the standard errors of the two losses, whose texts are independent",
        pairs="the value is made of two sets of texts, and no item is in both",
        grouped_by="",
    ),
    _loss(
        names=("text_position_<place>", "image_row_<row>", "image_column_<column>", "image_position_<place>"),
        formula="Σ −ln p(token) / Σ tokens over the tokens at this place of the text, or in this row or column of the "
        "image, with the softmax over all ids; `128_255` are places 128 to 255",
        item="sequence with tokens at the place",
        pairs="sums by place are kept over all sequences, not of each",
        grouped_by="",
    ),
)
