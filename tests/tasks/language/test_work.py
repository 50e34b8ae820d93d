"""The language task on the bundled run: the whole way from a suite to metrics, and what stops it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_files import questions, write_benchmark, write_rows
from miniature_run import LAYOUT, pretrained
from task_runs import error, items, metrics, notes, run_stage, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.files.kept import ANSWERS as FOLDER
from evalsvc.files.kept import KeptFolder
from evalsvc.miniature import ROOT
from evalsvc.tasks.language.work import Answers, find_answers, keep_answers

CHECKPOINT = pretrained(2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
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


def evaluate(task: Mapping[str, Any]) -> dict[str, Any]:
    return run_task(CHECKPOINT, **task)


def flat(items: list[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
    cells = ((item["benchmark"], item["index"], key, value) for item in items for key, value in item.items())
    return {(*cell, place): each for *cell, value in cells for place, each in enumerate(np.ravel(value).tolist())}


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
        numbers = {key: value for key, value in here.items() if isinstance(value, float)}
        assert {key: there[key] for key in numbers} == pytest.approx(numbers, abs=1e-6, rel=1e-6)
        assert {**there, **numbers} == here
        for name, metric in metrics(whole).items():
            again = metrics(other)[name]
            assert (again["value"], again["protocol"]) == (pytest.approx(metric["value"], rel=1e-6), metric["protocol"])
    assert len(cut["provenance"]["language"]["shards"]) == 7
    assert [item["index"] for item in items(whole)] == [*range(30), *range(9), *range(5)]
    assert len(set(items(whole)[-1]["text"])) == 2, "its draws are repeated, as it says"


def test_protocols_name_everything_that_moves_a_number(folder: Path) -> None:
    def told(*benchmarks: Any, of: CheckpointRef = CHECKPOINT, **parameters: Any) -> dict[str, Any]:
        result = run_task(of, **language(folder, *benchmarks or ("numbers",), **parameters))
        return result["protocols"][metrics(result)["numbers/acc"]["protocol"]]

    plain, digests = told(), ("digest", "tokenizer", "layout", "lm_eval")
    own = {"task": "language", "estimator": "lm-eval/1", "benchmark": "numbers", "version": "2.0", "num_fewshot": 0}
    unset = dict.fromkeys(("limit", "samples", "bos", "end_of_text"))
    form = {"max_length": 132, "dtype": "float32", "rotary_inv_freq_dtype": "auto"}
    assert plain == {**own, **unset, **form, **{name: plain[name] for name in digests}}
    same = {"limit": 30, "sample": 30, "max_length": 132, "tokenizer": str(ROOT / "tokenizer.json")}
    assert [told(**{key: value}) for key, value in same.items()] == [plain] * 4
    for key, value in {"limit": 29, "num_fewshot": 1, "bos": 3, "end_of_text": 4, "max_length": 40}.items():
        other = told(**{key: value})
        assert other[key] == value
        assert {name for name in plain if other[name] != plain[name]} - {"digest"} == {key}
    assert told(of=pretrained(2, text={**LAYOUT["text"], "bos": 3})) == told(bos=3), "the layout's beginning"
    some = told({"name": "numbers", "samples": [7, 2]}, limit=5)
    assert (some["limit"], some["samples"]) == (None, [2, 7])
    drawn, design = told(sample=12), {"design": "stratified/1", "error": "finite population/1"}
    assert drawn["sample"] == {"documents": 12, "of": 30, **design}
    assert {name for name in plain if drawn[name] != plain[name]} == {"digest"}


def test_cut_contexts_and_continuations_are_counted(folder: Path) -> None:
    result = evaluate(language(folder, "numbers", num_fewshot=4, limit=6, mean=["acc"], max_length=40))
    cut = {"contexts_cut": {"numbers": 6}, "continuations_cut": {}}
    assert notes(result) == {"documents": 6, **cut, "metrics_left_out": []}
    assert metrics(result)["language/mean"]["value"] == metrics(result)["numbers/acc"]["value"]
    assert metrics(result)["language/mean_within"]["unit"] == "fraction"
    write_benchmark(folder, "long", [{"question": "a", "choices": ["x " * 200, "u"], "gold": 0}, *questions(2)])
    cut = {"contexts_cut": {"long": 1}, "continuations_cut": {"long": 1}}
    assert cut.items() <= notes(evaluate(language(folder, "long"))).items()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mean": ["f1"]}, "invalid_suite: `mean` names f1; 'numbers' has none of these, but acc, acc_"),
        ({"bos": 512}, "invalid_data: bos is 512; the tokenizer"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, parameters: dict[str, Any], message: str) -> None:
    assert message in error(evaluate(language(folder, "numbers", **parameters)))


def test_data_that_change_in_between_are_noticed(folder: Path) -> None:
    """A shard that runs, or a merge that counts, after somebody has corrected a question."""
    task = language(folder, "numbers", shard_size=20)
    shards = run_stage("plan", CHECKPOINT, **task).shards
    outputs = [run_stage("run", CHECKPOINT, None, [shard], **task) for shard in shards]
    write_rows(folder / "numbers.jsonl", questions(30, first=1))
    for stage, of, results in (("run", shards[:1], []), ("merge", shards, outputs)):
        late = run_stage(stage, CHECKPOINT, None, of, results, **task)
        assert late.code == "data_changed"
        assert late.message.startswith("what numbers ask has changed since this evaluation was planned")


KEY = {"checkpoint": "ab" * 32, "encoding": {"bos": 1}}
ANSWERS: Answers = {
    "question": [(-1.25, True, float("-inf"), False, 0.1, 3, False, False)],
    "other": [("text", "text", False)],
}


def test_answers_come_back_to_the_last_bit_also_from_several_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, answer in ANSWERS.items():
        keep_answers(KeptFolder(tmp_path / "kept"), KEY, {name: answer})
    assert find_answers(KeptFolder(tmp_path / "kept"), KEY) == ANSWERS
    assert find_answers(KeptFolder(tmp_path / "kept"), {**KEY, "checkpoint": "cd" * 32}) == {}
    (tmp_path / FOLDER).write_text("in the way")
    with caplog.at_level(logging.WARNING):
        keep_answers(KeptFolder(tmp_path), KEY, ANSWERS)
    assert "answers are not kept" in caplog.text
    assert find_answers(KeptFolder(tmp_path), KEY) == {}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "folder", "another's", "another shape"])
def test_a_damaged_file_is_none_and_is_written_anew(tmp_path: Path, damage: str) -> None:
    """A machine that went down in the middle of a write must not move a curve for ever."""
    files = KeptFolder(tmp_path)

    def kept(key: dict[str, Any], answers: Any) -> tuple[Path, bytes]:
        keep_answers(files, key, answers)
        [file] = (tmp_path / FOLDER).rglob("*.json")
        content = file.read_bytes()
        file.unlink()
        return file, content

    file, right = kept(KEY, ANSWERS)
    damaged = {"cut": right[:-9], "changed": right.replace(b"-1.25", b"-1.26"), "empty": b""}
    damaged |= {"another's": kept({"checkpoint": ""}, ANSWERS)[1]}
    damaged |= {"another shape": kept(KEY, {"question": [(-1.25, True)]})[1]}
    file.mkdir() if damage == "folder" else file.write_bytes(damaged[damage])
    assert find_answers(files, KEY) == {}
    if damage != "folder":
        keep_answers(files, KEY, ANSWERS)
        assert find_answers(files, KEY) == ANSWERS
