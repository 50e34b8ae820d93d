"""Metrics and items of real answers: what `lm_eval.evaluate` makes of the same model, and what is added to it."""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from benchmark_files import KINDS, questions, write_benchmark
from lm_eval.api import metrics as lm_metrics
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import aggregate_subtask_metrics
from lm_eval.evaluator import evaluate
from loaded_benchmarks import load, load_one

from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import InvalidData, InvalidSuite
from evalsvc.language.benchmarks import Benchmark, Loaded
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.lm import Answer, Generation, OpenLM, from_row, to_row
from evalsvc.language.results import Results, flips, plain_mean, require_mean, results
from evalsvc.language.scoring import estimate
from evalsvc.metrics.distance import difference_of, distance
from evalsvc.metrics.item_numbers import item_numbers, linear_of
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.miniature import ROOT
from evalsvc.models.loading import load_model
from evalsvc.scoring import Score
from evalsvc.spec.layout import IdCounts, parse_layout, text_only
from evalsvc.spec.protocol import MetricValue

MEAN = {"aggregation": "mean", "higher_is_better": True}
TEXT = "An identifier is a name. It names an object."


class WithinText(OpenLM):
    """As if the table had no ids but text: what lm-eval makes of it is what results within text have to be."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(score.logprob_within, score.greedy_within) for score in self.score_requests(requests)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return [score.logprob_within for score in self.score_requests(requests)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [answer.text_within for answer in self.answers(requests) if isinstance(answer, Generation)]


@pytest.fixture(scope="module")
def lm() -> OpenLM:
    """The bundled run at step 20, where text and images compete."""
    torch.set_num_threads(1)
    model = load_model(ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_2.pt")
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).resolve(583)
    return OpenLM(model, TextEncoding(read_tokenizer(ROOT / "tokenizer.json"), layout, 132, end_of_text=0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmarks of every output type, and groups of them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    cloze = [json.loads(line) for line in (ROOT / "cloze.jsonl").read_text().splitlines()]
    several = [{**row, "gold": [row["gold"], (row["gold"] + 1) % 4]} for row in cloze[50:62]]

    def write(name: str, rows: Sequence[Mapping[str, Any]], *metrics: str | Mapping[str, Any], **changes: Any) -> None:
        listed = [metric if isinstance(metric, Mapping) else {"metric": metric, **MEAN} for metric in metrics]
        write_benchmark(folder, name, rows, **{"doc_to_text": "query", "metric_list": listed, **changes})

    lower = {"higher_is_better": False}
    brier = {"metric": "brier_score", "aggregation": "brier_score", **lower}
    correlation = {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}
    accuracies = ("acc", "acc_norm", "acc_bytes", "exact_match", "acc_mutual_info")
    write("cloze", cloze[:40], *accuracies, brier, correlation)
    for size in (3, 8):
        write(f"cloze_{size}", cloze[40 : 40 + size], "acc", "acc_norm")
    write("several", several, "acc")
    write("schema", cloze[62:74], "acc", **{**KINDS["schema"], "doc_to_target": "is a name"})
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", **lower}
    write("word", cloze[:20], perplexity, "acc", **{**KINDS["word"], "doc_to_target": " {{choices[gold]}}"})
    weighted = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    write("texts", cloze[:8], *weighted, **{**KINDS["text"], "doc_to_target": "{{query}}", "doc_to_text": ""})
    first, word = {"function": "take_first"}, {"function": "regex", "regex_pattern": r"(\w+)"}
    filters = [{"name": "first-word", "filter": [word, first]}, {"name": "all", "filter": [first]}]
    options = {"until": ["\n\n"], "max_gen_toks": 12}
    matches = ({"metric": "exact_match", "ignore_case": True, **MEAN}, {"metric": "bypass"})
    write("free", cloze[:6], *matches, **KINDS["free"], generation_kwargs=options, filter_list=filters)
    for name, by_size in (("sized", True), ("plain", False)):
        aggregate = [{"metric": metric, "weight_by_size": by_size} for metric in ("acc", "acc_norm")]
        group = {"group": name, "task": ["cloze_3", "cloze_8"], "aggregate_metric_list": aggregate}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))
    (folder / "loose.yaml").write_text(yaml.safe_dump({"group": "loose", "task": ["several", "word"]}))
    return folder


def answered(lm: OpenLM, loaded: Loaded) -> Results:
    asked = [instance for benchmark in loaded.benchmarks for instance in benchmark.instances]
    # There and back, as answers travel from the worker to the merge.
    answers = [[from_row(json.loads(json.dumps(to_row(answer))))] for answer in lm.answers(asked)]
    return results(loaded, answers, IdCounts.of(lm.encoding.layout), {"dtype": "float32"})


def by_name(metrics: Sequence[MetricValue]) -> dict[str, MetricValue]:
    assert len({metric.name for metric in metrics}) == len(metrics)
    return {metric.name: metric for metric in metrics}


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("suffix", ["", "_within"])
@pytest.mark.parametrize(
    ("names", "closed_form"),
    [
        (("cloze_3", "cloze_8", "several", "schema"), True),
        (("sized",), True),
        (("plain",), True),
        (("cloze", "word", "texts", "free"), False),
    ],
)
def test_values_are_lm_evals(lm: OpenLM, folder: Path, names: tuple[str, ...], closed_form: bool, suffix: str) -> None:
    """Filters, process_results and aggregation are lm-eval's own; also its standard errors where they are formulas."""
    loaded = load(folder, *names)
    model = lm if not suffix else WithinText(lm.model, lm.encoding)
    tasks = {benchmark.name: benchmark.task for benchmark in loaded.benchmarks}
    groups = {group.name: group for group in loaded.groups}
    iterations = 2 if closed_form else 0
    document = evaluate(model, {"tasks": tasks, "groups": groups}, bootstrap_iters=iterations, log_samples=True)
    found, compared = by_name(answered(lm, loaded).metrics), 0
    for name, row in document["results"].items():
        for key, value in row.items():
            metric, _, filtered = key.partition(",")
            if filtered and not metric.endswith("_stderr") and metric != "bypass":
                ours = found[f"{name}/{metric}{suffix}" + ("" if filtered == "none" else f",{filtered}")]
                assert ours.value == pytest.approx(value, rel=1e-6), ours.name
                if closed_form:
                    assert ours.stderr == pytest.approx(row[f"{metric}_stderr,{filtered}"], rel=1e-9), ours.name
                compared += 1
    assert compared


def test_every_metric_that_is_made_of_items_can_be_made_of_them(lm: OpenLM, folder: Path) -> None:
    """The gate and forgetting compare by the items: a key that is missing or means something else shows here."""
    found = answered(lm, load(folder, "cloze", "several", "schema", "word", "texts", "free"))
    json.dumps(found.items, allow_nan=False)
    made = [metric for metric in found.metrics if metric.items]
    for metric in made:
        sums, *weights = item_numbers(found.items, metric.name, metric.items).columns
        ratio = ratio_of_sums(sums, weights[0] if weights else [1] * len(sums))
        assert ratio is not None, metric.name
        again = perplexity(ratio) if metric.unit == "perplexity" else ratio
        assert (again.value, again.n) == pytest.approx((metric.value, metric.n)), metric.name
        assert again.stderr == pytest.approx(metric.stderr, rel=1e-6), metric.name
    assert {"word/perplexity", "texts/word_perplexity_within", "cloze/brier_score"} < {metric.name for metric in made}
    unmade = {metric.name.removesuffix("_within") for metric in found.metrics} - {metric.name for metric in made}
    assert {name for name in unmade if f"{name}_within" not in {metric.name for metric in made}} == {"cloze/mcc"}
    bypass = [f"free/bypass{suffix},{name}" for suffix in ("", "_within") for name in ("first-word", "all")]
    assert found.notes.metrics_left_out == bypass
    assert found.notes.documents == len(found.items) == 40 + 12 + 12 + 20 + 8 + 6


@pytest.mark.usefixtures("many_cases")
def test_what_is_added_is_what_it_says(lm: OpenLM, folder: Path) -> None:
    loaded = load(folder, "cloze", "several", "word")
    found = answered(lm, loaded)
    metrics = by_name(found.metrics)
    [cloze, several, word] = loaded.benchmarks
    for benchmark, name in ((cloze, "cloze"), (several, "several")):
        correct, bits, size, mass, tokens = [], 0.0, 0, 0.0, 0
        for document in benchmark.documents:
            asked = benchmark.instances[document.requests]
            answers = [answer for answer in lm.answers(asked) if isinstance(answer, Answer)]
            gold = asked[0].doc["gold"] if isinstance(asked[0].doc["gold"], list) else [asked[0].doc["gold"]]
            means = [answer.score.logprob / answer.tokens for answer in answers[:4]]
            correct.append(means.index(max(means)) in gold)
            bits -= answers[gold[0]].score.logprob / math.log(2)
            size += len(asked[gold[0]].arguments[1].encode())
            mass += sum(answer.score.image_mass for answer in answers)
            tokens += sum(answer.tokens for answer in answers)
        assert metrics[f"{name}/acc_token"].value == statistics.fmean(correct)
        assert metrics[f"{name}/bits_per_byte"].value == pytest.approx(bits / size)
        assert metrics[f"{name}/image_mass"].value == pytest.approx(mass / tokens)
    assert metrics["cloze/acc"].baseline == metrics["cloze/acc_token_within"].baseline == 0.25
    assert metrics["several/acc"].baseline == 0.5
    assert metrics["cloze/image_mass"].baseline == 64 / 583
    assert metrics["cloze/bits_per_byte"].direction == "lower"
    assert metrics["cloze/exact_match"].baseline is None, "a greedy answer has no chance level"
    # Uniform over the ids: as many bits a token as it takes to name one.
    [first] = [answer for answer in lm.answers(word.instances[:1]) if isinstance(answer, Answer)]
    item = next(item for item in found.items if item["benchmark"] == "word")
    assert item["bits_within"] == pytest.approx(-first.score.logprob_within / math.log(2))
    tokens = sum(answer.tokens for answer in lm.answers(word.instances) if isinstance(answer, Answer))
    size = sum(item["bytes"] for item in found.items if item["benchmark"] == "word")
    assert metrics["word/bits_per_byte_within"].baseline == pytest.approx(tokens * 9 / size)


def test_a_table_of_nothing_but_text_has_no_second_scores(lm: OpenLM, folder: Path) -> None:
    encoding = TextEncoding(lm.encoding.tokenizer, text_only(583), 132)
    found = answered(OpenLM(lm.model, encoding), load(folder, "cloze_3", "free"))
    names = {metric.name.partition("/")[2] for metric in found.metrics}
    assert names == {"acc", "acc_norm", "acc_token", "bits_per_byte", "exact_match,first-word", "exact_match,all"}
    assert [len(score) for score in found.items[0]["scores"]] == [2] * 4
    assert set(found.items[-1]) == {"benchmark", "index", "text", "exact_match,first-word", "exact_match,all"}


def test_protocols_tell_what_moves_a_number(lm: OpenLM, folder: Path) -> None:
    loaded = load(folder, "sized")
    metrics = by_name(answered(lm, loaded).metrics)
    member, group = metrics["cloze_3/acc"].protocol.content, metrics["sized/acc"].protocol.content
    assert member["benchmark"] == "cloze_3"
    assert member["digest"] == loaded.benchmarks[0].digest
    assert (member["limit"], member["samples"], member["dtype"]) == (None, None, "float32")
    assert group["members"] == {name: metrics[f"{name}/acc"].protocol.id for name in ("cloze_3", "cloze_8")}
    assert metrics["sized/acc"].n == 11
    cloze = by_name(answered(lm, load(folder, "cloze")).metrics)
    assert cloze["cloze/acc"].protocol.content["estimator"] == "lm-eval/1"
    assert cloze["cloze/mcc"].protocol.content == {**cloze["cloze/acc"].protocol.content, "estimator": "lm-eval/2"}
    assert metrics["sized/acc"].baseline == 0.25


@pytest.mark.parametrize("sample", [None, 3, 5])
@pytest.mark.parametrize("name", ["sized", "plain"])
def test_a_group_is_made_of_its_documents(lm: OpenLM, folder: Path, name: str, sample: int | None) -> None:
    """Their mean is lm-eval's value and their spread the error of a weighted mean, so that checkpoints pair.

    Samples weigh what they were drawn from: equally weighted, the small member would count more than in the whole.
    """
    loaded = load(folder, name, sample=sample)
    found = answered(lm, loaded)
    metrics = by_name(found.metrics)
    for metric in ("acc", "acc_norm", "acc_within"):
        whole, members = metrics[f"{name}/{metric}"], [metrics[f"cloze_{size}/{metric}"] for size in (3, 8)]
        assert [member.drawn_from for member in members] == [None, 8 if sample else None], "three of three is no sample"
        assert (whole.baseline, sum(member.n for member in members)) == (0.25, whole.n)
        assert whole.items == (whole.name,)
        [shares] = item_numbers(found.items, whole.name, whole.items).columns
        assert len(shares) == whole.n
        assert statistics.fmean(shares) == pytest.approx(whole.value, abs=1e-6)
        weights = [3 / 11, 8 / 11] if name == "sized" else [0.5, 0.5]
        assert whole.value == pytest.approx(sum(w * member.value for w, member in zip(weights, members, strict=True)))
        errors = [weight * (member.stderr or 0) for weight, member in zip(weights, members, strict=True)]
        assert sample is None or whole.stderr == pytest.approx(math.hypot(*errors))
        spread = [0.0 if linear is None else linear.stderr for linear in (linear_of(m, found.items) for m in members)]
        expected = math.hypot(*(weight * each for weight, each in zip(weights, spread, strict=True)))
        assert standard_error(shares) == pytest.approx(expected, rel=1e-5)


def test_a_group_that_is_no_sum_has_no_shares(lm: OpenLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval says what a group's value is; shares of another number would pair what is not printed."""
    total = aggregate_subtask_metrics
    monkeypatch.setattr("lm_eval.api.metrics.aggregate_subtask_metrics", lambda *given: total(*given) ** 2)
    loaded = load(folder, "plain")
    found = answered(lm, loaded)
    group = by_name(found.metrics)["plain/acc"]
    assert (group.items, "plain/acc" in found.items[0]) == ((), False)
    [mean, _] = plain_mean("text", ["acc"], loaded, found)
    assert mean.items == (), "nor has what it is a member of"


def test_the_mean_pairs_two_checkpoints(lm: OpenLM, folder: Path) -> None:
    """Its difference is the mean of the benchmarks' own paired differences, also over perplexities and samples."""
    loaded = load(folder, "plain", "cloze", "word", sample=7)
    first, second = answered(lm, loaded), answered(WithinText(lm.model, lm.encoding), loaded)
    for results_ in (first, second):
        results_.metrics.extend(plain_mean("text", ["acc"], loaded, results_))
    one, other = (by_name(each.metrics) for each in (first, second))
    # The second scores are those within text ids, which is another model to the first.
    name, within = one["text/mean"], other["text/mean_within"]
    assert (name.items, within.items) == (("text/mean",), ("text/mean_within",))
    a, b = (item_numbers(first.items, metric.name, metric.items) for metric in (name, within))
    found = distance(*(Ratio(metric.value, metric.stderr, metric.n) for metric in (name, within)), (a, b))
    assert found.basis == "paired"
    parts = []
    for member in ("plain", "cloze", "word"):
        keys = [(f"{member}/{key}",) if member == "plain" else (key,) for key in ("acc", "acc_within")]
        sides = [item_numbers(first.items, f"{member}/acc", key) for key in keys]
        drawn_from = one[f"{member}/acc"].drawn_from
        paired = difference_of(*sides, drawn_from=drawn_from)
        assert paired is not None
        changed = sides[0].columns != sides[1].columns
        parts.append((paired.stderr or 0.0) if changed else 0.0)
    assert found.stderr == pytest.approx(math.hypot(*parts) / 3, rel=1e-4)


def test_the_mean_counts_a_group_once_and_takes_the_first_metric_that_is_there(lm: OpenLM, folder: Path) -> None:
    loaded = load(folder, "plain", "loose", "free")
    found = answered(lm, loaded)
    wanted = ["acc_token", "acc", "exact_match,all"]
    require_mean(wanted, loaded)
    overall, within = plain_mean("text", wanted, loaded, found)
    metrics = by_name(found.metrics)
    parts = [metrics[name] for name in ("plain/acc", "several/acc_token", "word/acc", "free/exact_match,all")]
    assert (overall.name, within.name) == ("text/mean", "text/mean_within")
    assert overall.value == pytest.approx(statistics.fmean(part.value for part in parts))
    assert overall.stderr == pytest.approx(math.hypot(*(part.stderr or 0 for part in parts)) / 4)
    assert overall.baseline == pytest.approx((0.25 + 0.5 + 0 + 0) / 4)
    assert overall.protocol.content["mean"] == {part.name: part.protocol.id for part in parts}
    assert "free/exact_match_within,all" in within.protocol.content["mean"]
    with pytest.raises(InvalidSuite, match=r"^`mean` names acc; 'free' has none of these, but exact_match,all, exact_"):
        require_mean(["acc"], loaded)


def test_code_of_a_benchmark_that_fails_on_an_answer_is_named(lm: OpenLM, tmp_path: Path) -> None:
    """How many answers a filter wants is found out by an answer only."""
    changes: Mapping[str, Any] = {
        **KINDS["free"],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2},
        "metric_list": [{"metric": "exact_match", **MEAN}],
        "filter_list": [{"name": "n", "filter": [{"function": "take_first_k", "k": 3}, {"function": "take_first"}]}],
    }
    write_benchmark(tmp_path, "broken", questions(2), **changes)
    with pytest.raises(InvalidData, match=r"^benchmark 'broken', an answer does not fit what .* \(AssertionError\)$"):
        answered(lm, load(tmp_path, "broken"))


def test_messages_keep_every_bit() -> None:
    answers: list[Answer | Generation] = [
        Answer(Score(-0.1 - 0.2, True, -1e-300, False, 0.7), 3, True),
        Generation("a\0b", "", False),
    ]
    for answer in answers:
        assert from_row(json.loads(json.dumps(to_row(answer)))) == answer


def estimated(aggregation: Any, values: Sequence[Any]) -> Ratio:
    found = estimate(aggregation, values)
    assert found is not None
    return found.ratio


def test_estimates_survive_hopeless_models() -> None:
    """exp of 1,000 nats overflows, which lm-eval dies of; resamples without a class must not warn or end it."""
    assert estimated(lm_metrics.perplexity, [-1000.0, -2000.0]).value == math.inf
    assert estimated(lm_metrics.matthews_corrcoef, [(0, 0)] * 18 + [(1, 1), (1, 0)]).stderr is not None
    ragged = estimated(lm_metrics.nanmean, [1.0, math.nan, 0.0])
    assert (ragged.value, ragged.n) == (0.5, 2)
    assert estimate(lm_metrics.nanmean, [math.nan]) is None
    assert estimate(lambda values: {"a": 1}, [1.0]) is None


def test_errors_without_a_formula_are_those_of_a_bootstrap() -> None:
    chance = random.Random(1)
    losses = [chance.gauss(-2, 0.5) for _ in range(300)]
    for aggregation in (lm_metrics.median, lm_metrics.perplexity):
        resampled = [aggregation(chance.choices(losses, k=300)) for _ in range(1000)]
        assert estimated(aggregation, losses).stderr == pytest.approx(statistics.stdev(resampled), rel=0.15)
    assert estimate(lm_metrics.median, losses) == estimate(lm_metrics.median, losses)
    # Of 8 documents, the interval of an F1 of .75 covered it in .88 of samples, and the error was 0 in .10.
    answers = [(0, 0), (1, 1)] * 10
    for few in (answers[:8], answers[:19], answers):
        f1 = estimated(lm_metrics.f1_score, few)
        assert (f1.value, f1.stderr) == (1.0, None), "too few, or resamples that never move the value"
    assert (estimated(lm_metrics.f1_score, [*answers[:19], (1, 0)]).stderr or 0) > 0


def test_all_answers_of_a_question_are_one_group() -> None:
    """Its error was that of 180 questions, but its interval and its printed n those of 900 independent answers."""
    answers = [
        (question % 3 > 0 or answer > 0, {"idx": {"paragraph": question // 9, "question": question}, "label": 1})
        for question in range(180)
        for answer in range(5)
    ]
    ratio = estimated(lm_metrics.acc_all, answers)
    assert ratio.value == pytest.approx(2 / 3)
    assert (ratio.n, ratio.groups, ratio.independent) == (900, 180, 180)
    assert ratio.stderr == pytest.approx(lm_metrics.acc_all_stderr(answers))
    all_right = [(True, document) for _, document in answers]
    assert estimated(lm_metrics.acc_all, all_right).stderr, "the next question may be wrong"


def flipping(folder: Path, **changes: Any) -> Benchmark:
    write_benchmark(folder, "a", questions(6), **{"generation_kwargs": None, **changes})
    return load_one(folder, "a", num_fewshot=changes.get("num_fewshot"))


def item(index: int, acc: float, within: float | None = None, **more: Any) -> dict[str, Any]:
    found = {"benchmark": "a", "index": index, "acc": acc, **more}
    return found if within is None else {**found, "acc_within": within}


def scores(chosen: int, within: int | None = None, options: int = 3) -> list[list[float]]:
    """Log-probabilities by which these options are chosen."""
    rows: list[list[float]] = [[-float(place != chosen), 0] for place in range(options)]
    return rows if within is None else [[*row, -float(place != within), 0] for place, row in enumerate(rows)]


def test_a_flip_of_a_multiple_choice(tmp_path: Path) -> None:
    """Question 1 has the options 1, 2 and 3 and the second is right; no solved example is part of the question."""
    benchmark = flipping(tmp_path, num_fewshot=2, fewshot_split="test")
    base = [item(n, 1.0, 1.0, scores=scores(n % 3, n % 3)) for n in range(6)]
    own = [*base[:1], item(1, 0.0, 1.0, scores=scores(2, 1)), *base[2:]]
    assert [flip.model_dump() for flip in flips(benchmark, "acc", base, own)] == [
        {
            "index": 1,
            "flip": "lost",
            "flip_within": None,
            "question": "Question: what is 1?\nAnswer:",
            "options": ["1", "2", "3"],
            "right": ["2"],
            "base": "2",
            "checkpoint": "3",
            "base_within": "2",
            "checkpoint_within": "2",
        }
    ]
    assert [flip.flip for flip in flips(benchmark, "acc", own, base)] == ["gained"]
    within = [*base[:4], item(4, 1.0, 0.0, scores=scores(1, 0)), *base[5:]]
    assert [(flip.flip, flip.flip_within) for flip in flips(benchmark, "acc", base, within)] == [(None, "lost")]
    assert not list(flips(benchmark, "acc", base, [])), "what one side lacks has not flipped"


WRONG = "other words (the right ones have probability 0.001)"


BASE = item(0, 1.0, scores=scores(0))


@pytest.mark.parametrize(
    ("changes", "base", "own", "expected"),
    [
        # of equal options the first, as lm-eval decides it; else the page shows an answer that was not counted
        ({}, BASE, item(0, 0.0, scores=[[-2, 0], [-1, 0], [-1, 0]]), ("base", "0", "checkpoint_within", "1")),
        # a base that is all text
        ({}, BASE, item(0, 0.0, 1.0, scores=scores(1, 0)), ("flip", "lost", "flip_within", None, "base_within", "0")),
        # Winograd's schemas: the options are what goes before, and the question is how it goes on
        (
            KINDS["schema"],
            item(1, 1.0, scores=scores(1)),
            item(1, 0.0, scores=scores(0)),
            ("question", "what is 1?", "right", ["2"], "base", "2", "checkpoint", "1"),
        ),
        # continuations: of a wrong one nothing is known but that it is another
        *(
            (
                {**KINDS["word"], "doc_to_target": " {{choices[gold]}}"},
                item(1, 0.5, scores=[[-1, 0]]),
                item(1, float(greedy), scores=[[logprob, greedy]]),
                ("right", ["2"], "checkpoint", answer, "options", None),
            )
            for logprob, greedy, answer in ((-0.1, 1, "2"), (-6.9, 0, WRONG))
        ),
        (
            KINDS["free"],
            item(2, 1.0, 1.0, text=[" 4\n"], text_within=["4"]),
            item(2, 0.0, 0.0, text=["‹image 3›"], text_within=["five"]),
            ("right", ["4"], "base", "4", "checkpoint", "‹image 3›", "checkpoint_within", "five"),
        ),
    ],
)
def test_a_flip_in_words(
    tmp_path: Path, changes: dict[str, Any], base: dict[str, Any], own: dict[str, Any], expected: Sequence[Any]
) -> None:
    [flip] = flips(flipping(tmp_path, **changes), "acc", [base], [own])
    for field, value in zip(expected[::2], expected[1::2], strict=True):
        assert getattr(flip, field) == value


def test_half_a_character_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset with a lone surrogate would have cost the whole task's numbers."""
    monkeypatch.setattr("evalsvc.language.results.question_text", lambda *_: "what is \ud83d?")
    [flip] = flips(flipping(tmp_path), "acc", [BASE], [item(0, 0.0, scores=scores(1))])
    assert flip.question == "what is ??"
