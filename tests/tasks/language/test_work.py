"""The language task on the bundled run: the whole way from a suite to metrics, and what stops it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import questions, write_benchmark, write_rows
from service_process import ServiceProcess
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.messages import ShardRequest, ShardResult
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import parse_suite
from evalsvc.worker.local import run_suite
from evalsvc.worker.shard import run_shard

LAYOUT = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
EPOCH = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_2.pt"
CHECKPOINT = CheckpointRef(str(EPOCH), layout=LAYOUT, label="run 'pretrained' step 20")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Questions, words and texts."""
    write_benchmark(tmp_path, "numbers", questions(30))
    words = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": " {{choices[gold]}}"}
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    write_benchmark(tmp_path, "words", questions(9), **words, metric_list=[accuracy])
    free = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0},
        "repeats": 2,
        "metric_list": [{**accuracy, "metric": "exact_match"}],
    }
    write_benchmark(tmp_path, "free", questions(5), **free)
    return tmp_path


def language(folder: Path, *benchmarks: Any, **parameters: Any) -> dict[str, Any]:
    return {"kind": "language", "benchmarks": list(benchmarks), "include_path": [str(folder)], **parameters}


def evaluate(*tasks: Mapping[str, Any], checkpoint: CheckpointRef = CHECKPOINT) -> dict[str, Any]:
    suite = parse_suite({"tasks": list(tasks)}, "test")
    return run_suite(suite, checkpoint, lambda task, done, total, unit: None)


def items(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    assert result["errors"] == {}
    found: list[dict[str, Any]] = result["items"]["language"]
    return found


def metrics(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    assert result["errors"] == {}
    return {metric["name"]: metric for metric in result["metrics"]}


def protocol(result: Mapping[str, Any], metric: str) -> dict[str, Any]:
    found: dict[str, Any] = result["protocols"][metrics(result)[metric]["protocol"]]
    return found


def flat(items: list[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
    """The numbers and texts of items by where they are."""
    found: dict[tuple[Any, ...], Any] = {}
    for item in items:
        for key, value in item.items():
            values = [value] if key != "scores" else [number for row in value for number in row]
            for place, each in enumerate(values):
                found[item["benchmark"], item["index"], key, place] = each
    return found


def test_shards_batches_and_repetition_move_no_item(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark may be cut anywhere, and one shard holds the end of one and the start of the next."""
    task = language(folder, "numbers", "words", "free")
    whole = evaluate(task)
    assert items(evaluate(task)) == items(whole)
    cut = evaluate({**task, "shard_size": 7})
    monkeypatch.setenv("EVALSVC_BATCH_TOKENS", "200")
    small = evaluate({**task, "shard_size": 13})
    for other in (cut, small):
        here, there = flat(items(whole)), flat(items(other))
        assert here.keys() == there.keys()
        for key, value in here.items():
            assert there[key] == (pytest.approx(value, abs=1e-6, rel=1e-6) if isinstance(value, float) else value)
        for name, metric in metrics(whole).items():
            again = metrics(other)[name]
            assert again["value"] == pytest.approx(metric["value"], rel=1e-6)
            assert again["protocol"] == metric["protocol"]
    assert len(cut["provenance"]["language"]["shards"]) == 7
    assert [item["index"] for item in items(whole)] == [*range(30), *range(9), *range(5)]
    free = items(whole)[-1]
    assert len(free["text"]) == 2, "its draws are repeated, as it says"
    assert free["text"][0] != free["text"][1]


def test_protocols_name_everything_that_moves_a_number(folder: Path) -> None:
    plain = protocol(evaluate(language(folder, "numbers")), "numbers/acc")
    assert plain | {"digest": "", "tokenizer": "", "layout": "", "lm_eval": ""} == {
        "task": "language",
        "estimator": "lm-eval/1",
        "benchmark": "numbers",
        "version": "2.0",
        "digest": "",
        "num_fewshot": 0,
        "limit": None,
        "samples": None,
        "lm_eval": "",
        "tokenizer": "",
        "bos": None,
        "end_of_text": None,
        "max_length": 132,
        "layout": "",
        "dtype": "float32",
        "rotary_inv_freq_dtype": "auto",
    }
    same: list[dict[str, Any]] = [
        {"limit": 30},
        {"sample": 30},
        {"max_length": 132},
        {"tokenizer": str(ROOT / "tokenizer.json")},
    ]
    for parameters in same:
        assert protocol(evaluate(language(folder, "numbers", **parameters)), "numbers/acc") == plain, parameters
    moved: dict[str, dict[str, Any]] = {
        "limit": {"limit": 29},
        "num_fewshot": {"num_fewshot": 1},
        "bos": {"bos": 3},
        "end_of_text": {"end_of_text": 4},
        "max_length": {"max_length": 40},
    }
    for key, parameters in moved.items():
        other = protocol(evaluate(language(folder, "numbers", **parameters)), "numbers/acc")
        assert other[key] == parameters[key]
        changed = {name for name in plain if other[name] != plain[name]}
        assert changed - {"digest"} == {key}
    some = evaluate(language(folder, {"name": "numbers", "samples": [7, 2]}, limit=5))
    assert (protocol(some, "numbers/acc")["limit"], protocol(some, "numbers/acc")["samples"]) == (None, [2, 7])
    assert [item["index"] for item in items(some)] == [2, 7]
    drawn = protocol(evaluate(language(folder, "numbers", sample=12)), "numbers/acc")
    assert drawn["sample"] == {
        "documents": 12,
        "of": 30,
        "design": "stratified/1",
        "error": "finite population/1",
    }
    assert {name for name in plain if drawn[name] != plain[name]} == {"digest"}


def test_cut_contexts_are_counted(folder: Path) -> None:
    result = evaluate(language(folder, "numbers", num_fewshot=4, limit=6, mean=["acc"], max_length=40))
    assert result["provenance"]["language"]["notes"] == {
        "documents": 6,
        "contexts_cut": {"numbers": 6},
        "continuations_cut": {},
        "metrics_left_out": [],
    }
    assert metrics(result)["language/mean"]["value"] == metrics(result)["numbers/acc"]["value"]
    assert metrics(result)["language/mean_within"]["unit"] == "fraction"


def test_cut_continuations_are_counted(folder: Path) -> None:
    write_benchmark(folder, "long", [{"question": "a", "choices": ["x " * 200, "u"], "gold": 0}, *questions(2)])
    notes = evaluate(language(folder, "long"))["provenance"]["language"]["notes"]
    assert (notes["contexts_cut"], notes["continuations_cut"]) == ({"long": 1}, {"long": 1})


def bad_benchmarks(folder: Path) -> dict[str, tuple[dict[str, Any], str, str]]:
    """Tasks that fail, with the error's code and the beginning or a part of its message."""
    joins = {"doc_to_text": "{{question}}", "target_delimiter": ""}
    write_benchmark(folder, "joins", [{"question": "i", "choices": ["x", "s"], "gold": 0}], **joins)
    return {
        "unknown": (
            language(folder, "number"),
            "unknown_name",
            "no benchmark is named 'number'; did you mean 'numbers'",
        ),
        "joins": (
            language(folder, "joins"),
            "invalid_data",
            "benchmark 'joins', document 0, request 1: its continuation has no tokens of its own",
        ),
        "mean": (
            language(folder, "numbers", mean=["f1"]),
            "invalid_suite",
            "`mean` names f1; 'numbers' has none of these, but acc, acc_token; add one",
        ),
        "tokenizer": (
            language(folder, "numbers", tokenizer=str(folder / "small.json")),
            "invalid_data",
            "small.json has 3 ids, the layout has 512 text rows; give the tokenizer that the model was trained with",
        ),
        "bos": (language(folder, "numbers", bos=512), "invalid_data", "bos is 512; the tokenizer"),
    }


def write_small_tokenizer(path: Path) -> None:
    Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a")).save(str(path))


def test_what_is_wrong_is_an_error_of_its_task_and_the_others_go_on(folder: Path) -> None:
    write_small_tokenizer(folder / "small.json")
    bad = bad_benchmarks(folder)
    tasks = [{**task, "name": name} for name, (task, _, _) in bad.items()]
    result = evaluate(*tasks, language(folder, "numbers", name="good"))
    for name, (_, code, message) in bad.items():
        error = result["errors"][name]
        assert error["code"] == code, error
        assert message in error["message"], error
        assert "\n" not in error["message"]
    assert set(result["errors"]) == set(bad)
    assert {metric["name"] for metric in result["metrics"]} >= {"numbers/acc", "numbers/acc_within"}


def test_without_a_tokenizer_it_says_where_to_give_one(folder: Path) -> None:
    nameless = {**LAYOUT, "text": {"offset": 0, "size": 512}}
    result = evaluate(language(folder, "numbers"), checkpoint=CheckpointRef(str(EPOCH), layout=nameless))
    assert result["errors"]["language"]["message"] == (
        "task 'language' needs text, but there is no tokenizer; give the task's `tokenizer` or the layout's "
        "`text.tokenizer`"
    )


def test_another_tokenizer_of_the_same_size_is_found_by_its_digest(folder: Path) -> None:
    pinned = {**LAYOUT, "text": {**LAYOUT["text"], "tokenizer_sha256": "0" * 64}}
    result = evaluate(language(folder, "numbers"), checkpoint=CheckpointRef(str(EPOCH), layout=pinned))
    assert f"the layout's is {'0' * 64}; give the tokenizer" in result["errors"]["language"]["message"]


def stage(
    task: dict[str, Any], name: Any, shards: list[Any] | None = None, outputs: list[Any] | None = None
) -> ShardResult:
    [spec] = parse_suite({"tasks": [task]}, "test").tasks
    return run_shard(ShardRequest(spec, name, CHECKPOINT, shards or [], outputs or []), lambda done: None)


def test_data_that_change_in_between_are_noticed(folder: Path) -> None:
    """A shard that runs, or a merge that counts, after somebody has corrected a question."""
    task = language(folder, "numbers", shard_size=20)
    shards = stage(task, "plan").output["shards"]
    outputs = [stage(task, "run", [shard]).output for shard in shards]
    write_rows(folder / "numbers.jsonl", questions(30, first=1))
    for late in (stage(task, "run", shards[:1]), stage(task, "merge", shards, outputs)):
        assert late.error is not None
        assert late.error.code == "data_changed"
        assert late.error.message.startswith("what numbers ask has changed since this evaluation was planned")
    content = (ROOT / "tokenizer.json").read_text()
    copied = folder / "tokenizer.json"
    copied.write_text(content)
    task = language(folder, "numbers", tokenizer=str(copied))
    shards = stage(task, "plan").output["shards"]
    copied.write_text(content + "\n")
    late = stage(task, "run", shards)
    assert late.error is not None
    assert late.error.code == "data_changed"


def test_the_merge_needs_no_checkpoint(folder: Path) -> None:
    """The training loop may have deleted it by then."""
    task = language(folder, "numbers", mean=["acc"])
    shards = stage(task, "plan").output["shards"]
    outputs = [stage(task, "run", [shard]).output for shard in shards]
    [spec] = parse_suite({"tasks": [task]}, "test").tasks
    gone = CheckpointRef("/nowhere/epoch_1.pt", layout=LAYOUT)
    merged = run_shard(ShardRequest(spec, "merge", gone, shards, outputs), lambda done: None)
    assert merged.error is None
    assert len(merged.output["items"]) == 30


@pytest.mark.long
@pytest.mark.usefixtures("child_process")
def test_a_killed_worker_leaves_the_items_of_an_undisturbed_run(tmp_path: Path) -> None:
    """And a task that fails beside it makes the evaluation partly failed, no more."""
    write_benchmark(tmp_path, "numbers", questions(600))
    quiz = language(tmp_path, "numbers", name="quiz", shard_size=60)
    service = ServiceProcess(tmp_path / "service", "--devices", "cpu").start()
    try:
        service.put_suite("words", quiz, language(tmp_path / "nowhere", "numbers", name="bad"))
        [evaluation] = service.post("run", 1, EPOCH, ["words"], layout=LAYOUT)
        deadline = time.monotonic() + 60
        while (shards := quiz_shards(service, evaluation))["succeeded"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        service.workers()[0].kill()
        assert shards["succeeded"] < 10, "the evaluation was over before it could be disturbed"
        undisturbed = evaluate(quiz)["items"]["quiz"]
        assert service.wait(evaluation)["state"] == "partly_failed"
        assert quiz_shards(service, evaluation)["attempts"] == 10 + 1
        assert service.request("GET", f"/v1/evaluations/{evaluation}/items")["items"]["quiz"] == undisturbed
    finally:
        service.stop()


def quiz_shards(service: ServiceProcess, evaluation: int) -> dict[str, Any]:
    tasks = service.evaluation(evaluation)["tasks"]
    return next(dict(task["shards"]) for task in tasks if task["name"] == "quiz")
