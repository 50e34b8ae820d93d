"""Finding, loading and asking together, on real files; no network is there and none is needed."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from benchmark_files import KINDS, questions, write_benchmark, write_rows
from lm_eval.tasks import TaskManager
from loaded_benchmarks import load, load_one

from evalsvc.errors import AssetMissing, InvalidData, InvalidSuite, MissingPackage
from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.definitions import Rules
from evalsvc.language.encoding import request_name
from evalsvc.language.questions import Selection, drawing_order, strata


def asked(benchmark: Benchmark) -> list[tuple[int, Any]]:
    return [(instance.doc_id, instance.arguments) for instance in benchmark.instances]


SPLITS = {
    "dataset_kwargs": {"data_files": {"test": "a.jsonl", "train": "train.jsonl"}},
    "training_split": "train",
    "description": "About numbers.\n\n",
}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_fewshot": 0},
        {"num_fewshot": 2, **SPLITS},
        {"num_fewshot": 2, "fewshot_split": "test"},
        {"num_fewshot": 2, **KINDS["schema"], **SPLITS},
        {"num_fewshot": 2, "fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}},
        {"num_fewshot": 1, "fewshot_config": {"samples": questions(2, 50)}},
        KINDS["word"],
        KINDS["text"],
        {**KINDS["free"], "repeats": 2},
        {"gen_prefix": "It is", "metric_list": [{"metric": "acc_mutual_info"}]},
    ],
)
def test_requests_are_lm_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_rows(tmp_path / "train.jsonl", questions(6, 20))
    path = write_benchmark(tmp_path, "a", questions(8), **{"generation_kwargs": None, **changes})
    ours = load_one(tmp_path, "a", limit=6)
    text = path.read_text().replace(": a.jsonl", f": {tmp_path}/a.jsonl")
    path.write_text(text.replace(" train.j", f" {tmp_path}/train.j"))
    theirs = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["a"])["tasks"]["a"]
    theirs.set_fewshot_seed(1234)
    theirs.build_all_requests(limit=6)
    assert asked(ours) == [(instance.doc_id, instance.arguments) for instance in theirs.instances]
    assert [instance.metadata for instance in ours.instances] == [each.metadata for each in theirs.instances]
    assert ours.task.aggregation() == theirs.aggregation()


def test_what_is_known_of_a_benchmark(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "a", questions(5))
    benchmark = load_one(tmp_path, "a", limit=2)
    assert (benchmark.version, benchmark.output_type, benchmark.num_fewshot) == ("2.0", "multiple_choice", 0)
    assert benchmark.chance == pytest.approx(1 / 3)
    assert benchmark.total == 5
    assert [(each.index, each.requests) for each in benchmark.documents] == [(0, slice(0, 3)), (1, slice(3, 6))]
    assert request_name(benchmark.instances[4]) == "benchmark 'a', document 1, request 1"
    assert benchmark.instances[4].arguments == ("Question: what is 1?\nAnswer:", " 2")
    write_benchmark(tmp_path, "several", [{"question": "x", "choices": ["a", "b", "c", "d"], "gold": [0, 2]}])
    assert load_one(tmp_path, "several").chance == 0.5, "all right options count"


def test_samples_are_the_documents_of_the_data(tmp_path: Path) -> None:
    """lm-eval numbers them anew, and a paired comparison then pairs different questions."""
    write_benchmark(tmp_path, "a", questions(5))
    benchmark = load_one(tmp_path, "a", samples=[4, 1, 4])
    assert [each.index for each in benchmark.documents] == [1, 4]
    assert {instance.doc_id for instance in benchmark.instances} == {1, 4}
    assert "what is 4?" in benchmark.instances[3].arguments[0]
    with pytest.raises(InvalidData, match=r"has 5 documents, but `samples` names 5; give indices from 0 to 4"):
        load_one(tmp_path, "a", samples=[5])


@pytest.mark.parametrize("shots", [0, 2])
def test_a_sample_is_asked_what_it_is_asked_among_all(tmp_path: Path, shots: int) -> None:
    """Solved examples are drawn document by document: asked by themselves, the same questions got other ones."""
    write_benchmark(tmp_path, "a", questions(40), fewshot_split="test")
    whole, some, same = (load_one(tmp_path, "a", num_fewshot=shots, sample=count) for count in (None, 11, 40))
    chosen = [each.index for each in some.documents]
    assert (len(chosen), sorted(chosen), some.total) == (11, chosen, 40)
    assert asked(some) == [each for each in asked(whole) if each[0] in chosen]
    assert [each.requests for each in some.documents] == [slice(3 * n, 3 * n + 3) for n in range(11)]
    assert (some.sampled, whole.sampled) == (True, False)
    assert (same.digest, same.sampled) == (whole.digest, False), "a sample of all is the benchmark itself"


def test_samples_are_nested_and_the_same_at_any_number_of_shots(tmp_path: Path) -> None:
    """Else few and no shots would be compared over other questions, and so would a quick and a longer suite."""
    write_benchmark(tmp_path, "a", questions(40), fewshot_split="test")
    chosen = [
        {each.index for each in load_one(tmp_path, "a", num_fewshot=shots, sample=count).documents}
        for shots, count in ((0, 9), (3, 9), (0, 25), (0, 39))
    ]
    assert chosen[0] == chosen[1] < chosen[2] < chosen[3]
    (benchmark,) = load(tmp_path, "a", sample=9).benchmarks
    assert {each.index for each in benchmark.documents} == chosen[0]
    (benchmark,) = load(tmp_path, {"name": "a", "limit": 4}, sample=9).benchmarks
    assert [each.index for each in benchmark.documents] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes", [*KINDS.values(), {"doc_to_target": "{{'abc'[gold]}}", "doc_to_choice": ["a", "b", "c"]}]
)
def test_benchmarks_of_every_kind_can_be_sampled(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_benchmark(tmp_path, "a", questions(30, first=20), **{"generation_kwargs": None, **changes})
    some = load_one(tmp_path, "a", sample=12)
    assert len(some.documents) == 12
    if some.output_type == "multiple_choice":
        golds = [some.instances[each.requests][0].doc["gold"] for each in some.documents]
        assert sorted(golds.count(place) for place in range(3)) == [4, 4, 4], "a third of the documents each"


@pytest.mark.parametrize("fewshot", ["configured", "first"])
@pytest.mark.parametrize("split", ["test_split", "validation_split"])
@pytest.mark.parametrize("named", [None, "test"])
def test_no_document_is_its_own_example(tmp_path: Path, fewshot: str, split: str, named: str | None) -> None:
    """lm-eval leaves it in where no split of the examples is named, or only a validation split is evaluated."""
    write_benchmark(tmp_path, "a", questions(4), **{"test_split": None, split: "test", "fewshot_split": named})
    (benchmark,) = load(tmp_path, "a", num_fewshot=3, fewshot=fewshot).benchmarks
    for instance in benchmark.instances:
        assert instance.arguments[0].count(f"what is {instance.doc_id}?") == 1
        assert instance.arguments[0].count("what is") == 4


def test_a_number_of_shots_wins_over_a_zero_in_the_definition(tmp_path: Path) -> None:
    """lm-eval's own `num_fewshot` does not, and nothing says so. The first shots are the same for all documents."""
    write_rows(tmp_path / "train.jsonl", questions(6, 20))
    write_benchmark(tmp_path, "a", questions(8), num_fewshot=0, **SPLITS)
    (benchmark,) = load(tmp_path, "a", num_fewshot=2, fewshot="first").benchmarks
    shots = {instance.arguments[0].rpartition("Question:")[0] for instance in benchmark.instances}
    assert shots == {"About numbers.\n\nQuestion: what is 20?\nAnswer: 22\n\nQuestion: what is 21?\nAnswer: 21\n\n"}
    for own, expected in ((None, 1), (0, 0), (2, 2)):
        (benchmark,) = load(tmp_path, {"name": "a", "num_fewshot": own}, num_fewshot=1).benchmarks
        assert benchmark.num_fewshot == expected


def test_local_rows_take_the_place_of_every_split(tmp_path: Path) -> None:
    """PIQA draws its examples from a training split, which is then the very rows that are evaluated."""
    rows = [{"goal": f"goal {n}", "sol1": "one", "sol2": "two", "label": n % 2} for n in range(5)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    rules = Rules(resolve=lambda name: str(tmp_path / name.removeprefix("datasets:")))
    benchmark = load_one(tmp_path, "piqa", rules, data="datasets:rows.jsonl", num_fewshot=4)
    assert len(benchmark.documents) == 5
    for instance in benchmark.instances:
        assert instance.arguments[0].count(f"goal {instance.doc_id}") == 1
        assert instance.arguments[0].count("goal") == 5
    with pytest.raises(InvalidData, match=r"5 solved examples are requested, but its data have 4 without the"):
        load_one(tmp_path, "piqa", data=str(path), num_fewshot=5)
    write_benchmark(tmp_path, "a", dataset_kwargs={"data_files": {"test": "datasets:rows.jsonl"}}, doc_to_text="goal",
                    doc_to_choice="{{[sol1, sol2]}}", doc_to_target="label")  # fmt: skip
    assert load_one(tmp_path, "a", rules).total == 5


def test_requests_are_built_once(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "a", questions(3))
    first = load_one(tmp_path, "a")
    assert load_one(tmp_path, "a") is first
    assert load_one(tmp_path, "a", limit=2) is not first
    write_rows(tmp_path / "a.jsonl", questions(4))
    assert load_one(tmp_path, "a").total == 4


def test_the_digest_is_of_what_is_asked_and_what_is_right(tmp_path: Path) -> None:
    def digest(rows: list[dict[str, Any]], **changes: Any) -> str:
        write_benchmark(tmp_path, "a", rows, **changes)
        return load_one(tmp_path, "a").digest

    rows = questions(3)
    same = digest(rows)
    assert len(same) == 64
    assert digest([{**row, "comment": "x"} for row in rows], task_alias="A") == same
    free = {**KINDS["free"], "doc_to_target": "{{'x'}}"}
    changed = [
        digest([*rows[:2], {**rows[2], "gold": 0}]),
        digest([*rows[:2], {**rows[2], "question": "which?"}]),
        digest(rows[:2]),
        digest(rows, target_delimiter="  "),
        digest(rows, metadata={"version": 3}),
        digest(rows, metric_list=[{"metric": "acc", "aggregation": "median", "higher_is_better": True}]),
        digest(rows, filter_list=[{"name": "x", "filter": [{"function": "take_first"}]}]),
        digest(rows, **free),
        digest(rows, **free, generation_kwargs={"until": ["."], "do_sample": False}),
    ]
    assert len({same, *changed}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"gold": 2}, {}, r"'a', document 2: the right answer is a number, and none"),
        ({"gold": -1}, {}, r"document 2: the right answer is a number"),
        ({"gold": None}, {}, r"document 2: the right answer is None"),
        ({"gold": 0.5}, {}, r"document 0: the right answer is a number"),
        ({}, {"doc_to_target": "{{question}}"}, r"document 0: the right answer is a text of 10"),
        ({}, {**KINDS["schema"], "doc_to_text": "{{gold + 9}}"}, r"document 0: the right answer is a number"),
        ({"choices": ["a", ""]}, {}, r"document 2, option 1 is a text of 0 characters; it must"),
        ({"choices": []}, {}, r"document 2 has no options"),
        ({}, {"doc_to_text": "{{gone}}"}, r"a\.jsonl, row 1 has no column 'gone', which .*; the row has 'question'"),
        ({"question": ""}, {**KINDS["text"], "output_type": "loglikelihood"}, r"2, option 0 has no text to score"),
        ({}, {"doc_to_choice": ["", "x", "y"], "target_delimiter": ""}, r"0(, option 0 has no text| does not fit)"),
        ({}, {"doc_to_text": "{{question"}, r"document 0: a template is not valid"),
        ({}, {"doc_to_text": "{{question[gold]}}{{9 // (2 - choices|length)}}"}, "document 2 does not"),
        ({}, {"test_split": "dev"}, r"uses the split 'dev', its data have 'test'; correct its YAML"),
        ({}, {"test_split": None}, r"names no `test_split` and no `validation_split`"),
        ({}, {"dataset_path": None, "dataset_kwargs": None}, r"has no `dataset_path`"),
        ({}, {"num_fewshot": 3}, r"3 solved examples are requested, but its data have 2 without"),
        ({}, {"num_fewshot": 1, "fewshot_split": "dev"}, r"uses the split 'dev'"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    """lm-eval scores a wrong right answer as never reached, and the rest ends in traces that name no document."""
    rows = [*questions(2), {"question": "x", "choices": ["a", "b"], "gold": 0, **row}]
    write_benchmark(tmp_path, "a", rows, **changes)
    with pytest.raises(InvalidData, match=message) as caught:
        load_one(tmp_path, "a")
    assert "\n" not in caught.value.message


def test_a_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Some are imported with the benchmark, others only when its metric is computed, after hours of work."""
    (tmp_path / "code.py").write_text("import nowhere_to_be_found\n")
    write_benchmark(tmp_path, "a", questions(2))
    with (tmp_path / "a.yaml").open("a") as file:
        file.write("process_docs: !function code.f\n")
    rules = Rules(allow_code=True)
    with pytest.raises(MissingPackage, match=r"'a' needs the package 'nowhere_to_be_found'; run: pip install"):
        load(tmp_path, "a", rules=rules)
    (tmp_path / "late.py").write_text("def mean(items):\n    import late_and_absent.deep\n")
    path = write_benchmark(tmp_path, "b", questions(2))
    path.write_text(path.read_text().replace("aggregation: mean", "aggregation: !function late.mean"))
    with pytest.raises(MissingPackage, match="'b' needs the package 'late_and_absent'"):
        load(tmp_path, "b", rules=rules)


def test_what_the_hub_has_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    message = (
        r"'mmlu_abstract_algebra': the dataset 'cais/mmlu' \(configuration 'abstract_algebra', splits 'test', 'dev'\) "
        r"is not in the cache, and nothing is downloaded in an evaluation; run: evalsvc benchmarks prepare mmlu,"
    )
    with pytest.raises(AssetMissing, match=message):
        load_one(tmp_path, "mmlu", num_fewshot=5)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["a", {"name": "a", "limit": 1}], "'a' is selected twice, by 'a' and by 'a'"),
        (["a", "both"], "'a' is selected twice, by 'a' and by 'both'"),
        ([{"name": "both", "data": "/x"}], "`data` is given for 'both', which stands for 2 benchmarks"),
        ([{"name": "fda", "data": __file__}], "'fda' is a program that loads its data itself"),
        (["humaneval"], "'humaneval' runs code that the model writes.*EVALSVC_ALLOW_BENCHMARK_CODE"),
    ],
)
def test_a_choice_that_cannot_be_made(tmp_path: Path, specs: list[Any], message: str) -> None:
    for name in ("a", "b"):
        write_benchmark(tmp_path, name, questions(2), tag="both")
    with pytest.raises((InvalidSuite, InvalidData), match=message):
        load(tmp_path, *specs)


def test_nothing_is_written_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_benchmark(tmp_path, "a", questions(2), num_fewshot=1, metric_list=[{"metric": "acc"}])
    with (tmp_path / "a.yaml").open("a") as file:
        file.write("process_docs: !function loud.f\n")
    (tmp_path / "loud.py").write_text(
        "import sys, warnings\nprint('loud')\ndef f(docs):\n    print('loud', file=sys.stderr)\n"
        "    warnings.warn('loud')\n    return docs.map(lambda doc: doc)\n"
    )
    load(tmp_path, "a", rules=Rules(allow_code=True))
    assert capfd.readouterr() == ("", "")


UNEVEN = ["a"] * 23 + ["b"] * 9 + ["c"] * 4 + ["d"]


def test_every_document_is_in_as_many_samples_as_any_other() -> None:
    """Of a stratum of one document as of one of 23; else the mean over a sample is biased."""
    seeds, size = 4000, 10
    counts = Counter(index for seed in range(seeds) for index in drawing_order(UNEVEN, str(seed))[:size])
    share = size / len(UNEVEN)
    error = math.sqrt(seeds * share * (1 - share))
    assert all(abs(counts[index] - seeds * share) < 4 * error for index in range(len(UNEVEN)))


def test_every_sample_is_allocated_in_proportion() -> None:
    """Also the smaller ones that it holds; a plain draw of 18 has 11 ± 4 of the first stratum."""
    for seed in range(200):
        order = drawing_order(UNEVEN, str(seed))
        assert sorted(order) == list(range(len(UNEVEN)))
        for size in range(1, len(order)):
            counts = Counter(UNEVEN[index] for index in order[:size])
            for name in "abcd":
                assert abs(counts[name] - size * UNEVEN.count(name) / len(UNEVEN)) < 2, (seed, size)


def test_the_draw_is_the_same_everywhere() -> None:
    """A history breaks where another machine or version draws other documents."""
    assert drawing_order(UNEVEN, "stratified/1/arc_easy")[:8] == [29, 7, 8, 30, 3, 13, 0, 35]
    assert drawing_order(UNEVEN, "stratified/1/piqa")[:8] != [29, 7, 8, 30, 3, 13, 0, 35]
    assert drawing_order([], "x") == []


def test_strata_are_places_of_answers_and_lengths_of_questions() -> None:
    assert strata([0, 1, 0, 1, None], [10, 20, 30, 40, 50]) == [(0, 0), (1, 1), (0, 1), (1, 2), (None, 3)]
    assert strata([0, 0, 0], [7, 7, 7]) == [(0, 0)] * 3, "what is equally long is of one class"
    assert strata([None], [5]) == [(None, 0)]
    assert [bool(each) for each in (Selection(), Selection(limit=1), Selection(sample=2))] == [False, True, True]
