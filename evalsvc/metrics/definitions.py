"""What every metric is: formula, unit, items, pairs, standard error and source, as one table.

`evalsvc metrics` shows the table, `docs/metrics.md` is made of it, and a test holds it to what the tasks return. A new
metric is one more entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import islice
from typing import Final, Literal, get_args

from evalsvc.spec.protocol import Direction

Kind = Literal["loss", "text_to_image", "reconstruction", "language", "forgetting", "completions", "alignment"]
"""Kind of task, as a metric's protocol has it under `task`."""

KINDS: tuple[Kind, ...] = get_args(Kind)

ITEMS = "items"
"""Value of `Definition.pairs` where two checkpoints are compared item by item."""

OF_METRIC: Final = "the metric's"
"""Unit or direction of what is made of another metric, and has the other metric's."""


ANY = ("<metric>",)
"""Names of a definition that fits every name."""


@dataclass(frozen=True)
class Definition:
    """One metric, or several that differ only in which tokens, images or documents they are of."""

    kind: Kind
    """Kind of task that returns the metric."""
    names: tuple[str, ...]
    """Second halves of the metric's names, behind `<task>/` or `<benchmark>/`. `<…>` stands for any text, and what is
    in brackets may be absent: `acc[_within]`."""
    formula: str
    """The value, in a line of mathematics or words."""
    unit: str
    """As in `MetricValue.unit`, or `OF_METRIC`."""
    direction: Direction | Literal["the metric's"]
    """As in `MetricValue.direction`, or `OF_METRIC`."""
    item: str
    """What one item is, of which `n` counts how many there are."""
    error: str
    """How the standard error is found: a key of `ERRORS`, or in words."""
    source: str = ""
    """Publication that defines the metric; empty where the formula is all of it."""
    estimator: str = ""
    """Version of the estimator, as the protocol has it: of the metric, of the comparison with a base, or of both."""
    least: int = 1
    """Fewest items with which there is a value."""
    group: str = ""
    """Items that are not independent of each other, and count as one in the error; empty: every item is independent."""
    grouped_by: str = ""
    """Key of the task's items that names the group of each; empty where items do not name one."""
    pairs: str = ITEMS
    """`items` where two checkpoints are compared item by item, else the reason why they are not."""

    @property
    def title(self) -> str:
        """All names, for a table."""
        return ", ".join(self.names)

    def matches(self, name: str) -> bool:
        """Say whether this is the definition of a metric whose name ends so, behind `<task>/` or `<benchmark>/`."""
        return any(_expression(pattern).fullmatch(name) for pattern in self.names)


def definition_of(kind: str, metric: str) -> Definition | None:
    """Return the definition of a metric by its full name, such as `captions/text`; None where there is none.

    `kind` is the kind of task: `task` in the metric's protocol. Of several definitions that match, the first counts.
    """
    name = metric.partition("/")[2]
    return next((one for one in DEFINITIONS if one.kind == kind and one.matches(name)), None)


def find_definitions(wanted: str) -> list[Definition]:
    """Return the definitions that a reader means by a metric's name, full or without its first half, or by a pattern.

    What has any name whatever, such as the other metrics of lm-eval, is not meant by a name that is not its own.
    """
    name = wanted.rpartition("/")[2]
    found = []
    for kind in KINDS:
        of_kind = [one for one in DEFINITIONS if one.kind == kind]
        named = [one for one in of_kind if any(fnmatchcase(own, wanted) or own == wanted for own in one.names)]
        matching = (one for one in of_kind if one.names != ANY and one.matches(name))
        found += named or list(islice(matching, 1))
    return found


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern such as `<benchmark>_icl[_within]`."""
    signs = {"[": "(?:", "]": ")?"}
    parts = re.split(r"(<\w+>|[\[\]])", pattern)
    return re.compile("".join(".+" if part[:1] == "<" else signs.get(part, re.escape(part)) for part in parts))


RATIO = "linearised ratio"
SHARE = "share"
PERPLEXITY = "perplexity"
IMAGE_SHARES = "shares of images"
DIFFERENCE = "paired difference"
DOCUMENT_SHARES = "shares of documents"
PAIR_PARTS = "parts of pairs"

ERRORS: Mapping[str, str] = {
    RATIO: (
        "of R = Σ x / Σ w over items: √(G / (G − 1) · Σ u²) / Σ w, with u the sum of x − R · w over the items of a "
        "group, and G groups; where items are independent, every item is a group. With all w equal to 1 it is the "
        "standard error of a mean. Of items that are all 0, or all 1, it is that of a share. Source: W. G. Cochran, "
        "Sampling Techniques, 3rd edition, 1977, sections 6.4 and 9A.1"
    ),
    SHARE: (
        "√(p (1 − p) / (n − 1)) of a share p; where all n items are alike, √(q (1 − q) / (n + 4)) with q = (hits + "
        "2) / (n + 4), since the next item may differ. Source: A. Agresti, B. A. Coull, The American Statistician "
        "52, 1998"
    ),
    PERPLEXITY: "the perplexity times the standard error of the loss that it is e to (delta method)",
    IMAGE_SHARES: (
        "standard deviation / √n of what each sampled image adds to the value (jackknife), the real images as "
        "given. Of a distance the jackknife counts the variance of pairs of images twice, and the shares are drawn "
        "together so that it counts once (a Fréchet distance's from 4 images per feature on). The interval of a "
        "distance is too short where few images make it: of 95 % it holds .81 to .9 with skewed features below 8 "
        "images per feature and .63 to .86 with heavy tails (FID), and .82 to .93 below 1,000 images that fall "
        "into classes (KID, CMMD). Source: L. A. Jaeckel, Bell Laboratories MM "
        "72-1215-11, 1972; B. Efron, "
        "C. Stein, Annals of Statistics 9, 1981; for kernels W. Hoeffding, Annals of Mathematical Statistics 19, "
        "1948, equation 5.13"
    ),
    DIFFERENCE: "the linearised ratio's, of the items' differences, checkpoint less base",
    DOCUMENT_SHARES: (
        "√(Σ a²) over documents, with a what each document adds to the value to first order (infinitesimal "
        "jackknife). Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, section 21.3"
    ),
    PAIR_PARTS: (
        "standard deviation / √n of what each pair adds to the value to first order, for itself and as what other "
        "pairs are told apart from (infinitesimal jackknife), the candidates as given. Source: B. Efron, The "
        "Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6"
    ),
}
"""How standard errors are found, by the names that definitions give."""

TEXTS = "records that name the same `document`, and equal texts"
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
    source="D. J. C. MacKay, L. C. Bauman Peto, Natural Language Engineering 1, 1995; M. Stone, JRSS B 36, 1974, "
    "for leaving out",
)

LOSS = (
    _loss(
        names=("text", "image", "special"),
        formula="Σ −ln p(token) / Σ tokens over the tokens of the type, with the softmax over all ids; the first token "
        "of a sequence is not predicted",
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
        "is fitted as a there",
    ),
    _general(
        names=("general_text[_within]",),
        formula="the loss of the tokens of `general_text`: Σ −ln p(token) / Σ tokens; `_within` over text ids only",
    ),
    _general(
        names=("general_text_gap[_within]",),
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

_image = partial(
    Definition,
    kind="text_to_image",
    unit="distance",
    direction="lower",
    item="sampled image",
    error=IMAGE_SHARES,
)
FRECHET = (
    "|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with the means μ and covariances Σ of the features of sampled and of "
    "real images"
)
INFINITY = (
    "18 θ₀ − 25 θ₁ + 8 θ₂, the Fréchet distance extrapolated to infinitely many sampled images, which are divided "
    "into six random groups: θ₀ is the distance of all, θ₁ the mean distance without a group, θ₂ that without two"
)
INFINITY_ERROR = (
    "√(s² + r²), with s that of the shares of images, and r an estimate of what the extrapolation leaves; at least "
    "−value / 1.9. Two checkpoints are compared with s alone"
)
HEUSEL = "M. Heusel et al., arXiv 1706.08500, 2017"
KYNKAANNIEMI = "T. Kynkäänniemi et al., arXiv 1904.06991, 2019"
NAEEM = "M. F. Naeem et al., arXiv 2002.09797, 2020"
INFINITY_SOURCE = (
    "M. J. Chong, D. Forsyth, arXiv 1911.07023, 2020, for the aim; W. Schucany, H. Gray, D. Owen, Journal of the "
    "American Statistical Association 66, 1971, equation 3, for the jackknife of second order"
)
GROUPS_ERROR = (
    "jackknife over 20 groups of sampled images; rather too large than too small. Source: B. Efron, C. Stein, "
    "Annals of Statistics 9, 1981"
)
TWENTIETH = "a random twentieth of the sampled images, which the jackknife leaves out together"
NEIGHBOURS = "a real image's ball reaches to its 5th nearest real image, and at most 10,000 images a side have one"

TEXT_TO_IMAGE = (
    _image(
        names=("fid",),
        formula=f"{FRECHET}, all 2,048 of Inception; too large by about C / n",
        estimator="fid/3",
        least=2049,
        source=HEUSEL,
    ),
    _image(
        names=("fid64",),
        formula=f"{FRECHET}, the first 64 of Inception; too large by about C / n",
        estimator="fid64/3",
        least=65,
        source=HEUSEL,
    ),
    _image(
        names=("fd_dinov2",),
        formula=f"{FRECHET}, the 1,024 of DINOv2 ViT-L/14; too large by about C / n",
        estimator="fd_dinov2/3",
        least=1025,
        source="G. Stein et al., arXiv 2306.04675, 2023",
    ),
    _image(
        names=("fid_infinity",),
        formula=f"{INFINITY}, on all 2,048 features of Inception",
        error=INFINITY_ERROR,
        estimator="fid_infinity/2",
        least=29659,
        source=INFINITY_SOURCE,
    ),
    _image(
        names=("fid64_infinity",),
        formula=f"{INFINITY}, on the first 64 features of Inception",
        error=INFINITY_ERROR,
        estimator="fid64_infinity/2",
        least=260,
        source=INFINITY_SOURCE,
    ),
    _image(
        names=("kid",),
        formula="mean k(x, x') + mean k(y, y') − 2 mean k(x, y) with k(x, y) = (x·y / 2048 + 1)³, of sampled images x "
        "and real images y, over disjoint blocks of at most 1,000; pairs of an image with itself do not count",
        estimator="kid/2",
        least=2,
        source="M. Bińkowski et al., arXiv 1801.01401, 2018; blocks: W. Zaremba et al., arXiv 1307.1954, 2013",
    ),
    _image(
        names=("cmmd",),
        formula="1000 · (mean k(x, x') + mean k(y, y') − 2 mean k(x, y)) with k(x, y) = exp(−|x − y|² / 200), of CLIP "
        "embeddings of length one, over all pairs, those of an image with itself included",
        estimator="cmmd/2",
        least=2,
        source="S. Jayasumana et al., arXiv 2401.09603, 2024",
    ),
    _image(
        names=("precision",),
        formula=f"share of the sampled images that lie in the ball of a real image: {NEIGHBOURS}",
        unit="fraction",
        direction="higher",
        error=SHARE,
        estimator="precision/2",
        least=20,
        source=KYNKAANNIEMI,
    ),
    _image(
        names=("density",),
        formula=f"in how many balls of real images a sampled image lies, over 5, on average: {NEIGHBOURS}",
        unit="ratio",
        direction="higher",
        error=RATIO,
        estimator="density/1",
        least=20,
        source=NAEEM,
    ),
    _image(
        names=("recall",),
        formula="share of the real images that lie in the ball of a sampled image, which reaches to its 5th nearest "
        "sampled image; at most 10,000 images a side",
        unit="fraction",
        direction="higher",
        error=GROUPS_ERROR,
        estimator="recall/2",
        least=20,
        group=TWENTIETH,
        pairs="the items of the value are the real images",
        source=KYNKAANNIEMI,
    ),
    _image(
        names=("coverage",),
        formula=f"share of the real images whose ball holds a sampled image: {NEIGHBOURS}",
        unit="fraction",
        direction="higher",
        error=GROUPS_ERROR,
        estimator="coverage/2",
        least=20,
        group=TWENTIETH,
        pairs="the items of the value are the real images",
        source=NAEEM,
    ),
    _image(
        names=("inception_score",),
        formula="mean over 10 splits of exp(mean KL(p(y | image) ‖ p(y))), with p(y) the mean of p(y | image) over the "
        "images of a split, of Inception's 1,008 classes",
        unit="score",
        direction="higher",
        estimator="inception_score/1",
        least=1000,
        source="T. Salimans et al., arXiv 1606.03498, 2016",
    ),
    _image(
        names=("clip_score",),
        formula="mean of 100 · max(cos(image, caption), 0) of CLIP's embeddings",
        unit="score",
        direction="higher",
        error=RATIO,
        estimator="clip_score/1",
        source="J. Hessel et al., arXiv 2104.08718, 2021, whose factor is 2.5",
    ),
    _image(
        names=("agreement",),
        formula="share of the sampled images in which the classifier reads the label that the caption names",
        unit="fraction",
        direction="higher",
        error=SHARE,
    ),
)

_reconstruction = partial(
    Definition,
    kind="reconstruction",
    unit="distance",
    direction="lower",
    item="image",
    error=RATIO,
    estimator="reconstruction/2",
)

RECONSTRUCTION = (
    _reconstruction(
        names=("psnr",),
        formula="mean over images of 10 log₁₀(255² / mean squared error of pixels and channels); infinite where an "
        "image comes back exactly",
        unit="dB",
        direction="higher",
    ),
    _reconstruction(
        names=("ssim",),
        formula="mean over images, channels and windows of (2 μ₁μ₂ + c₁)(2 σ₁₂ + c₂) / ((μ₁² + μ₂² + c₁)(σ₁² + σ₂² + "
        "c₂)), with Gaussian windows of 11 × 11 pixels, σ = 1.5, c₁ = (.01 · 255)², c₂ = (.03 · 255)²",
        unit="similarity",
        direction="higher",
        source="Z. Wang et al., IEEE Transactions on Image Processing 13, 2004, equation 13",
    ),
    _reconstruction(
        names=("codebook_use",),
        formula="different codes that occur / codes of the codebook",
        unit="fraction",
        direction="none",
        error="there is none",
        pairs="the value is of the codes of all images together",
    ),
    _reconstruction(
        names=("codebook_perplexity",),
        formula="e to the entropy −Σ f ln f of the frequencies f of the codes",
        unit="perplexity",
        direction="none",
        error="there is none",
        pairs="the value is of the codes of all images together",
    ),
    _reconstruction(
        names=("fid",),
        formula="|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of originals and reconstructions: all 2,048 features of "
        "Inception",
        error="as shares of images, each of which is taken out on both sides",
        least=2049,
        source=HEUSEL,
    ),
    _reconstruction(
        names=("fid64",),
        formula="as `fid`, of the first 64 features of Inception",
        error="as shares of images, each of which is taken out on both sides",
        least=65,
        source=HEUSEL,
    ),
)

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
        "Of metrics with different units it is a `score`, and with different better sides it has none",
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
        error="of a mean, the linearised ratio's; of another aggregation, that of 200 bootstrap samples of documents",
        source=LM_EVAL,
        pairs="the aggregation is no mean over documents; where it is one, they are",
    ),
)

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
    direction="higher",
    item="document",
    error=SHARE,
    estimator="lm-eval/1 + forgetting/1",
)
DCLM = "J. Li et al., DataComp-LM, arXiv 2406.11794, 2024, for accuracies above chance (CORE)"

FORGETTING = (
    _text(names=("loss",), formula="Σ −ln p(token) / Σ tokens of the fixed text, over all ids"),
    _text(
        names=("loss_within",),
        formula="Σ −ln p(token) / Σ tokens of the fixed text, with the softmax over text ids only",
    ),
    _text(
        names=("loss_change", "loss_within_change"),
        formula="loss of the checkpoint less that of the base, on the same tokens",
        error=DIFFERENCE,
    ),
    _text(
        names=("kl",),
        formula="Σ KL(base ‖ checkpoint) / Σ tokens, with KL = Σ p (ln p − ln q) over all ids at each place; where the "
        "two tables differ, p is over the text ids that both have, and q over all ids of the checkpoint",
        source="S. Kullback, R. A. Leibler, Annals of Mathematical Statistics 22, 1951",
    ),
    _text(
        names=("kl_within",), formula="Σ KL(base ‖ checkpoint) / Σ tokens, with both distributions over text ids only"
    ),
    _text(
        names=("top1_agreement",),
        formula="share of the tokens at whose place both models have the same likeliest id",
        unit="fraction",
        direction="higher",
    ),
    _text(
        names=("image_mass",),
        formula="Σ p(any image id) / Σ tokens of the fixed text",
        unit="probability",
        direction="none",
    ),
    _text(
        names=("icl_loss",),
        formula="mean over texts of the loss at the later of two places less that at the earlier one [500 and 50]",
        item="text that reaches the later place",
        source="C. Olsson et al., arXiv 2209.11895, 2022",
    ),
    _text(
        names=("icl_loss_change",),
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
        formula="share of the documents that only the base answers right, or better where answers are right in part",
        direction="lower",
    ),
    _forgetting(
        names=("<benchmark>_gained[_within]",),
        formula="share of the documents that only the checkpoint answers right, or better where answers are right "
        "in part",
    ),
    _forgetting(
        names=("<benchmark>_retained[_within]",),
        formula="(accuracy − chance) of the checkpoint / (accuracy − chance) of the base, where the base is above "
        "chance by two of its standard errors",
        error="of the linearised ratio over documents, both accuracies together; its interval is Fieller's. Near "
        "chance the value is too low on average, since a base that luck has put above chance has one",
        source=f"{DCLM}; E. C. Fieller, JRSS B 16, 1954",
        least=2,
    ),
    _forgetting(
        names=("<benchmark>_icl[_within]",),
        formula="accuracy with five fixed documents solved before each question less that without any",
        error=DIFFERENCE,
    ),
    _forgetting(
        names=("<benchmark>_<metric>_change",),
        formula="the metric of the checkpoint less that of the base, for every metric of a benchmark that is a mean "
        "over documents or a ratio of their sums, and has a better side",
        unit=OF_METRIC,
        direction=OF_METRIC,
        error=DIFFERENCE,
    ),
)

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

_alignment = partial(
    Definition,
    kind="alignment",
    unit="cosine",
    direction="none",
    item="pair of image and caption, the first caption of each image",
    error=PAIR_PARTS,
    estimator="alignment/2",
    least=2,
)
PHIPSON = "B. Phipson, G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010, equation 2"
RADFORD = "A. Radford et al., arXiv 2103.00020, 2021"
CLIP_LOSS = (
    "mean over pairs of ½ (ln Σⱼ exp s·Sᵢⱼ + ln Σⱼ exp s·Sⱼᵢ) − s·Sᵢᵢ, with S the cosines of images and captions of "
    "a batch"
)

ALIGNMENT = (
    _alignment(
        names=("[learned_]loss_fitted",),
        formula=f"{CLIP_LOSS}, at the factor s in [0, 100] with the smallest loss; where pairs are no more alike "
        f"than others s is 0, and the loss is ln batch without a standard error",
        unit="nats/pair",
        direction="lower",
        source=RADFORD,
    ),
    _alignment(
        names=("learned_loss",),
        formula=f"{CLIP_LOSS}, at the learned factor s",
        unit="nats/pair",
        direction="lower",
        source=RADFORD,
    ),
    _alignment(
        names=("learned_training_loss",),
        formula="mean of CLIP's loss over the last tenth of the training steps, of each step's batch",
        unit="nats/pair",
        direction="lower",
        item="training step",
        error=RATIO,
        pairs="steps of two trainings have nothing in common",
        least=1,
        source=RADFORD,
    ),
    _alignment(
        names=("[learned_]image_to_text_at_<k>", "[learned_]text_to_image_at_<k>"),
        formula="probability that one of the k nearest captions of an image, or images of a caption, is right; equal "
        "captions are right too, and what is equally near comes in random order",
        unit="fraction",
        direction="higher",
        error=RATIO,
    ),
    _alignment(
        names=("[learned_]cosine_excess",),
        formula="mean cosine of pairs less that of an image and a caption that are no pair",
        direction="higher",
    ),
    _alignment(
        names=("[learned_]cosine_between", "[learned_]cosine_text", "[learned_]cosine_image"),
        formula="mean cosine of an image and a caption that are no pair, of two captions, or of two images",
    ),
    _alignment(
        names=("[learned_]p_value",),
        formula="(1 + permutations with as high a mean cosine of pairs) / (1 + permutations), captions put to images "
        "anew within their batch",
        unit="probability",
        error="there is none",
        pairs="a p-value is of all pairs together",
        source=PHIPSON,
    ),
    _alignment(
        names=("[learned_]neighbour_p_value[_centred]",),
        formula="(1 + permutations with as many neighbour hits) / (1 + permutations), captions put to images anew "
        "within their batch",
        unit="probability",
        error="there is none",
        pairs="a p-value is of all pairs together",
        source=PHIPSON,
    ),
    _alignment(
        names=("[learned_]neighbour_hits[_centred]",),
        formula="Σ hits / Σ neighbours: how many of the text tokens nearest to each of an image's codes "
        "(`neighbours`, 5) occur in its caption; `_centred` takes the mean of their kind off the rows first",
        unit="fraction",
        direction="higher",
        error=RATIO,
    ),
    _alignment(
        names=("[learned_]subspace_overlap",),
        formula="Σ |P (x − x̄)|² / Σ |x − x̄|² of the image rows x, with P the projection on the fewest principal "
        "directions that hold half of the text rows' variance",
        unit="fraction",
        item="code that occurs",
        error=RATIO,
        pairs="its items are codes, and those of the task are pairs",
        least=1,
    ),
)

DEFINITIONS: tuple[Definition, ...] = (
    *LOSS,
    *TEXT_TO_IMAGE,
    *RECONSTRUCTION,
    *LANGUAGE,
    *FORGETTING,
    *COMPLETIONS,
    *ALIGNMENT,
)


def plain_names(definitions: Iterable[Definition] = DEFINITIONS) -> list[str]:
    """Return the names that a metric may have just so: without what is in brackets, and those with `<…>` left out."""
    names = (re.sub(r"\[[^]]*\]", "", name) for definition in definitions for name in definition.names)
    return list(dict.fromkeys(name for name in names if "<" not in name))
