"""Folders in Hugging Face's layout that mean harm, each given to a worker as a checkpoint: refused, with what to do."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import calling
from safetensors.torch import save_file
from torch import Tensor

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.config import Settings
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.doctor.inspection import inspect_checkpoint
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.models import LanguageModel
from evalsvc.worker.context import ShardContext

SECONDS = 20

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
OUTSIDE = "outside the allowed folders"
INDEX, TITLE = "model.safetensors.index.json", "\x1b[2J\x1b]0;hostile\x07"
Q = "model.layers.0.self_attn.q_proj.weight"

RAN = "/tmp/evalsvc-a-checkpoint-ran-this"

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
LLAMA |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 80, "rms_norm_eps": 1e-5}
LLAMA |= {"rope_theta": 10_000.0, **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), False)}


def llama_tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {EMBEDDING: (80, 16), HEAD: (80, 16), "model.norm.weight": (16,)}
    parts = {"input_layernorm": (16,), "post_attention_layernorm": (16,), "mlp.down_proj": (16, 24)}
    parts |= {f"self_attn.{name}_proj": (rows, 16) for name, rows in (("q", 16), ("k", 8), ("v", 8), ("o", 16))}
    parts |= {f"mlp.{name}_proj": (24, 16) for name in ("gate", "up")}
    shapes |= {f"model.layers.{layer}.{name}.weight": shape for layer in range(2) for name, shape in parts.items()}
    return {name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}


def write_llama(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    save_file(llama_tensors(), folder / "model.safetensors")
    return folder


def write_shards(folder: Path) -> dict[str, str]:
    """Write a sound folder of two shards; return the index's map, for changes."""
    (write_llama(folder) / "model.safetensors").unlink()
    tensors = llama_tensors()
    names = sorted(tensors)
    parts = {"first.safetensors": names[:10], "second.safetensors": names[10:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


Make = Callable[[Path], Any]
Table = dict[str, dict[str, tuple[Make, str]]]


def changed(**changes: Any) -> Make:
    return lambda folder: write_llama(folder, **changes)


def folder_of(change: Callable[[Path], Any]) -> Make:
    return lambda folder: change(write_llama(folder))


def config_of(text: str) -> Make:
    return folder_of(lambda folder: (folder / "config.json").write_text(text))


def tensors_of(change: Callable[[dict[str, Tensor]], Any]) -> Make:
    def save(folder: Path) -> None:
        tensors = llama_tensors()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return folder_of(save)


def index_of(change: Callable[[Path, dict[str, str]], Any]) -> Make:
    def make(folder: Path) -> None:
        weight_map = write_shards(folder)
        change(folder, weight_map)
        write_index(folder, weight_map)

    return make


def rewritten(change: Callable[[bytes], bytes]) -> Make:
    """A file whose header is another text than the library would write."""

    def write(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        raw = change(content[8 : 8 + length])
        (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])

    return folder_of(write)


def entry(name: str, **fields: Any) -> Make:
    """A file whose header says something else of a tensor."""

    def change(raw: bytes) -> bytes:
        header = json.loads(raw)
        header[name].update(fields)
        return json.dumps(header).encode()

    return rewritten(change)


def pickled(path: Path) -> None:
    path.write_bytes(calling(os.system, f"touch {RAN}"))


def only_a_pickle(folder: Path) -> None:
    pickled((folder / "model.safetensors").rename(folder / "pytorch_model.bin"))


def linked(folder: Path, name: str) -> None:
    """Put a file outside, and a link in its place."""
    outside = folder.parents[1] / "outside" / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def lengthened(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def renamed(weight_map: dict[str, str], file: str) -> None:
    weight_map.update({name: file for name, other in weight_map.items() if other == "second.safetensors"})


def put(*names: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda content: content.update({name: value.clone() for name in names})


TWICE = b',"lm_head.weight":{"dtype":"F32","shape":[80,16],"data_offsets":[0,5120]}}'

HOSTILE: Table = {
    "unsupported_model": {
        "code of its own": (changed(auto_map={"AutoModelForCausalLM": "modeling.Evil"}), "never run"),
        "quantised weights": (changed(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
        "a scaling nobody knows": (changed(rope_scaling={"rope_type": "hostile", "factor": 2.0}), "rope"),
    },
    "invalid_model_config": {
        "a huge width": (changed(hidden_size=2**40), "hidden_size"),
        "millions of layers": (changed(num_hidden_layers=2**30), "num_hidden_layers"),
        "a negative size": (changed(num_attention_heads=-4), "num_attention_heads"),
        "no heads": (changed(num_key_value_heads=0), "num_key_value_heads"),
        "heads that do not divide": (changed(num_key_value_heads=3), "no multiple of the 3"),
        "a fraction of a width": (changed(hidden_size=16.5), "hidden_size"),
        "a width as text": (changed(hidden_size="16"), "hidden_size"),
        "no number": (changed(rms_norm_eps=float("nan")), "norm"),
        "an endless base": (changed(rope_theta=float("inf"), rope_parameters=None), "finite number"),
        "a number of many digits": (config_of('{"hidden_size": 1' + "0" * 9999 + "}"), "not JSON"),
        "deep nesting": (config_of('{"a":' * 100_000), "is not JSON"),
        "a list": (config_of('["llama"]'), "holds a list"),
        "a configuration of megabytes": (config_of(json.dumps({**LLAMA, "a": "a" * 10_000_000})), "larger than"),
        "a configuration of many values": (config_of(json.dumps({**LLAMA, "a": [[]] * 500_000})), "more than 500,000"),
        "a configuration that is a pipe": (folder_of(lambda folder: piped(folder / "config.json")), "config.json"),
    },
    "checkpoint_mismatch": {
        "a huge table": (changed(vocab_size=2**26), "vocab_size 67108864 is larger than"),
        "a shape that contradicts": (tensors_of(put(Q, value=torch.zeros(16, 32))), "[16, 32] instead of [16, 16]"),
        "a wider table": (
            tensors_of(put(HEAD, EMBEDDING, value=torch.zeros(96, 16))),
            "vocab_size 80 is smaller than its 96 rows",
        ),
        "whole numbers": (tensors_of(put(Q, value=torch.zeros(16, 16, dtype=torch.int8))), "no plain floating-point"),
        "a parameter under two names": (tensors_of(put(Q[6:], value=torch.zeros(16, 16))), "one parameter"),
        "a name that writes to a terminal": (tensors_of(put(TITLE, value=torch.zeros(1))), "unexpected"),
        "a tensor in two files": (
            index_of(lambda folder, _: save_file(llama_tensors(), folder / "second.safetensors")),
            "is in two of the files",
        ),
    },
    "checkpoint_not_allowed": {
        "a configuration outside": (folder_of(lambda folder: linked(folder, "config.json")), OUTSIDE),
        "a file outside by a link": (index_of(lambda folder, _: linked(folder, "second.safetensors")), OUTSIDE),
    },
    "non_finite": {"NaN": (tensors_of(put(Q, value=torch.full((16, 16), torch.nan))), "NaN or infinity")},
    "not_a_checkpoint": {
        "a header longer than the file": (folder_of(lambda folder: lengthened(folder / "model.safetensors")), ""),
        "offsets beyond the file": (entry(HEAD, data_offsets=[0, 2**50]), "cut off"),
        "offsets that overlap": (entry(Q, data_offsets=[0, 1024]), "damaged"),
        "a shape larger than its bytes": (entry(HEAD, shape=[2**31, 2**31]), "damaged"),
        "a negative shape": (entry(HEAD, shape=[-80, -16]), "damaged"),
        "a tensor twice in a header": (rewritten(lambda raw: raw.rstrip()[:-1] + TWICE), "damaged safetensors header"),
        "a file above the folder": (index_of(lambda _, names: renamed(names, "../second.safetensors")), "same folder"),
        "a file by its whole path": (index_of(lambda _, names: renamed(names, "/etc/passwd")), "the same folder"),
        "a missing file": (index_of(lambda folder, _: (folder / "second.safetensors").unlink()), "is missing from"),
        "an index of itself": (index_of(lambda _, names: renamed(names, INDEX)), "not a weights file"),
    },
    "unsafe_checkpoint": {
        "only a pickle": (folder_of(only_a_pickle), "would run posix.system"),
        "a pickle among the files": (index_of(lambda folder, _: pickled(folder / "second.safetensors")), ""),
    },
}

LARGE: Table = {
    "checkpoint_mismatch": {"hundreds of layers": (changed(num_hidden_layers=512), "missing")},
    "not_a_checkpoint": {
        "an index of a million names": (
            index_of(lambda _, names: names.update({f"a{i}": f"{i}.safetensors" for i in range(1_000_000)})),
            "is missing from",
        )
    },
}
"""Those that take seconds to write, or to refuse."""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a folder in the roots, and a folder `outside` next to these."""
    (tmp_path / "roots").mkdir()
    (tmp_path / "outside").mkdir()
    monkeypatch.setenv("EVALSVC_ROOTS", str(tmp_path / "roots"))
    return tmp_path / "roots" / "model"


def load(folder: Path) -> LanguageModel:
    settings = Settings(devices="cpu", threads=1, roots=str(folder.parent))
    path, _ = locate_checkpoint(str(folder), settings)
    context = ShardContext(CheckpointRef(path, label="step 1"), settings, lambda done: None)
    return context.model(dtype="float32", rotary_inv_freq_dtype="auto")


def test_a_sound_folder_is_read(opened: Path) -> None:
    """What the hostile ones differ from."""
    write_llama(opened)
    whole = load(opened).logits(torch.arange(6)[None])
    write_shards(opened.parent / "sharded")
    assert torch.equal(load(opened.parent / "sharded").logits(torch.arange(6)[None]), whole)


def cases(table: Table) -> list[Any]:
    return [pytest.param(*case, code, id=name) for code, rows in table.items() for name, case in rows.items()]


@pytest.mark.parametrize(("make", "words", "code"), cases(HOSTILE))
def test_a_hostile_folder_is_refused(make: Make, code: str, words: str, opened: Path) -> None:
    """In time, by an instruction without control characters, and without running anything."""
    make(opened)
    Path(RAN).unlink(missing_ok=True)
    began = time.monotonic()
    with pytest.raises(EvalsvcError) as caught:
        load(opened)
    assert time.monotonic() - began < SECONDS
    assert (caught.value.code, words in caught.value.message) == (code, True), caught.value.message
    assert ";" in caught.value.message or ":" in caught.value.message, "what was found, and what to do"
    assert len(caught.value.message) < 3_000
    assert caught.value.message.isprintable(), "a terminal obeys control characters"
    began = time.monotonic()
    inspection = inspect_checkpoint(opened, Settings(devices="cpu", threads=1, roots=str(opened.parent)))
    assert time.monotonic() - began < SECONDS
    refusal = next((check for check in inspection.checks if check.needed and not check.ok), None)
    assert (refusal is None) == (code == "non_finite"), "values are not read"
    assert refusal is None or inspection.facts["error"] == code
    assert all(text.isprintable() for check in inspection.checks for text in (check.found, check.do))
    assert refusal is None or not any("evalsvc run" in command for command in inspection.commands)
    assert not os.path.exists(RAN)


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(("make", "words", "code"), cases(LARGE))
def test_so_is_a_large_one(make: Make, code: str, words: str, opened: Path) -> None:
    test_a_hostile_folder_is_refused(make, code, words, opened)


def test_a_pickle_next_to_safetensors_is_not_opened(opened: Path) -> None:
    write_llama(opened)
    expected = load(opened).logits(torch.arange(6)[None])
    other = write_llama(opened.parent / "other")
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        pickled(other / name)
    assert torch.equal(load(other).logits(torch.arange(6)[None]), expected)
    assert not os.path.exists(RAN)


def test_a_tokenizer_of_more_than_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.touch()
    os.truncate(path, 100_000_001)
    with pytest.raises(InvalidData, match="is larger than 100,000,000 bytes"):
        read_tokenizer(path)
