"""Adapters that lie, and adapters that are more than LoRA."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from adapters import write_by_hand
from hostile_files import archive, calling
from safetensors.torch import save_file

from evalsvc.checkpoints.adapter import MAX_RANK, read_adapter
from evalsvc.checkpoints.formats import is_adapter
from evalsvc.errors import EvalsvcError

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def pair(rank: int = 2, **others: Any) -> dict[str, Any]:
    return {A: torch.ones(rank, 8), B: torch.ones(8, rank), **others}


def pickled(content: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_by_hand(folder)
        (folder / "adapter_model.safetensors").unlink()
        if isinstance(content, bytes):
            archive(folder / "adapter_model.bin", content)
        else:
            torch.save(content, folder / "adapter_model.bin")

    return make


def linked(folder: Path) -> None:
    write_by_hand(folder)
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


def config(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_by_hand(folder)
        (folder / "adapter_config.json").write_text(text)

    return make


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (pickled(calling(os.system, "touch it-ran")), "would run posix.system when it is opened"),
    "a view of one value": (pickled(pair() | {A: torch.ones(1).expand(2, 10**9)}), "no plain tensor with all its data"),
    "a sparse tensor": (pickled(pair() | {A: torch.ones(2, 8).to_sparse()}), "no plain tensor with all its data"),
    "no tensor": (pickled(pair(x=7)), "holds other things than tensors: x"),
    "a pipe": (linked, "is not a regular file"),
    "an index": (lambda f: (write_by_hand(f) / "adapter_model.safetensors").write_text('{"x": 1}      '), "is JSON"),
    "cut off": (lambda f: os.truncate(write_by_hand(f) / "adapter_model.safetensors", 90), "is cut off"),
    "NaN": (lambda f: write_by_hand(f, pair() | {A: torch.full((2, 8), torch.nan)}), "NaN or infinity in base_model"),
    "one factor": (lambda f: write_by_hand(f, {A: torch.ones(2, 8)}), "q_proj has one factor of two"),
    "no matrix": (lambda f: write_by_hand(f, pair() | {A: torch.ones(2, 8, 1)}), "no part of plain LoRA"),
    "another rank": (lambda f: write_by_hand(f, pair(3)), "factors of the shapes [8, 3] and [3, 8], not the rank"),
    "a huge rank": (lambda f: write_by_hand(f, {A: torch.ones(MAX_RANK + 1, 1), B: torch.ones(1, MAX_RANK + 1)},
                                            r=MAX_RANK + 1), "[65537, 1], not the rank"),
    "no rank": (lambda f: write_by_hand(f, r=0), "not the rank of its configuration"),
    "a rank in words": (lambda f: write_by_hand(f, r="2"), "not the rank of its configuration"),
    "an infinite factor": (config('{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999}'), "lora_alpha of layers.0"),
    "many patterns": (lambda f: write_by_hand(f, {f"{MODULE}{number}.lora_A.weight": torch.ones(2, 1)
        for number in range(300)}, alpha_pattern={f"x{number}": 1 for number in range(40_000)}), "names 40,000 "),
    "a slow pattern": (lambda f: write_by_hand(f, alpha_pattern={"(a+)+$" * 50: 1}), "no regular expressions"),
    "patterns in a list": (lambda f: write_by_hand(f, rank_pattern=["q_proj"]), "rank_pattern is no object of names"),
    "another kind": (lambda f: write_by_hand(f, peft_type="IA3"), "peft_type is IA3, "),
    "no kind": (config("{}"), "peft_type is None, "),
    "a key of the future": (lambda f: write_by_hand(f, use_tricks={"a": 1}), "sets use_tricks, which evalsvc"),
    "a start of a list": (lambda f: write_by_hand(f, init_lora_weights=["pissa"]), "which is not plain LoRA"),
    "two names of one": (lambda f: write_by_hand(f, pair(**{A.replace("model.model.", "model."): torch.ones(2, 8),
        B.replace("model.model.", "model."): torch.ones(8, 2)})), "under two names"),
    "a control character": (lambda f: write_by_hand(f, **{"x\n\x1b[2J": 1}), r"sets 'x\n\x1b[2J'"),
    "magnitudes": (lambda f: write_by_hand(f, pair(**{f"{MODULE}.lora_magnitude_vector": torch.ones(8)})), "no part"),
    "a name without a place": (lambda f: write_by_hand(f, pair(**{"x.weight": torch.ones(8)})), "x.weight, which is"),
    "deep JSON": (config('{"a":' * 100_000), "is not JSON"),
    "large JSON": (config('{"peft_type": "' + "x" * 2_000_000 + '"}'), "is larger than 1,000,000 bytes"),
    "a list of JSON": (config("[]"), "holds a list"),
    "no configuration": (lambda f: (write_by_hand(f) / "adapter_config.json").unlink(), "without adapter_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_adapter_is_refused_at_once_and_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = BAD[name]
    make(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    before, since = psutil.Process().memory_info().rss, time.process_time()
    with pytest.raises(EvalsvcError) as caught:
        read_adapter(tmp_path / "adapter")
    assert words in caught.value.message
    assert len(caught.value.message) < 1000
    assert time.process_time() - since < 1
    assert psutil.Process().memory_info().rss - before < 100_000_000
    assert not (tmp_path / "it-ran").exists()


def test_a_million_tensors(tmp_path: Path) -> None:
    """The header of the file is bounded, and nothing is read of it."""
    folder = write_by_hand(tmp_path / "adapter")
    entry = {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}
    header = json.dumps({f"base_model.model.{number}.lora_A.weight": entry for number in range(300_000)}).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
    since = time.process_time()
    with pytest.raises(EvalsvcError, match=r"claims a safetensors header of .* too many for a model"):
        read_adapter(folder)
    assert time.process_time() - since < 1


def test_factors_and_whole_tensors_have_the_names_of_the_base(tmp_path: Path) -> None:
    embedding = "base_model.model.model.embed_tokens"
    tensors = pair(**{
        f"{embedding}.lora_embedding_A": torch.ones(2, 20), f"{embedding}.lora_embedding_B": torch.ones(8, 2),
        f"{embedding}.base_layer.weight": torch.ones(20, 8), "base_model.model.lm_head.weight": torch.ones(20, 8),
    })  # fmt: skip
    found = read_adapter(write_by_hand(tmp_path, tensors, lora_alpha=6, alpha_pattern={"layers.0.self_attn.q_proj": 1}))
    shapes = {name: (list(each.left.shape), list(each.right.shape), each.scale) for name, each in found.added.items()}
    query, table = "layers.0.self_attn.q_proj.weight", "embed_tokens.weight"
    assert shapes == {query: ([8, 2], [2, 8], 0.5), table: ([20, 2], [2, 8], 3.0)}
    assert sorted(found.whole) == ["embed_tokens.weight", "lm_head.weight"]


def test_what_is_an_adapter(tmp_path: Path) -> None:
    """The folder of a whole model may keep the adapter that was merged into it."""
    folder = write_by_hand(tmp_path / "adapter")
    assert is_adapter(folder)
    assert not is_adapter(folder / "adapter_model.safetensors")
    assert not is_adapter(tmp_path)
    save_file(pair(), folder / "model.safetensors")
    assert not is_adapter(folder)
