"""Text of docs/reference/metrics.md: the definitions of all metrics, and how their numbers are compared."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from textwrap import fill

from evalsvc.cli.tasks import facts
from evalsvc.metrics.definitions import DEFINITIONS, ERRORS, Definition, Kind
from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS

WIDTH = 120
"""Columns of the page's paragraphs. Formulas are not wrapped: a line that begins with a plus would be a list."""

ABOUT: Mapping[Kind, str] = {
    "loss": (
        "Metrics are called `<task>/text`, `<task>/image` and so on, by the name that the suite gives the task. An "
        "item is a sequence. Sequences that depend on each other are one group, and the error and the comparison of "
        "two checkpoints count groups. Two checkpoints that read the same data are compared sequence by sequence; a "
        "loss and its perplexity are compared over the same sequences and come to the same verdict."
    ),
    "text_to_image": (
        "Metrics are called `<task>/fid` and so on. The task `images` has the same metrics, of images that another "
        "program made, which count as sampled below. An item is a sampled image. Errors are over sampled images; the "
        "real images are treated as fixed, so an error does not cover another choice of real images. Two checkpoints "
        "draw from the same prompts with the same noise, and are compared image by image where the value is a sum over "
        "sampled images to first order. With `extractor: torch-fidelity` or `clean-fid`, that program computes `fid`, "
        "`fid64` and `kid`, and torch-fidelity also `precision` and `recall` (of 3 neighbours); the protocol names the "
        "program and its release, and standard errors stay evalsvc's."
    ),
    "reconstruction": (
        "Metrics are called `<task>/psnr` and so on. An item is an image, on its way through the image tokenizer "
        "and back. The checkpoint is not used."
    ),
    "language": (
        "Metrics are called `<benchmark>/acc` and so on, also those that the task `forgetting` returns for the "
        "checkpoint itself. An item is a document of the benchmark: a question or a text. `_within` is the same "
        "with all probabilities over text ids only. A filter of lm-eval stands behind a comma: "
        "`exact_match,strict-match`. A group of benchmarks has the mean of its members' metrics under the same "
        "names, weighted as lm-eval's YAML file says, and its documents' shares of the mean as items. A benchmark's "
        "`sample` is drawn without replacement: the errors of n documents of N have the factor √(1 − n / N). "
        "Questions about one passage count as independent, because lm-eval's data do not say which belong together."
    ),
    "forgetting": (
        "Metrics are called `<task>/kl`, `<task>/arc_easy_lost` and so on. They compare the checkpoint with the "
        "run's base on the same items: documents of benchmarks, or texts of a file. `_within` is the same with all "
        "probabilities over text ids only. Chance is the accuracy of a model without knowledge, from a table with "
        "a version. Differences from the base are items' differences, so that two checkpoints of one base are "
        "compared item by item."
    ),
    "completions": (
        "Metrics are called `<task>/image_share` and so on. `greedy_` metrics are of the greedy completions, "
        "`seeded_` metrics of the drawn completions. Completions of one prompt depend on each other, so that errors "
        f"are over prompts; below {MIN_ITEMS} prompts there are numbers, but no intervals and no verdicts."
    ),
    "alignment": (
        "Metrics are called `<task>/loss_fitted` and so on. A caption is the mean of its tokens' rows, an image that "
        "of its codes' rows, both of length one. An item is a pair of an image and a caption, one per image; the "
        "pairs of its batch are the candidates."
    ),
}
"""Text that is common to the metrics of each kind of task."""

INTRODUCTION = f"""\
# Metrics

Every metric that the tasks return. `evalsvc metrics captions/text` shows one metric.

## How sure a number is

A value has a standard error and `n`, the number of items behind the value. Items that depend on each other, such as
the captions of one image, are one group, and the error counts groups (`groups`, in every result).

An interval of {100 * LEVEL:g} % is stored with every value that rests on at least {MIN_ITEMS} independent items or
groups, which are not all equal. With fewer there is a value and no interval, and a comparison has a verdict only from
an exact test. Intervals are Student's, with one degree of freedom less than there are independent items. In a loss, a
few long texts may have most of the weight; then the number of items is replaced by their effective number,
(Σ w)² / Σ w² (L. Kish, Survey Sampling, 1965). Skewed items move a mean to one side more often than to the other, and
the interval reaches farther on that side (P. Hall, JRSS B 54, 1992). Another interval is named with the metric. The
interval of a perplexity runs from exp(low) to exp(high), where low and high are the ends of the loss's interval.

Two checkpoints are compared over the items that both have. The error of the difference is that of the items'
differences, which is far below the error that both values' standard errors suggest. Items that only one side has are
left out and counted. For items that are right or wrong, the verdict follows McNemar's exact test, and the interval is
that of the score test (T. Tango, Statistics in Medicine 17, 1998). Where all items differ by the same number, the
verdict follows the sign test. Where a metric is not computed from the task's items, the error of the difference comes
from the standard errors of both values (Welch), and tables say `unpaired`.

## How standard errors are found"""


def page() -> str:
    """Return the text of docs/reference/metrics.md."""
    errors = "\n\n".join(f"### {name.capitalize()}\n\n{_sentence(text)}" for name, text in ERRORS.items())
    parts = [*map(_filled, INTRODUCTION.split("\n\n")), errors]
    for kind, members in groupby(DEFINITIONS, lambda definition: definition.kind):
        parts += [f"## Task `{kind}`", _filled(ABOUT[kind]), *map(_section, members)]
    return "\n\n".join(parts) + "\n"


def _section(definition: Definition) -> str:
    heading = "### " + ", ".join(f"`{name}`" for name in definition.names)
    lines = "\n".join(f"- {label}: {_linked(label, text)}" for label, text in facts(definition))
    return f"{heading}\n\n{_sentence(definition.formula)}\n\n{lines}"


def _linked(label: str, text: str) -> str:
    if text in ERRORS:
        return f"[{text}](#{text.replace(' ', '-')})"
    return f"`{text}`" if label == "estimator" else text


def _filled(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _sentence(text: str) -> str:
    start = text[:1].upper() if text[:1].isalpha() and text[1:2].isalpha() else text[:1]
    return f"{start}{text[1:]}."
