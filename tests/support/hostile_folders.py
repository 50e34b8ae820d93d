"""Folders in Hugging Face's layout that are out to harm who opens them, by what is wrong with each; all are small."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "vocab_size": 80,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def llama_tensors() -> dict[str, Tensor]:
    """Small random weights that fit LLAMA."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (80, 16), "lm_head.weight": (80, 16), "model.norm.weight": (16,)}
    for layer in range(2):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}input_layernorm.weight": (16,),
            f"{name}post_attention_layernorm.weight": (16,),
            f"{name}self_attn.q_proj.weight": (16, 16),
            f"{name}self_attn.k_proj.weight": (8, 16),
            f"{name}self_attn.v_proj.weight": (8, 16),
            f"{name}self_attn.o_proj.weight": (16, 16),
            f"{name}mlp.gate_proj.weight": (24, 16),
            f"{name}mlp.up_proj.weight": (24, 16),
            f"{name}mlp.down_proj.weight": (16, 24),
        }
    return {name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}


def write_llama(folder: Path, **changes: Any) -> Path:
    """Write a sound folder, but for changes of the configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    save_file(llama_tensors(), folder / "model.safetensors")
    return folder


def write_shards(folder: Path, **changes: Any) -> dict[str, str]:
    """Write a sound folder of two shards; return the index's map, for changes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    tensors = llama_tensors()
    names = sorted(tensors)
    parts = {"first.safetensors": names[:10], "second.safetensors": names[10:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def config_of(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_llama(folder)
        (folder / "config.json").write_text(text)

    return make


def changed(**changes: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_llama(folder, **changes)

    return make


def tensors_of(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_llama(folder)
        tensors = llama_tensors()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return make


def index_of(change: Callable[[Path, dict[str, str]], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        weight_map = write_shards(folder)
        change(folder, weight_map)
        write_index(folder, weight_map)

    return make


def header_of(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A file whose header says other things than the library would write."""

    def make(folder: Path) -> None:
        write_llama(folder)
        path = folder / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        raw = json.dumps(header).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])

    return make


class _Touch:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {RAN}",)


RAN = "/tmp/evalsvc-a-checkpoint-ran-this"


def pickled(path: Path) -> None:
    """A pickle that runs a command when it is opened without care."""
    path.write_bytes(pickle.dumps({"state_dict": {}, "call": _Touch()}, 2))


@dataclass(frozen=True)
class Hostile:
    make: Callable[[Path], Any]
    code: str
    words: str


def _outside(folder: Path) -> Path:
    return folder.parents[1] / "outside"


def linked_config(folder: Path) -> None:
    write_llama(folder)
    (folder / "config.json").rename(_outside(folder) / "config.json")
    (folder / "config.json").symlink_to(_outside(folder) / "config.json")


def linked_shard(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "second.safetensors").rename(_outside(folder) / "second.safetensors")
    (folder / "second.safetensors").symlink_to(_outside(folder) / "second.safetensors")


def piped_config(folder: Path) -> None:
    write_llama(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def only_a_pickle(folder: Path) -> None:
    write_llama(folder)
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model.bin")


def pickled_shard(folder: Path, weight_map: dict[str, str]) -> None:
    pickled(folder / "second.safetensors")


def renamed(weight_map: dict[str, str], file: str) -> None:
    weight_map.update({name: file for name, other in weight_map.items() if other == "second.safetensors"})


def in_both(folder: Path, weight_map: dict[str, str]) -> None:
    save_file(llama_tensors(), folder / "second.safetensors")


def million(folder: Path, weight_map: dict[str, str]) -> None:
    weight_map.update({f"a{number}": f"{number}.safetensors" for number in range(1_000_000)})


def header_length(folder: Path) -> None:
    write_llama(folder)
    path = folder / "model.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def twice_in_header(folder: Path) -> None:
    write_llama(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    raw = content[8 : 8 + length].rstrip()
    raw = raw[:-1] + b',"lm_head.weight":{"dtype":"F32","shape":[80,16],"data_offsets":[0,5120]}}'
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({name: value})


Q = "model.layers.0.self_attn.q_proj.weight"
