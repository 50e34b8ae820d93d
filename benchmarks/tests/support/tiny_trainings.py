"""Trainings of a second: a tiny model of open_lm on a few captioned images of four codes, with text to replay."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from trainer.recipe import Recipe, Replay, parse_recipe

TEXT_ROWS, CODES, ROWS = 20, 8, 35
"""Rows of text, of images, and of the table with the seven special tokens."""
IMAGES = 12
SHAPE: dict[str, Any] = {
    "hidden_dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "seq_len": 32,
    "vocab_size": TEXT_ROWS,
    "post_embed_norm": False,
    "weight_tying": False,
}


def tiny_recipe(folder: Path, **changes: Any) -> Recipe:
    """Write data, layout and model into a folder, and return a recipe of six steps over them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps(SHAPE))
    layout = {"preset": "image-then-special", "text_size": TEXT_ROWS, "codebook_size": CODES, "rows": ROWS}
    (folder / "tiny-layout.yaml").write_text(yaml.safe_dump({**layout, "length": 24}))
    write_lines(folder / "pairs.jsonl", pairs())
    write_lines(folder / "text.jsonl", texts())
    fields = {
        "name": "tiny",
        "model": "tiny.json",
        "layout": "tiny-layout.yaml",
        "data": "pairs.jsonl",
        "steps": 6,
        "batch": 4,
        "learning_rate": 0.01,
        "warm_up": 2,
        "checkpoint_steps": [0, 3],
        "state_every": 2,
    }
    return parse_recipe({**fields, **changes}, "the recipe", folder)


def replay(folder: Path, share: float = 0.25) -> Replay:
    """Return a replay of the text that `tiny_recipe` writes."""
    return Replay(share, folder / "text.jsonl", length=8)


def pairs() -> list[dict[str, list[int]]]:
    """Return captions of one to five ids with the codes of their images, all different."""
    pick = random.Random(0)
    return [
        {"text_ids": pick.choices(range(TEXT_ROWS), k=1 + image % 5), "image_codes": pick.choices(range(CODES), k=4)}
        for image in range(IMAGES)
    ]


def texts() -> list[dict[str, list[int]]]:
    pick = random.Random(1)
    return [{"text_ids": pick.choices(range(TEXT_ROWS), k=40)} for _ in range(3)]


def write_lines(path: Path, records: list[dict[str, list[int]]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below `checkpoints/` by their path there."""
    root = folder / "checkpoints"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
