"""Every task, once for each family and once for `model: transformers`, with equal numbers, codes and texts.

The models are small and random, as wide as the miniature's layout, and written by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from benchmark_files import questions, write_benchmark
from miniature_run import DECODER, LAYOUT
from task_runs import items, metrics, run_task
from torch import Tensor

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.miniature import ROOT
from evalsvc.worker.context import ShardContext

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "gpt_neox")
TRANSFORMERS = {"family": "transformers"}
ROWS = 583
SIZES = {"vocab_size": ROWS, "max_position_embeddings": 256}
DIGITS = {"decoder": DECODER, "classifier": str(ROOT / "classifier.safetensors"), "metrics": []}
DIGITS |= {"samples": 8, "batch": 4}
PAIRS = str(ROOT / "heldout_pairs.jsonl")
TEXT = str(ROOT / "heldout_text.jsonl")
TASKS: dict[str, dict[str, Any]] = {
    "loss": {"data": PAIRS, "limit": 6},
    "text_to_image": {"captions": str(ROOT / "captions.jsonl"), **DIGITS, "guidance_scale": 2.0},
    "completions": {"max_tokens": 6, "prompts": ["one", "a red three"]},
    "language": {"benchmarks": ["sums", "free"], "max_length": 100},
    "forgetting": {"benchmarks": ["sums"], "text": TEXT, "text_limit": 3, "max_length": 100},
    "alignment": {"data": PAIRS, "limit": 60, "permutations": 9},
}

pytestmark = pytest.mark.usefixtures("reference_models", "one_thread")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model"
    tiny_families.write_theirs(request.param, path, **SIZES)
    return path


def reference(folder: Path, model: dict[str, Any] | None) -> CheckpointRef:
    return CheckpointRef(str(folder), model=model, layout=LAYOUT, label="the checkpoint")


def test_logits_of_a_model_in_half_precision(folder: Path) -> None:
    ids = torch.arange(24).view(2, 12)

    def logits(dtype: str, model: dict[str, Any] | None) -> Tensor:
        context = ShardContext(reference(folder, model), Settings(devices="cpu", threads=1), lambda done: None)
        return context.model(dtype=dtype, rotary_inv_freq_dtype="auto").logits(ids)

    exact = logits("float32", None)
    for model in (None, TRANSFORMERS):
        assert (logits("bfloat16", model) - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_gives_the_same_numbers(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one protocol, so that they are one series in a history."""
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    task = {"kind": kind, "name": kind, **TASKS[kind]}
    if "benchmarks" in task:
        write_benchmark(tmp_path, "sums", questions(4), fewshot_split="test")
        free = {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "{{choices[gold]}}"}
        accuracy = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        stops = {"until": ["\n\n"], "max_gen_toks": 3}
        write_benchmark(tmp_path, "free", questions(3), **free, generation_kwargs=stops, metric_list=[accuracy])
        task["include_path"] = [str(tmp_path)]
    base = None
    if kind == "forgetting":
        base = tmp_path / "base"
        tiny_families.write_ours(json.loads((folder / "config.json").read_text())["model_type"], base, seed=1, **SIZES)
    ours, theirs = (
        run_task(reference(folder, model), None if base is None else reference(base, model), **task)
        for model in (None, TRANSFORMERS)
    )
    by_name = metrics(theirs)
    assert metrics(ours).keys() == by_name.keys() != set()
    for name, metric in metrics(ours).items():
        assert metric["value"] == pytest.approx(by_name[name]["value"], rel=2e-3, abs=1e-4), name
        assert ours["protocols"][metric["protocol"]] == theirs["protocols"][by_name[name]["protocol"]]
    assert [item.keys() for item in items(ours)] == [item.keys() for item in items(theirs)]
    for drawn in ("codes", "ids", "text"):
        assert [item.get(drawn) for item in items(ours)] == [item.get(drawn) for item in items(theirs)]
