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
from benchmark_files import questions, write_benchmark
from lm_eval.api import metrics as lm_metrics
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import aggregate_subtask_metrics
from lm_eval.evaluator import evaluate

from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import InvalidData, InvalidSuite
from evalsvc.language.benchmarks import Loaded, LoadOptions, load_benchmarks
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.lm import Answer, Generation, OpenLM, from_row, to_row
from evalsvc.language.results import Results, plain_mean, require_mean, results
from evalsvc.language.scoring import estimate
from evalsvc.metrics.distance import difference_of, distance
from evalsvc.metrics.item_numbers import item_numbers, linear_of
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.miniature import ROOT
from evalsvc.models.loading import load_model
from evalsvc.scoring import Score
from evalsvc.spec.benchmark import BenchmarkSpec
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
    choice = {"doc_to_text": "query"}
    metrics = [
        {"metric": "acc", **MEAN},
        {"metric": "acc_norm", **MEAN},
        {"metric": "acc_bytes", **MEAN},
        {"metric": "exact_match", **MEAN},
        {"metric": "acc_mutual_info", **MEAN},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
    ]
    write_benchmark(folder, "cloze", cloze[:40], **choice, metric_list=metrics)
    for size in (3, 8):
        pair = [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}]
        write_benchmark(folder, f"cloze_{size}", cloze[40 : 40 + size], **choice, metric_list=pair)
    several = [{**row, "gold": [row["gold"], (row["gold"] + 1) % 4]} for row in cloze[50:62]]
    write_benchmark(folder, "several", several, **choice)
    schema = {"doc_to_text": "gold", "doc_to_choice": "choices", "doc_to_target": "is a name"}
    write_benchmark(folder, "schema", cloze[62:74], **schema)
    word = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": " {{choices[gold]}}"}
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    write_benchmark(folder, "word", cloze[:20], **choice, **word, metric_list=[perplexity, {"metric": "acc", **MEAN}])
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_target": "{{query}}"}
    weighted = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    write_benchmark(folder, "texts", cloze[:8], **{**choice, **rolling, "doc_to_text": ""}, metric_list=weighted)
    take_first = {"function": "take_first"}
    free = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match", "ignore_case": True, **MEAN}, {"metric": "bypass"}],
        "filter_list": [
            {"name": "first-word", "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, take_first]},
            {"name": "all", "filter": [take_first]},
        ],
    }
    write_benchmark(folder, "free", cloze[:6], **choice, **free)
    for name, by_size in (("sized", True), ("plain", False)):
        aggregate = [{"metric": metric, "weight_by_size": by_size} for metric in ("acc", "acc_norm")]
        group = {"group": name, "task": ["cloze_3", "cloze_8"], "aggregate_metric_list": aggregate}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))
    (folder / "loose.yaml").write_text(yaml.safe_dump({"group": "loose", "task": ["several", "word"]}))
    return folder


def load(folder: Path, *names: str, sample: int | None = None) -> Loaded:
    options = LoadOptions(include_path=(folder,), sample=sample)
    return load_benchmarks([BenchmarkSpec(name=name) for name in names], options)


def answered(lm: OpenLM, loaded: Loaded) -> Results:
    asked = [instance for benchmark in loaded.benchmarks for instance in benchmark.instances]
    # There and back, as answers travel from the worker to the merge.
    answers = [[from_row(json.loads(json.dumps(to_row(answer))))] for answer in lm.answers(asked)]
    return results(loaded, answers, IdCounts.of(lm.encoding.layout), {"dtype": "float32"})


def by_name(metrics: Sequence[MetricValue]) -> dict[str, MetricValue]:
    assert len({metric.name for metric in metrics}) == len(metrics)
    return {metric.name: metric for metric in metrics}


def evaluated(lm: OpenLM, loaded: Loaded, suffix: str, bootstrap_iters: int) -> dict[str, tuple[float, Any]]:
    """Value and standard error of every metric of `lm_eval.evaluate`, by our names."""
    tasks = {benchmark.name: benchmark.task for benchmark in loaded.benchmarks}
    groups = {group.name: group for group in loaded.groups}
    document = evaluate(lm, {"tasks": tasks, "groups": groups}, bootstrap_iters=bootstrap_iters, log_samples=True)
    found = {}
    for name, row in document["results"].items():
        for key, value in row.items():
            metric, _, filtered = key.partition(",")
            if filtered and not metric.endswith("_stderr"):
                ours = f"{name}/{metric}{suffix}" + ("" if filtered == "none" else f",{filtered}")
                found[ours] = (value, row[f"{metric}_stderr,{filtered}"])
    return found


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
def test_values_are_those_of_lm_eval(
    lm: OpenLM, folder: Path, names: tuple[str, ...], closed_form: bool, suffix: str
) -> None:
    """Filters, process_results and aggregation are lm-eval's own; also its standard errors where they are formulas."""
    loaded = load(folder, *names)
    model = lm if not suffix else WithinText(lm.model, lm.encoding)
    expected = evaluated(model, loaded, suffix, 2 if closed_form else 0)
    found = by_name(answered(lm, loaded).metrics)
    expected = {name: value for name, value in expected.items() if "bypass" not in name}
    assert expected
    for name, (value, stderr) in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-6), name
        if closed_form:
            assert found[name].stderr == pytest.approx(stderr, rel=1e-9), name


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


def test_samples_of_a_group_weigh_what_they_were_drawn_from(lm: OpenLM, folder: Path) -> None:
    """Three questions of three and of eight: equally weighted, the small member would count more than in the whole."""
    metrics = by_name(answered(lm, load(folder, "sized", sample=3)).metrics)
    small, large, both = (metrics[f"{name}/acc"] for name in ("cloze_3", "cloze_8", "sized"))
    assert (small.n, large.n, both.n) == (3, 3, 6)
    assert (small.drawn_from, large.drawn_from) == (None, 8), "three of three is no sample"
    assert both.value == pytest.approx((3 * small.value + 8 * large.value) / 11)
    assert both.stderr == pytest.approx(math.hypot(3 * (small.stderr or 0), 8 * (large.stderr or 0)) / 11)
    assert both.baseline == 0.25
    plain = by_name(answered(lm, load(folder, "plain", sample=3)).metrics)["plain/acc"]
    assert plain.value == pytest.approx((small.value + large.value) / 2)
    assert plain.stderr == pytest.approx(math.hypot(small.stderr or 0, large.stderr or 0) / 2)


@pytest.mark.parametrize("sample", [None, 3, 5])
@pytest.mark.parametrize("name", ["sized", "plain"])
def test_a_group_is_made_of_the_shares_of_its_documents(
    lm: OpenLM, folder: Path, name: str, sample: int | None
) -> None:
    """Their mean is lm-eval's value and their spread the error of a weighted mean, so that checkpoints pair."""
    loaded = load(folder, name, sample=sample)
    found = answered(lm, loaded)
    metrics = by_name(found.metrics)
    for metric in ("acc", "acc_norm", "acc_within"):
        whole, members = metrics[f"{name}/{metric}"], [metrics[f"cloze_{size}/{metric}"] for size in (3, 8)]
        assert whole.items == (whole.name,)
        [shares] = item_numbers(found.items, whole.name, whole.items).columns
        assert len(shares) == whole.n
        assert statistics.fmean(shares) == pytest.approx(whole.value, abs=1e-6)
        weights = [3 / 11, 8 / 11] if name == "sized" else [0.5, 0.5]
        spread = [0.0 if linear is None else linear.stderr for linear in (linear_of(m, found.items) for m in members)]
        expected = math.hypot(*(weight * each for weight, each in zip(weights, spread, strict=True)))
        assert standard_error(shares) == pytest.approx(expected, rel=1e-5)


def test_a_group_that_is_no_sum_of_its_documents_has_no_shares(
    lm: OpenLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_code_of_a_benchmark_that_fails_on_an_answer_is_named(lm: OpenLM, folder: Path, tmp_path: Path) -> None:
    """How many answers a filter wants is found out by an answer only."""
    broken = {"function": "take_first_k", "k": 3}
    row: Mapping[str, Any] = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2},
        "metric_list": [{"metric": "exact_match", **MEAN}],
        "filter_list": [{"name": "number", "filter": [broken, {"function": "take_first"}]}],
    }
    write_benchmark(tmp_path, "broken", questions(2), **row)
    with pytest.raises(InvalidData, match=r"^benchmark 'broken', an answer does not fit what .* \(AssertionError\)$"):
        answered(lm, load(tmp_path, "broken"))


def test_messages_keep_every_bit() -> None:
    answers: list[Answer | Generation] = [
        Answer(Score(-0.1 - 0.2, True, -1e-300, False, 0.7), 3, True),
        Generation("a\0b", "", False),
    ]
    for answer in answers:
        assert from_row(json.loads(json.dumps(to_row(answer)))) == answer


def test_estimates_survive_hopeless_models() -> None:
    """exp of 1,000 nats overflows, which lm-eval dies of; resamples without a class must not warn or end it."""
    hopeless = estimate(lm_metrics.perplexity, [-1000.0, -2000.0])
    assert hopeless is not None
    assert hopeless.ratio.value == math.inf
    one_class = estimate(lm_metrics.matthews_corrcoef, [(0, 0)] * 18 + [(1, 1), (1, 0)])
    assert one_class is not None
    assert one_class.ratio.stderr is not None
    ragged = estimate(lm_metrics.nanmean, [1.0, math.nan, 0.0])
    assert ragged is not None
    assert (ragged.ratio.value, ragged.ratio.n) == (0.5, 2)
    assert estimate(lm_metrics.nanmean, [math.nan]) is None
    assert estimate(lambda values: {"a": 1}, [1.0]) is None


def test_errors_without_a_formula_are_those_of_a_bootstrap() -> None:
    chance = random.Random(1)
    losses = [chance.gauss(-2, 0.5) for _ in range(300)]
    for aggregation in (lm_metrics.median, lm_metrics.perplexity):
        found = estimate(aggregation, losses)
        assert found is not None
        resampled = [aggregation(chance.choices(losses, k=300)) for _ in range(1000)]
        assert found.ratio.stderr == pytest.approx(statistics.stdev(resampled), rel=0.15)
    assert estimate(lm_metrics.median, losses) == estimate(lm_metrics.median, losses)


def test_a_bootstrap_of_few_documents_gives_no_error() -> None:
    """Of 8 documents, the interval of an F1 of .75 covered it in .88 of samples, and the error was 0 in .10."""
    answers = [(0, 0), (1, 1)] * 10
    for few in (answers[:8], answers[:19], answers):
        found = estimate(lm_metrics.f1_score, few)
        assert found is not None
        assert (found.ratio.value, found.ratio.stderr) == (1.0, None), "too few, or resamples that never move the value"
    moved = estimate(lm_metrics.f1_score, [*answers[:19], (1, 0)])
    assert moved is not None
    assert moved.ratio.stderr is not None
    assert moved.ratio.stderr > 0


def test_all_answers_of_a_question_are_one_group() -> None:
    """Its error was that of 180 questions, but its interval and its printed n those of 900 independent answers."""
    answers = [
        (question % 3 > 0 or answer > 0, {"idx": {"paragraph": question // 9, "question": question}, "label": 1})
        for question in range(180)
        for answer in range(5)
    ]
    found = estimate(lm_metrics.acc_all, answers)
    assert found is not None
    assert found.ratio.value == pytest.approx(2 / 3)
    assert (found.ratio.n, found.ratio.groups, found.ratio.independent) == (900, 180, 180)
    assert found.ratio.stderr == pytest.approx(lm_metrics.acc_all_stderr(answers))
    all_right = estimate(lm_metrics.acc_all, [(True, document) for _, document in answers])
    assert all_right is not None
    assert all_right.ratio.stderr, "the next question may be wrong"
