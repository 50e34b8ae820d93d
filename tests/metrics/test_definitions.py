"""The table of definitions is held to the code: to the catalog, to what every task returns, and to the page.

And which metrics tables show first, and which next to others.
"""

import math
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from metric_items import value_of_items
from pydantic import TypeAdapter
from small_evaluations import HOW, differences, evaluations, lines_of, moved, recorded

from evalsvc.language.scoring import RESAMPLES
from evalsvc.metrics import fid, mmd, prdc, scores
from evalsvc.metrics import reconstruction as pixels
from evalsvc.metrics.contrastive import MAX_SCALE
from evalsvc.metrics.definitions import (
    ANY,
    DEFINITIONS,
    ERRORS,
    ITEMS,
    KINDS,
    OF_METRIC,
    Definition,
    Kind,
    find_definitions,
    main_metric,
    may_return,
    range_of,
    title_of,
)
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets, ImageMetric
from evalsvc.metrics.shown_metrics import MOST, Place, companion_name, default_headline, divide_rows, yardsticks
from evalsvc.metrics.value_interval import LIMITS, with_intervals
from evalsvc.spec import catalog
from evalsvc.spec.documents.fields import Direction
from evalsvc.spec.protocol import MetricValue
from evalsvc.tasks.alignment.spec import Alignment
from evalsvc.tasks.forgetting.rows import ABOVE_CHANCE
from evalsvc.tasks.forgetting.spec import Forgetting
from evalsvc.tasks.forgetting.work import FEW_SHOTS
from evalsvc.tasks.task import TaskResult

NOT_RETURNED = {
    "fid": "it needs 2,049 images",
    "fid_infinity": "it needs thousands of images",
    "fid64_infinity": "it needs hundreds of images",
    "fd_dinov2": "it needs 1,025 images",
    "fid_<category>": "it needs a folder per category",
    "inception_score": "it needs 1,000 images",
    "inception_score_adm": "it is on request and needs 1,000 images",
    "precision_k3": "it is on request",
    "recall_k3": "it is on request",
    "sfid": "it is on request and needs 2,024 images",
}
"""Definitions that the small results below do not use, and why. Those of sampled images are held to the catalog."""


def definition_of(kind: str, metric: str) -> Definition | None:
    """The first definition of a metric by its full name, such as `captions/text`."""
    name = metric.partition("/")[2]
    return next((one for one in DEFINITIONS if one.kind == kind and one.matches(name)), None)


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda one: f"{one.kind}-{one.names[0]}")
def test_a_definition_is_well_formed(definition: Definition) -> None:
    """A misspelt direction or range would be shown, and would decide on no interval.

    The first definition that matches a name counts, so an earlier entry with `<…>` must not hide a later one.
    """
    TypeAdapter(Definition).validate_python(vars(definition))
    assert "$" not in f"{definition.item} {definition.pairs}", "only other fields have common texts"
    for name in definition.names:
        for plain in (re.sub(r"[][]", "", name), re.sub(r"\[[^]]*\]", "", name)):
            assert definition_of(definition.kind, f"some/{plain}").names == definition.names
    assert set(ERRORS) <= {one.error for one in DEFINITIONS}, "the page explains those that several have in common"


def test_definitions_are_found_by_full_names_and_patterns() -> None:
    """What fits every name is found by its own only."""
    kinds = [definition.kind for definition in find_definitions("captions/image_mass")]
    assert kinds == ["loss", "language", "forgetting"]
    names = [definition.names for definition in find_definitions("*_unigram*")]
    assert ("image_unigram_by_place",) in names
    assert len(names) == 2
    assert find_definitions("gsm8k/rouge") == []
    assert [definition.names for definition in find_definitions("<metric>")] == [ANY]


@pytest.mark.parametrize("definition", [one for one in DEFINITIONS if one.companion_of], ids=lambda one: one.names[0])
def test_a_companion_is_of_a_metric_that_is_defined(definition: Definition) -> None:
    for name in definition.names:
        plain = re.sub(r"\[[^]]*\]", "", name)
        main = main_metric(f"some/{plain}", {f"some/{definition.main_name(plain)}"})
        assert main != f"some/{plain}"
        assert definition_of(definition.kind, main).companion_of is None
        assert main_metric(f"some/{plain}", set()) is None, "without the metric it stands alone"


def test_whether_a_task_may_return_a_metric() -> None:
    may = {"loss": ["text_within", "image_row_7"], "language": ["acc", "acc_norm_within", "rouge1"], "other": ["any"]}
    assert all(may_return(kind, name) for kind, names in may.items() for name in names)
    assert not any(may_return("language", name) for name in ("ac", "exact_mach"))
    assert not may_return("loss", "fid")


@pytest.mark.parametrize("name", catalog.COMPONENTS["metrics"])
def test_metrics_of_the_catalog(name: str) -> None:
    metric: ImageMetric = catalog.load("metrics", name)
    definition = definition_of("text_to_image", f"coco/{name}")
    described = definition.unit, definition.direction, definition.least, definition.estimator
    assert described == (metric.unit, metric.direction, metric.min_images, metric.estimator)
    random = np.random.default_rng(0)
    width = 1 if name.startswith("clip_s") else 6
    samples, real = (random.gamma(0.5, 1, (n, width)).astype(np.float32) for n in (60, 50))
    found = metric.estimate(FeatureSets(samples, Moments.of(real), real))
    assert (found.per_image is not None) == (definition.pairs == ITEMS)


G = fid.GROUPS
LATE = Forgetting.model_fields["icl_positions"].default


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("text_to_image", "kid", f"blocks of at most {mmd.BLOCK:,}"),
        ("text_to_image", "cmmd", f"{mmd.SCALE:g} · (mean"),
        ("text_to_image", "cmmd", f"exp(−|x − y|² / {2 * mmd.SIGMA**2:g})"),
        ("text_to_image", "precision", f"its {prdc.NEIGHBOURS}th nearest"),
        ("text_to_image", "density", f"over {prdc.NEIGHBOURS}, on average"),
        ("text_to_image", "recall", f"at most {prdc.BALLS:,} images a side"),
        ("text_to_image", "coverage", f"jackknife over {prdc.GROUPS} groups"),
        ("text_to_image", "fid_infinity", f"{G**2 // 2} θ₀ − {(G - 1) ** 2} θ₁ + {(G - 2) ** 2 // 2} θ₂"),
        ("text_to_image", "fid_infinity", f"at least −value / {fid.BELOW_ZERO:g}"),
        ("text_to_image", "inception_score_adm", f"over splits of {scores.SPLIT_SIZE:,} images"),
        ("text_to_image", "precision_k3", f"to its {prdc.ADM_NEIGHBOURS}rd nearest"),
        ("text_to_image", "inception_score", f"over {scores.SPLITS} splits"),
        ("reconstruction", "ssim", f"{pixels.WINDOW} × {pixels.WINDOW} pixels, σ = {pixels.SIGMA:g}"),
        ("language", "rouge", f"{RESAMPLES} bootstrap samples"),
        ("forgetting", "icl_loss", f"[{LATE[1]} and {LATE[0]}]"),
        ("forgetting", "arc_icl", {5: "five"}[FEW_SHOTS] + " fixed documents"),
        ("forgetting", "arc_retained", {2: "two"}[int(ABOVE_CHANCE)] + " of its standard errors"),
        ("alignment", "loss_fitted", f"[0, {MAX_SCALE:g}]"),
        ("alignment", "neighbour_hits", f"`neighbours`, {Alignment.model_fields['neighbours'].default}"),
    ],
)
def test_numbers_in_words_are_those_of_the_code(kind: Kind, name: str, words: str) -> None:
    definition = definition_of(kind, f"some/{name}")
    assert words in f"{definition.formula}; {definition.error}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], list[TaskResult]]:
    """The small evaluations of a kind, computed once."""
    return cache(lambda kind: evaluations(kind, tmp_path_factory.mktemp(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_task_returns_is_what_its_definitions_say(kind: Kind, small: Callable[[Kind], list[TaskResult]]) -> None:
    """Every metric has a definition that agrees and the value of its items, and every definition is of a metric."""
    used: dict[int, list[MetricValue]] = {}
    results = small(kind)
    measured = [(result, metric) for result in results for metric in with_intervals(result.metrics, kind, result.items)]
    for result, metric in measured:
        name, content = metric.name, metric.protocol.content
        definition = definition_of(content["task"], name)
        assert definition is not None, f"{name} has no definition"
        used.setdefault(id(definition), []).append(metric)
        if metric.items:
            value = value_of_items(metric.to_json(), result.items)
            assert metric.value == pytest.approx(value, rel=1e-5, abs=1e-6), name
        assert definition.unit in (metric.unit, OF_METRIC), name
        assert definition.direction in (metric.direction, OF_METRIC), name
        if definition.names != ANY:
            assert bool(metric.items) == (definition.pairs == ITEMS), name
        assert metric.grouped_by in (None, definition.grouped_by), name
        assert bool(metric.groups) <= bool(definition.group), name
        assert bool(metric.grouped_by) == (metric.groups is not None and definition.grouped_by != ""), name
        versions = [content[key] for key in ("estimator", "comparison") if key in content]
        assert " + ".join(versions) in definition.estimator.split(" or "), name
        assert metric.n >= definition.least, name
        low, high = metric.ends
        least, most = LIMITS[range_of(str(content["task"]), name.partition("/")[2], metric.unit)]
        inside = [least, low, metric.value, high, most]
        assert low is None or inside == sorted(inside), f"{name}: {inside}"
        assert least <= metric.value <= most or math.isnan(metric.value), f"{name} is {metric.value}"
        assert (metric.stderr is None) <= (metric.n < 2 or definition.error == "there is none"), name
    for definition in (one for one in DEFINITIONS if one.kind == kind and one.names[0] not in NOT_RETURNED):
        metrics = used.get(id(definition))
        assert metrics, f"nothing returned is a {definition.all_names}"
        if definition.group:
            assert any(metric.groups for metric in metrics), f"no {definition.all_names} has groups"


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_moves_with_its_version_only(kind: Kind, small: Callable[[Kind], list[TaskResult]]) -> None:
    """Errors of forgetting once went from 0 to .0046 under one protocol: a curve then had two kinds of error bars."""
    problems = differences(recorded(kind), lines_of(kind, small(kind)))
    assert not problems, "\n".join([*problems, HOW])


def test_a_number_that_moved_is_named_with_what_to_do() -> None:
    """A changed version is recorded without a word, and last digits are nothing."""
    lines = recorded("forgetting")
    place = next(place for place, line in enumerate(lines) if line["value"] == 0 < (line["stderr"] or 0))
    before = [{**line, "stderr": 0.0} if at == place else line for at, line in enumerate(lines)]
    [problem] = differences(before, lines)
    assert "raise the version of the estimator in the protocol" in problem
    assert list(moved([{**line, "protocol": "0" * 16} for line in before], lines)) == []
    assert differences([{**line, "value": line["value"] * (1 + 1e-7)} for line in lines], lines) == []


def test_every_task_has_its_turn() -> None:
    """By the order of the definitions alone, losses would take all places."""
    losses: dict[str, Direction] = {f"pairs/{name}": "lower" for name in ("image", "text", "total", "text_within")}
    others: dict[str, Direction] = {"digits/fid64": "lower", "cloze/acc": "higher", "pairs/image_mass": "none"}
    perplexities: dict[str, Direction] = {f"{name}_perplexity": "lower" for name in losses}
    found = default_headline(losses | others | perplexities)
    assert found[:3] == ["pairs/image", "digits/fid64", "cloze/acc"]
    assert len(found) == MOST
    assert not [name for name in found if name in perplexities or name == "pairs/image_mass"]
    # Imported values have names of any kind, and a direction only where somebody said so.
    assert default_headline({"train/lr": "none", "loss": "none"}) == ["loss", "train/lr"]
    assert default_headline({}) == []


LOSS, PERPLEXITY, UNIGRAM = (Place(f"pairs/text{end}", "raw", "p1") for end in ("", "_perplexity", "_unigram"))


def test_companions_have_the_row_of_their_metric() -> None:
    divided = divide_rows([PERPLEXITY, LOSS, UNIGRAM])
    assert (divided.shown, divided.companions) == ([1], {1: [0, 2]})
    named = divide_rows([PERPLEXITY, LOSS], named=["pairs/text_perplexity"])
    assert (named.shown, named.companions) == ([0, 1], {})
    assert divide_rows([PERPLEXITY]).shown == [0], "without its metric it has a row"
    assert divide_rows([LOSS, Place("other/text_perplexity", "raw", "p1")]).shown == [0, 1], "of another task"
    # A companion of another protocol or variant is not taken for one's own.
    other = Place("pairs/text", "raw", "p2"), Place("pairs/text_perplexity", "raw", "p2")
    assert divide_rows([LOSS, other[0], PERPLEXITY, other[1]]).companions == {0: [2], 1: [3]}
    shared = Place("pairs/text_unigram", "raw", "of the data")
    assert divide_rows([LOSS, other[0], shared]).companions == {0: [2], 1: [2]}
    assert divide_rows([LOSS, shared, Place("pairs/text_unigram", "raw", "of other data")]).shown == [0, 1, 2]
    assert divide_rows([LOSS, Place("pairs/text_perplexity", "ema", "p1")]).shown == [0, 1]


def test_the_cell() -> None:
    assert companion_name("pairs/image_unigram_by_place", "pairs/image") == "unigram by place"
    assert companion_name("wiki/word_perplexity", "wiki/bits_per_byte") == "word perplexity"
    assert yardsticks([("perplexity", 10.12345), ("unigram", "NaN")], 4.158883) == (
        "perplexity 10.12; unigram NaN; chance 4.159"
    )
    assert yardsticks([("perplexity", 12075.94)], 1e300) == "perplexity 12,076; chance 1e+300"
    assert yardsticks([], None) == ""


def test_a_headline_metric_has_a_title_in_words() -> None:
    """Titles are no part of what groups share by YAML's merge: another metric would inherit them."""
    titles = {
        "pairs/image": "Image loss",
        "text/text_within": "Text loss, softmax over its type",
        "digits/fid64": "Image distance (FID-64)",
        "arc_easy/acc,none": "Arc easy accuracy",
        "forgetting/cloze_retained": "Cloze ability left",
        "pairs/text_perplexity": None,
        "pairs/image_row_3": None,
        "lm_eval/other": None,
        "loss": None,
    }
    assert {metric: title_of(metric) for metric in titles} == titles
