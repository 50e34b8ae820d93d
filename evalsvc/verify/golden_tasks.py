"""Comparing whole tasks on the miniature, from checkpoint to metric, with other programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import AssetMissing, InternalError
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import parse_suite
from evalsvc.verify.agreement import Agreement
from evalsvc.verify.golden_files import DECODER, ENGLISH, IMAGES, LAYOUT_FILE, TOKENIZER, TRAINED, Golden
from evalsvc.worker.local import run_suite

LOSS = 1e-5
"""Tolerance in nats: means over hundreds of tokens in float32."""
DISTANCE = 2e-5
"""Tolerance of a fid64 of 0.04: one pixel in thousands lies halfway between two levels and may be rounded either
way."""
LOGPROB = 5e-4
"""Tolerance in nats: sums of some ten log probabilities, each of logits of about 30 in float32."""


def verify_losses(golden: Golden) -> Iterator[Agreement]:
    """Compare mean losses of captions, codes and English, as the task `loss` measures them."""
    program = golden.program("open_lm")
    for name, file, checkpoint in (("pairs", "heldout_pairs", TRAINED), ("text", "heldout_text", ENGLISH)):
        expected = golden.values["losses"][name]
        task = {"kind": "loss", "name": name, "data": str(ROOT / f"{file}.jsonl"), "profile": False}
        task |= {"text_prefix": "layout"}  # as the golden values were computed
        values, _ = _measure(golden, task | {"limit": expected["sequences"]}, checkpoint)
        for kind in (kind for kind in expected if kind != "sequences"):
            quantity = f"task loss: {name}/{kind}"
            yield Agreement.of_numbers(quantity, program, values[f"{name}/{kind}"], expected[kind], LOSS, "nats")


def verify_digits(golden: Golden) -> Iterator[Agreement]:
    """Compare fid64 of sampled digits: captions, codes, pixels, features, distance."""
    expected = golden.values["digits"]
    task = {
        "kind": "text_to_image",
        "name": "digits",
        "captions": str(ROOT / "captions.jsonl"),
        "samples": expected["images"],
        "seed": golden.values["sampling"]["digits_seed"],
        "decoder": str(DECODER),
        "reference": str(IMAGES),
        "reference_of": "captions",
        "metrics": ["fid64"],
        "batch": 32,
        "keep": 0,
    }
    values, _ = _measure(golden, task, TRAINED)
    program = "golden, open_lm, MoVQGAN, clean-fid and torch-fidelity"
    note = f"{expected['images']} images, from weights to distance"
    yield Agreement.of_numbers(
        "task text_to_image: fid64", program, values["digits/fid64"], expected["fid64"], DISTANCE, note
    )


def verify_benchmark(golden: Golden) -> Iterator[Agreement]:
    """Compare token ids of texts, and accuracy and log-likelihoods of a benchmark's questions under lm-eval."""
    expected = golden.values["cloze"]
    encode = read_tokenizer(TOKENIZER).encode
    differing = sum(encode(text) != ids for text, ids in zip(expected["texts"], expected["ids"], strict=True))
    note = f"texts of {len(expected['ids'])} whose ids differ"
    yield Agreement("token ids", golden.program("tokenizers"), float(differing), 0.0, note=note)
    task = {
        "kind": "language",
        "benchmarks": ["cloze"],
        "include_path": [str(ROOT)],
        "limit": expected["questions"],
    }
    values, items = _measure(golden, task, ENGLISH)
    program = f"{golden.program('lm-eval')} over open_lm"
    yield Agreement.of_numbers("task language: cloze/acc", program, values["cloze/acc"], expected["accuracy"], 0.0)
    scores = [[score[0] for score in item["scores"]] for item in items]
    note = f"nats, {np.asarray(scores).size} options"
    yield Agreement.of_arrays("task language: log-likelihoods", program, scores, expected["scores"], LOGPROB, note)


def _measure(golden: Golden, task: dict[str, Any], checkpoint: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run one task on a checkpoint of the miniature; return its metrics by name, and its items."""
    suite = parse_suite({"tasks": [task]}, "machine")
    reference = CheckpointRef(str(checkpoint), layout=parse_layout(str(LAYOUT_FILE)).to_json())
    result = run_suite(suite, reference, lambda *_: None, settings=golden.settings)
    for error in result.errors.values():
        kind = AssetMissing if error.code == AssetMissing.code else InternalError
        raise kind(error.message)
    [items] = result.items.values()
    return {metric.name: float(metric.value) for metric in result.metrics}, items
