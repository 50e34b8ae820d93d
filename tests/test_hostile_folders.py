"""Folders in Hugging Face's layout that mean harm, each given to a worker as a checkpoint: refused, with what to do."""

import json
import os
import time
from pathlib import Path

import hostile_folders as made
import pytest
import torch
from hostile_folders import Hostile, changed, config_of, header_of, index_of, put, tensors_of

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.config import Settings
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.models import LanguageModel
from evalsvc.worker.context import ShardContext

SECONDS = 20
"""Time that no refusal may take."""

HEAD, Q = "lm_head.weight", made.Q

HOSTILE: dict[str, Hostile] = {
    # the configuration
    "code of its own": Hostile(
        changed(auto_map={"AutoModelForCausalLM": "modeling.Evil"}), "unsupported_model", "never run"
    ),
    "a huge width": Hostile(changed(hidden_size=2**40), "invalid_model_config", "hidden_size"),
    "a huge table": Hostile(changed(vocab_size=2**26), "checkpoint_mismatch", "vocab_size 67108864 is larger than"),
    "millions of layers": Hostile(changed(num_hidden_layers=2**30), "invalid_model_config", "num_hidden_layers"),
    "a negative size": Hostile(changed(num_attention_heads=-4), "invalid_model_config", "num_attention_heads"),
    "no heads": Hostile(changed(num_key_value_heads=0), "invalid_model_config", "num_key_value_heads"),
    "heads that do not divide": Hostile(changed(num_key_value_heads=3), "invalid_model_config", "no multiple of the 3"),
    "a fraction of a width": Hostile(changed(hidden_size=16.5), "invalid_model_config", "hidden_size"),
    "a width as text": Hostile(changed(hidden_size="16"), "invalid_model_config", "hidden_size"),
    "no number": Hostile(changed(rms_norm_eps=float("nan")), "invalid_model_config", "norm"),
    "an endless base": Hostile(
        changed(rope_theta=float("inf"), rope_parameters=None), "invalid_model_config", "finite number"
    ),
    "a number of many digits": Hostile(
        config_of('{"model_type": "llama", "hidden_size": 1' + "0" * 9999 + "}"), "invalid_model_config", "is not JSON"
    ),
    "deep nesting": Hostile(config_of('{"a":' * 100_000), "invalid_model_config", "is not JSON"),
    "a list": Hostile(config_of('["llama"]'), "invalid_model_config", "holds a list"),
    "a configuration of megabytes": Hostile(
        config_of(json.dumps({**made.LLAMA, "a": "a" * 2_000_000})), "invalid_model_config", "larger than"
    ),
    "a configuration outside": Hostile(made.linked_config, "checkpoint_not_allowed", "outside the allowed folders"),
    "a configuration that is a pipe": Hostile(made.piped_config, "invalid_model_config", "config.json"),
    "quantised weights": Hostile(
        changed(quantization_config={"quant_method": "gptq", "bits": 4}), "unsupported_model", "quantised"
    ),
    "a scaling nobody knows": Hostile(
        changed(rope_scaling={"rope_type": "hostile", "factor": 2.0}), "unsupported_model", "rope"
    ),
    # the weights
    "a shape that contradicts": Hostile(
        tensors_of(put(Q, torch.zeros(16, 32))), "checkpoint_mismatch", "[16, 32] instead of [16, 16]"
    ),
    "a wider table": Hostile(
        tensors_of(
            lambda found: found.update({HEAD: torch.zeros(96, 16), "model.embed_tokens.weight": torch.zeros(96, 16)})
        ),
        "checkpoint_mismatch",
        "vocab_size 80 is smaller than its 96 rows",
    ),
    "whole numbers": Hostile(
        tensors_of(put(Q, torch.zeros(16, 16, dtype=torch.int8))), "checkpoint_mismatch", "no plain floating-point"
    ),
    "NaN": Hostile(tensors_of(put(Q, torch.full((16, 16), torch.nan))), "non_finite", "NaN or infinity"),
    "a parameter under two names": Hostile(
        tensors_of(put("layers.0.self_attn.q_proj.weight", torch.zeros(16, 16))), "checkpoint_mismatch", "one parameter"
    ),
    "a name that writes to a terminal": Hostile(
        tensors_of(put("\x1b[2J\x1b]0;hostile\x07", torch.zeros(1))), "checkpoint_mismatch", "unexpected"
    ),
    "a header longer than the file": Hostile(made.header_length, "not_a_checkpoint", ""),
    "offsets beyond the file": Hostile(
        header_of(lambda header: header[HEAD].update(data_offsets=[0, 2**50])), "not_a_checkpoint", "cut off"
    ),
    "offsets that overlap": Hostile(
        header_of(lambda header: header[HEAD].update(data_offsets=header[Q]["data_offsets"])),
        "not_a_checkpoint",
        "damaged",
    ),
    "a shape larger than its bytes": Hostile(
        header_of(lambda header: header[HEAD].update(shape=[2**31, 2**31])), "not_a_checkpoint", "damaged"
    ),
    "a negative shape": Hostile(
        header_of(lambda header: header[HEAD].update(shape=[-80, -16])), "not_a_checkpoint", "damaged"
    ),
    "a tensor twice in a header": Hostile(made.twice_in_header, "not_a_checkpoint", "damaged safetensors header"),
    "only a pickle": Hostile(made.only_a_pickle, "unsafe_checkpoint", "would run posix.system"),
    # an index and its files
    "a file above the folder": Hostile(
        index_of(lambda _, names: made.renamed(names, "../second.safetensors")), "not_a_checkpoint", "the same folder"
    ),
    "a file by its whole path": Hostile(
        index_of(lambda _, names: made.renamed(names, "/etc/passwd")), "not_a_checkpoint", "the same folder"
    ),
    "a file outside by a link": Hostile(
        index_of(made.linked_shard), "checkpoint_not_allowed", "outside the allowed folders"
    ),
    "a missing file": Hostile(
        index_of(lambda folder, _: (folder / "second.safetensors").unlink()), "not_a_checkpoint", "is missing from"
    ),
    "a tensor in two files": Hostile(index_of(made.in_both), "checkpoint_mismatch", "is in two of the files"),
    "an index of itself": Hostile(
        index_of(lambda _, names: made.renamed(names, "model.safetensors.index.json")),
        "not_a_checkpoint",
        "not a weights file",
    ),
    "a pickle among the files": Hostile(index_of(made.pickled_shard), "unsafe_checkpoint", ""),
}

LARGE = {
    "hundreds of layers": Hostile(changed(num_hidden_layers=512), "checkpoint_mismatch", "missing"),
    "an index of a million names": Hostile(index_of(made.million), "not_a_checkpoint", "is missing from"),
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
    """As a worker does."""
    settings = Settings(devices="cpu", threads=1, roots=str(folder.parent))
    path, _ = locate_checkpoint(str(folder), settings)
    context = ShardContext(CheckpointRef(path, label="step 1"), settings, lambda done: None)
    return context.model(dtype="float32", rotary_inv_freq_dtype="auto")


def test_a_sound_folder_is_read(opened: Path) -> None:
    """What the hostile ones differ from."""
    made.write_llama(opened)
    whole = load(opened).logits(torch.arange(6)[None])
    made.write_shards(opened.parent / "sharded")
    assert torch.equal(load(opened.parent / "sharded").logits(torch.arange(6)[None]), whole)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused(name: str, opened: Path) -> None:
    is_refused(HOSTILE[name], opened)


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("name", LARGE)
def test_so_is_a_large_one(name: str, opened: Path) -> None:
    is_refused(LARGE[name], opened)


def is_refused(hostile: Hostile, opened: Path) -> None:
    """In time, by an instruction without control characters, and without running anything."""
    hostile.make(opened)
    Path(made.RAN).unlink(missing_ok=True)
    began = time.monotonic()
    with pytest.raises(EvalsvcError) as caught:
        load(opened)
    assert time.monotonic() - began < SECONDS
    assert (caught.value.code, hostile.words in caught.value.message) == (hostile.code, True), caught.value.message
    assert ";" in caught.value.message or ":" in caught.value.message, "what was found, and what to do"
    assert len(caught.value.message) < 3_000
    assert caught.value.message.isprintable(), "a terminal obeys control characters"
    assert not os.path.exists(made.RAN)


def test_a_pickle_next_to_safetensors_is_not_opened(opened: Path) -> None:
    made.write_llama(opened)
    expected = load(opened).logits(torch.arange(6)[None])
    other = made.write_llama(opened.parent / "other")
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        made.pickled(other / name)
    assert torch.equal(load(other).logits(torch.arange(6)[None]), expected)
    assert not os.path.exists(made.RAN)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":' * 100_000,
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"] * 9}}).encode(),
        b"\x80\x02cposix\nsystem\n",
        b"",
    ],
    ids=["deep", "negative", "merges of nothing", "pickle", "empty"],
)
def test_a_hostile_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InvalidData, match=r"not a tokenizer\.json that works"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_more_than_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.touch()
    os.truncate(path, 100_000_001)
    with pytest.raises(InvalidData, match="is larger than 100,000,000 bytes"):
        read_tokenizer(path)
