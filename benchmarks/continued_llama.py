"""Continue a Llama on the miniature's captioned digits: data, layout and recipe for `paper/train.py`.

The captions and codes of training are those in `training_pairs.jsonl` of the miniature, the captions in ids of the
Llama's tokenizer. The table is widened by the miniature's 64 image rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from widened_llama import LAYOUT, TOKENIZER, widened_layout, write_layout

from evalsvc.miniature import ROOT

CODES = 64
"""Codes of the miniature's image tokenizer."""
TRAINER = Path(__file__).parent / "paper" / "train.py"
RECIPE: Mapping[str, Any] = {
    "steps": 200,
    "checkpoint_steps": [0, 10, 20, 50, 100, 200],
    "batch": 4,
    "learning_rate": 5e-4,
    "floor": 1,  # constant after the warm-up, so that a checkpoint does not depend on the number of steps
    "warm_up": 10,
    "image_rows": "like-text",
    "autocast": True,
    "state_every": 25,
    "optimizer_files": False,
}
"""Fields of the recipe; see `paper/trainer/recipe.py`."""


@dataclass(frozen=True)
class Record:
    """What a training took, and its losses."""

    seconds: float
    """Seconds of all steps, without the time of saving."""
    threads: int
    losses: list[float]
    """Mean loss of each step, in nats a token."""


def read_pairs(name: str) -> list[tuple[str, list[int]]]:
    """Return caption and codes of each line of one of the miniature's files of pairs."""
    decode = Tokenizer.from_file(str(ROOT / "tokenizer.json")).decode
    lines = [json.loads(line) for line in (ROOT / name).read_text().splitlines()]
    return [(decode(line["text_ids"]), line["image_codes"]) for line in lines]


def read_texts(name: str) -> list[str]:
    """Return the text of each line of one of the miniature's files of text."""
    decode = Tokenizer.from_file(str(ROOT / "tokenizer.json")).decode
    return [decode(json.loads(line)["text_ids"]) for line in (ROOT / name).read_text().splitlines()]


def kept_steps(recipe: Mapping[str, Any]) -> Sequence[int]:
    """Return the steps of a recipe's checkpoints."""
    return sorted({*recipe["checkpoint_steps"], recipe["steps"]})


def checkpoint_folder(work: Path, step: int) -> Path:
    return work / "training" / "checkpoints" / f"step_{step}"


def train(model_folder: Path, work: Path, recipe: Mapping[str, Any]) -> Record:
    """Train up to the last step, starting where an interrupted training stopped."""
    rows = json.loads((model_folder / "config.json").read_text())["vocab_size"]
    write_layout(widened_layout(rows, CODES), model_folder / TOKENIZER, work / LAYOUT)
    lines = [json.dumps({"text": text, "image_codes": codes}) for text, codes in read_pairs("training_pairs.jsonl")]
    (work / "training_pairs.jsonl").write_text("\n".join(lines) + "\n")
    places = {"start": str(model_folder.resolve()), "layout": LAYOUT, "data": "training_pairs.jsonl"}
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "continued", **places, **recipe}, sort_keys=False))
    threads = torch.get_num_threads()
    options = ["--work", str(work / "training"), "--threads", str(threads)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, str(TRAINER), str(path), *options], check=True, env=environment)
    log = [json.loads(line) for line in (work / "training" / "log.jsonl").read_text().splitlines()]
    return Record(log[-1]["seconds"], threads, [line["loss"] for line in log])
