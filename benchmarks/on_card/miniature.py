"""Whether the bundled run has on a device the numbers that it has on a CPU: what `evalsvc demo` computes.

The suite is the demo's own. Left out is what a bare machine cannot do: Inception's weights are not in the repository,
and the cloze questions are scored without lm-eval.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import PREFIX
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.miniature import ROOT
from evalsvc.models import Transformer, load_model
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams
from evalsvc.scoring import Request, Score, score
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.suite import SHIPPED_SUITES, Suite, parse_suite
from evalsvc.spec.yaml_text import read_yaml
from evalsvc.worker.local import run_suite
from on_card.kit import Kit, Row, at_most, figure, holds, left_out
from on_card.tiny_models import codes_of, few_threads, share_equal

RUN = ROOT / "runs" / "pretrained"
TRAINED, FIRST = "epoch_5.pt", "epoch_0.pt"
ERROR = 1e-4
"""Relative, of losses and log-likelihoods in float32."""
SHARE = 0.99
"""Of ids and codes that must be equal: a near tie may turn a draw, and what follows goes on otherwise."""
SHORT = 8
"""Ids of a completion among which a turned draw is not to be expected."""
COMPARED = ("pairs", "text", "forgetting")
"""Tasks whose metrics in nats, and masses, are compared."""

Report = Mapping[str, Any]


def run(kit: Kit) -> Iterator[Row]:
    """Evaluate the trained checkpoint on the device and then on the CPU, and compare every kind of number."""
    yield left_out("fid64", "Inception's weights are not carried; see the section inception")
    yield left_out("cloze by lm-eval", "a bare machine has none; the questions are scored below")
    with few_threads(kit):
        yield from _compare(kit)


def _compare(kit: Kit) -> Iterator[Row]:
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml"))
    original = RUN / "checkpoints" / TRAINED
    with tempfile.TemporaryDirectory() as folder:
        file = _touched_copy(kit, original, Path(folder))
        # The runner keeps its last models: after this order none is left on a card.
        reports = [
            _evaluate(path, layout, device, small=kit.small)
            for path, device in ((file, str(kit.device)), (original, "cpu"))
        ]
        yield from _compare_reports(*reports)
        models = load_model(file, device=str(kit.device)), load_model(original)
    yield from _compare_scores(kit, layout, *models)
    yield from _compare_codes(kit, layout, *models)


def _touched_copy(kit: Kit, original: Path, folder: Path) -> Path:
    """Write the checkpoint anew, with what lies beside it."""
    for beside in RUN.glob("*.*"):
        shutil.copy(beside, folder)
    checkpoint = torch.load(original, weights_only=True)
    tensors = checkpoint["state_dict"]
    largest = max(tensors, key=lambda name: tensors[name].numel())
    tensors[largest] = kit.touched(tensors[largest])
    file = folder / "checkpoints" / original.name
    file.parent.mkdir()
    torch.save(checkpoint, file)
    return file


def _suite(small: bool) -> Suite:
    """Return the demo's suite without what a bare machine lacks; with `small` on few records."""
    path = SHIPPED_SUITES / "miniature.yaml"
    tasks = [dict(task) for task in read_yaml(path.read_bytes(), 10_000)["tasks"]]
    few = {
        "loss": {"limit": 8},
        "text_to_image": {"samples": 8},
        "forgetting": {"text_limit": 4},
        "completions": {"max_tokens": SHORT},
    }
    for task in tasks:
        if task["kind"] == "text_to_image":
            task["metrics"] = []
        if task["kind"] == "forgetting":
            del task["benchmarks"], task["include_path"]
        if small:
            task |= few.get(task["kind"], {})
            task |= {"general_text_limit": 4} if "general_text" in task else {}
    return parse_suite({"tasks": tasks}, "miniature", path.parent)


def _evaluate(file: Path, layout: VocabularyLayout, device: str, *, small: bool) -> Report:
    """Return what `evalsvc run` says of a checkpoint."""
    content = layout.to_json()
    checkpoint = CheckpointRef(str(file), layout=content, label="trained")
    base = CheckpointRef(str(RUN / "checkpoints" / FIRST), layout=content, label="step 0")
    with _settings(device):
        return run_suite(_suite(small), checkpoint, lambda task, done, total, unit: None, base).model_dump()


@contextmanager
def _settings(device: str) -> Iterator[None]:
    """Set the environment that the runner reads, and nothing of the caller's: a folder of its own, the same threads."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(PREFIX)}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"DEVICES": device, "DATA_DIR": folder, "THREADS": str(threads)}
        os.environ |= {PREFIX + name: value for name, value in settings.items()}
        try:
            yield
        finally:
            for name in settings:
                del os.environ[PREFIX + name]
            os.environ |= before
            torch.set_num_threads(threads)


def _compare_reports(found: Report, expected: Report) -> Iterator[Row]:
    errors = {**expected["errors"], **found["errors"]}
    message = "; ".join(f"{task}: {error['message']}" for task, error in errors.items())
    yield holds("no task fails", not errors, message or "none", errors=errors)
    values = [{metric["name"]: metric["value"] for metric in side["metrics"]} for side in (found, expected)]
    for task in COMPARED:
        names = [
            metric["name"]
            for metric in expected["metrics"]
            if metric["task"] == task and (metric["unit"] == "nats/token" or metric["name"].endswith("image_mass"))
        ]
        error, name = _worst(*([side.get(name) for name in names] for side in values), names)
        yield at_most(f"{task}: {len(names)} losses, relative error", error, ERROR, worst=name)
    cosines = [name for name in values[1] if name.startswith("alignment/cosine")]
    difference = max(
        (abs(values[0].get(name, float("nan")) - values[1][name]) for name in cosines), default=float("nan")
    )
    yield at_most("alignment: cosines, difference", difference, ERROR)
    yield from _compare_images(found["items"].get("digits", []), expected["items"].get("digits", []), *values)
    yield from _compare_completions(*(side["items"].get("completions", []) for side in (found, expected)))


def _worst(found: Sequence[float | None], expected: Sequence[float], names: Sequence[str]) -> tuple[float, str]:
    """Return the largest relative error and whose it is; NaN where there is nothing, or a number is missing."""
    if not names or None in found:
        return float("nan"), next((name for name, value in zip(names, found, strict=True) if value is None), "")
    errors = [abs(one / other - 1) for one, other in zip(found, expected, strict=True) if one is not None]
    worst = max(range(len(errors)), key=errors.__getitem__)
    return errors[worst], names[worst]


def _compare_images(
    found: Sequence[Mapping[str, Any]],
    expected: Sequence[Mapping[str, Any]],
    values: Mapping[str, float],
    expected_values: Mapping[str, float],
) -> Iterator[Row]:
    """Compare what the classifier reads in the images; a caption agrees otherwise only where an image is another."""
    pairs = list(zip(found, expected, strict=False))
    others = sum(one["codes"] != other["codes"] for one, other in pairs)
    yield figure(f"digits: images of {len(pairs)} with other codes", others)
    read = [one["read"] == other["read"] for one, other in pairs if one["codes"] == other["codes"]]
    yield holds("digits: equal codes are read as equal digits", bool(read) and all(read), f"{sum(read)} of {len(read)}")
    agreement = [side.get("digits/agreement", float("nan")) for side in (values, expected_values)]
    bound = ERROR + others / max(len(pairs), 1)
    yield at_most("digits: agreement with captions, difference", abs(agreement[0] - agreement[1]), bound)


def _compare_completions(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    drawn = [(one["ids"], other["ids"]) for one, other in zip(found, expected, strict=False)]
    share = _share([(one[:SHORT], other[:SHORT]) for one, other in drawn])
    yield holds(f"completions: first {SHORT} ids equal", share >= SHARE, f"{share:.4f}", least=SHARE)
    yield figure("completions: ids equal", _share(drawn))


def _share(drawn: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Return the share of places that hold the same id; an id too many is another."""
    equal = sum(one == other for left, right in drawn for one, other in zip(left, right, strict=False))
    places = sum(max(len(left), len(right)) for left, right in drawn)
    return equal / places if places else float("nan")


def _compare_scores(kit: Kit, layout: VocabularyLayout, here: Transformer, on_cpu: Transformer) -> Iterator[Row]:
    """Score the choices of the cloze questions."""
    questions = [json.loads(line) for line in (ROOT / "cloze.jsonl").read_text().splitlines()]
    questions = questions[: 5 if kit.small else None]
    tokenizer, resolved = read_tokenizer(ROOT / "tokenizer.json"), layout.resolve(on_cpu.config.vocab_size)
    rows = resolved.text_ids

    def ids(text: str) -> tuple[int, ...]:
        return tuple(rows[token] for token in tokenizer.encode(text))

    requests = [
        Request(ids(question["query"])[-64:], ids(f" {choice}"))
        for question in questions
        for choice in question["choices"]
    ]
    found, expected = (score(model, resolved, requests, 8_192) for model in (here, on_cpu))
    names = [f"request {index}" for index in range(len(requests))]
    for field in ("logprob", "logprob_within"):
        error, worst = _worst(*([getattr(each, field) for each in side] for side in (found, expected)), names)
        yield at_most(f"cloze: {field} of {len(requests)} choices, relative", error, ERROR, worst=worst)
    answers = [_answers(side, len(questions)) for side in (found, expected)]
    same = sum(one == other for one, other in zip(*answers, strict=True)) / len(questions)
    yield holds("cloze: likeliest choices equal", same >= SHARE, f"{same:.4f}", least=SHARE)
    right = [sum(a == q["gold"] for a, q in zip(side, questions, strict=True)) / len(questions) for side in answers]
    yield figure("cloze: accuracy", right[0], cpu=right[1])


def _answers(scores: Sequence[Score], questions: int) -> list[int]:
    """Return the number of the likeliest choice of each question."""
    logprobs = torch.tensor([each.logprob_within for each in scores], dtype=torch.float64).view(questions, -1)
    return logprobs.argmax(1).tolist()


def _compare_codes(kit: Kit, layout: VocabularyLayout, here: Transformer, on_cpu: Transformer) -> Iterator[Row]:
    """Sample images of the captions with and without guidance."""
    resolved, tokenizer, length = layout.resolve(on_cpu.config.vocab_size), read_tokenizer(ROOT / "tokenizer.json"), 64
    captions = [json.loads(line) for line in (ROOT / "captions.jsonl").read_text().splitlines()]
    prompts = [
        Prompt(caption["id"], tuple(resolved.prompt(tokenizer.encode(caption["text"]), length).ids))
        for caption in captions[: 8 if kit.small else 128]
    ]
    unconditional = tuple(resolved.prompt(None, length).ids)
    assert resolved.image_ids is not None
    for scale in (1.0, 2.0):
        params = SamplingParams(guidance_scale=scale)
        spec = SamplerSpec(resolved.image_ids, length, params, min(len(prompts), 64), unconditional)
        found, expected = (codes_of(model, prompts, spec) for model in (here, on_cpu))
        share = share_equal(found, expected)
        what = f"{found.numel()} codes, guidance {scale:g}: equal"
        yield holds(what, share >= SHARE, f"{share:.5f}", least=SHARE)
