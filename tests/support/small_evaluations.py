"""Small evaluations of the miniature that return every metric of every kind of task, without an asset."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_files import questions, write_benchmark
from miniature_run import DECODER, pretrained
from safetensors.torch import load_file, save_file
from square_features import offer_squares
from task_runs import do_all
from tiny_vision import write_lpips

from evalsvc.config import Settings
from evalsvc.metrics.definitions import KINDS, Kind
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.tasks.task import TaskResult, work_of
from evalsvc.worker.context import ShardContext

IMAGES = 70

Results = list[TaskResult]
Evaluate = Callable[..., Results]


@contextmanager
def evaluating(folder: Path) -> Iterator[Evaluate]:
    """Yield what runs one task on a checkpoint of the miniature [step 20] beside its step 0."""
    settings = Settings(devices="cpu", threads=1, data_dir=str(folder / "data"))

    def run(kind: str, epoch: int = 2, **parameters: Any) -> TaskResult:
        work = work_of(catalog.load("tasks", kind)(name="some", **parameters))
        return do_all(work, ShardContext(pretrained(epoch), settings, lambda done: None, pretrained(0)))

    with pytest.MonkeyPatch.context() as patch:
        offer_squares(patch)
        yield run


def loss(evaluate: Evaluate, folder: Path) -> Results:
    """Captions of which two are of one image, with a square of codes; and codes that are none."""
    lines = [json.loads(line) for line in (ROOT / "heldout_pairs.jsonl").read_text().splitlines()[:6]]
    pairs, texts = (
        [*lines, {**lines[0], "text_ids": lines[1]["text_ids"]}],
        [{"text": "an apple"}, {"text": "a name"}] * 2,
    )
    odd = [{**line, "image_codes": line["image_codes"][: 3 + place]} for place, line in enumerate(lines)]
    paths = {name: str(folder / f"{name}.jsonl") for name in ("pairs", "texts", "odd")}
    for name, records in (("pairs", pairs), ("texts", texts), ("odd", odd)):
        Path(paths[name]).write_text("".join(json.dumps(record) + "\n" for record in records))
    groups = ["text_position", "image_row", "image_column"]
    return [
        evaluate("loss", data=paths["pairs"], general_text=paths["texts"], profile_metrics=groups),
        evaluate("loss", data=paths["odd"], profile_metrics=["image_position"]),
    ]


def text_to_image(evaluate: Evaluate, folder: Path) -> Results:
    reference = folder / "reference.safetensors"
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:IMAGES].clone()}, reference)
    captions = {"captions": str(ROOT / "captions.jsonl"), "classifier": str(ROOT / "classifier.safetensors")}
    sampled = {"samples": IMAGES, "decoder": DECODER, "keep": 0, "clip": "squares", "extractor": "squares"}
    return [evaluate("text_to_image", reference=str(reference), **captions, **sampled)]


def reconstruction(evaluate: Evaluate, folder: Path) -> Results:
    images = folder / "images.safetensors"
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:IMAGES].clone()}, images)
    lpips = str(write_lpips(folder))
    return [evaluate("reconstruction", images=str(images), decoder=DECODER, extractor="squares", lpips=lpips)]


def language(evaluate: Evaluate, folder: Path) -> Results:
    mean = {"aggregation": "mean", "higher_is_better": True}
    choices = [{"metric": name, **mean} for name in ("acc", "acc_norm", "acc_bytes", "exact_match")]
    brier = {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}
    mcc = {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}
    write_benchmark(folder, "sums", questions(20), metric_list=[*choices, brier, mcc])
    for name in ("one", "other"):
        write_benchmark(folder, name, questions(4))
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    group = {"group": "both", "task": ["one", "other"], "aggregate_metric_list": aggregate}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_text": ""}
    weighted = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    write_benchmark(folder, "texts", questions(4), **rolling, doc_to_target="{{question}}", metric_list=weighted)
    free = {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "{{choices[gold]}}"}
    filters = [{"name": "all", "filter": [{"function": "take_first"}]}]
    how = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 3}, "filter_list": filters}
    write_benchmark(folder, "free", questions(3), **free, **how, metric_list=[{"metric": "exact_match", **mean}])
    common = {"include_path": [str(folder)], "end_of_text": 0}
    means = {"mean": ["acc", "exact_match,all"], "benchmarks": ["sums", "both", "free"]}
    return [evaluate("language", **means, **common), evaluate("language", benchmarks=["texts"], **common)]


def forgetting(evaluate: Evaluate, folder: Path) -> Results:
    """Questions of which the base knows some, and a text that comes twice; and the base, which forgets nothing."""
    cloze = [json.loads(line) for line in (ROOT / "cloze.jsonl").read_text().splitlines()[:40]]
    write_benchmark(folder, "cloze", cloze, doc_to_text="query", fewshot_split="test")
    lines = (ROOT / "heldout_text.jsonl").read_text().splitlines()[:4]
    (folder / "text.jsonl").write_text("".join(f"{line}\n" for line in [*lines, lines[0]]))
    text = {"text": str(folder / "text.jsonl"), "icl_positions": [3, 20]}
    cloze_and_text = {"benchmarks": ["cloze"], "include_path": [str(folder)], "icl": True, **text}
    return [evaluate("forgetting", **cloze_and_text), evaluate("forgetting", epoch=0, **cloze_and_text)]


def completions(evaluate: Evaluate, folder: Path) -> Results:
    return [evaluate("completions", prompts=["a name", "the digit"], max_tokens=8, end_of_text=0)]


def alignment(evaluate: Evaluate, folder: Path) -> Results:
    # Of a table that knows less of pairs the fitted loss has no scatter, and so neither items nor an error.
    pairs = {"data": str(ROOT / "heldout_pairs.jsonl"), "permutations": 9}
    return [evaluate("alignment", epoch=5, **pairs)]


_FUNCTIONS = (loss, text_to_image, reconstruction, language, forgetting, completions, alignment)
SMALL: Mapping[Any, Callable[[Evaluate, Path], Results]] = {function.__name__: function for function in _FUNCTIONS}


def evaluations(kind: Kind, folder: Path) -> Results:
    with evaluating(folder) as evaluate:
        return SMALL[kind](evaluate, folder)


FILE = Path(__file__).parents[1] / "golden" / "values" / "values.jsonl"
COMMAND = "python tests/golden/values/make.py"
HOW = f"record the values again: {COMMAND}"

KEY = ("kind", "evaluation", "metric")
NUMBERS = ("value", "stderr", "low", "high")

ROUNDING = 0.01
"""Largest distance of a number from the recorded one, in standard errors; of an error, as a share of the error."""
OF_DRAWS = 0.1
"""The same of tasks that draw: on another processor, rounding turns a near tie between two codes."""
DRAWING = ("text_to_image", "completions")
RELATIVE = 1e-5
"""Largest distance as a share of the number, where this is more, or where there is no error."""
ABSOLUTE = 1e-9

Line = dict[str, Any]


def lines_of(kind: Kind, results: Sequence[TaskResult]) -> list[Line]:
    lines = []
    for place, result in enumerate(results):
        for metric in with_intervals(result.metrics, kind, result.items):
            numbers = dict(zip(NUMBERS, (metric.value, metric.stderr, *(metric.ends or (None, None))), strict=True))
            known = {"kind": kind, "evaluation": place, "metric": metric.name, "protocol": metric.protocol.id}
            lines.append({**known, **numbers, "n": metric.n, "groups": metric.groups, "baseline": metric.baseline})
    return lines


def recorded(kind: Kind | None = None) -> list[Line]:
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    return [line for line in lines if kind in (None, line["kind"])]


def record(lines: Sequence[Line]) -> None:
    ordered = sorted(lines, key=lambda line: KINDS.index(line["kind"]))
    FILE.write_text("".join(json.dumps(line) + "\n" for line in ordered))


def differences(before: Sequence[Line], now: Sequence[Line]) -> list[str]:
    known, found = ({_key(line): line for line in lines} for lines in (before, now))
    problems = list(moved(before, now))
    for key in known.keys() | found.keys():
        if key not in found:
            problems.append(f"{_named(key)} is recorded and was not returned")
        elif key not in known:
            problems.append(f"{_named(key)} is not recorded")
        elif found[key]["protocol"] != known[key]["protocol"]:
            problems.append(f"{_named(key)} has the protocol {found[key]['protocol']}, not {known[key]['protocol']}")
    return sorted(problems)


def moved(before: Sequence[Line], now: Sequence[Line]) -> Iterator[str]:
    """Yield the numbers that differ by more than rounding although the protocol is the recorded one."""
    known = {_key(line): line for line in before}
    for line in now:
        old = known.get(_key(line))
        if old is None or old["protocol"] != line["protocol"]:
            continue
        for name in (*NUMBERS, "n", "groups", "baseline"):
            if name in old and not _is_equal(name, old, line):
                yield (
                    f"{_named(_key(line))}: {name} was {old[name]} and is {line.get(name)} under the same protocol, "
                    f"{old['protocol']}; raise the version of the estimator in the protocol (`ESTIMATOR` of the task, "
                    "or `version` of the metric)"
                )


def _is_equal(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    before, now = old[name], new.get(name)
    if name not in NUMBERS or before is None or now is None:
        return bool(before == now)
    if not math.isfinite(before):
        return str(before) == str(now)
    error = abs(before) if name == "stderr" else old["stderr"] or 0.0
    rounding = OF_DRAWS if old["kind"] in DRAWING else ROUNDING
    return abs(now - before) <= max(rounding * error, RELATIVE * abs(before), ABSOLUTE)


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in KEY)


def _named(key: tuple[Any, ...]) -> str:
    kind, evaluation, metric = key
    return f"{metric} ({kind}, evaluation {evaluation + 1})"
