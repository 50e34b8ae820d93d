"""Folders of torch.distributed.checkpoint that torch wrote, and those that mean harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from distributed_folders import change_metadata, one_rank, save_as_ranks, save_distributed
from hostile_files import Calls, archive, tensor_pickle
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard

from evalsvc.checkpoints import distributed
from evalsvc.checkpoints.opening import opened
from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointError, NotACheckpoint, ShardedCheckpoint, UnsafeCheckpoint

MODEL = {
    "embed.weight": torch.randn(7, 10),
    "norm.weight": torch.randn(9).bfloat16(),
    "turned.weight": torch.randn(8, 6).t(),
    "half.weight": torch.randn(3, 4, 5, dtype=torch.float16),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
}
STATE = {name: {"exp_avg": value, "step": torch.tensor(1.0)} for name, value in MODEL.items()}
OPTIMIZER = {"state": STATE, "param_groups": [{"lr": 0.1, "params": list(MODEL)}]}
OTHERS = {"train_state": {"step": torch.tensor(5)}, "rng": torch.zeros(40, dtype=torch.uint8), "step": 5}


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({"model": MODEL, "optim": OPTIMIZER, **OTHERS}, "model"),
        ({**MODEL, "optimizer": {f"state.{name}.exp_avg": value for name, value in MODEL.items()}, **OTHERS}, ""),
        ({"app": {"model": MODEL, "optim": OPTIMIZER}}, "app.model"),
        ({"state_dict": {f"module._orig_mod.{name}": value for name, value in MODEL.items()}}, "state_dict"),
        ({"optimizer_0": OPTIMIZER, "parts": [dict(list(MODEL.items())[:3]), dict(list(MODEL.items())[3:])]}, "parts"),
    ],
    ids=["named", "at the root", "of an app", "wrapped", "in parts"],
)
def test_the_model_is_that_of_torchs_conversion(state: dict[str, Any], path: str, tmp_path: Path) -> None:
    save_distributed(tmp_path / "step-5", state)
    dcp_to_torch_save(tmp_path / "step-5", tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    for name in filter(None, path.split(".")):
        whole = whole[name]
    merged = {key: value for part in whole for key, value in part.items()} if isinstance(whole, list) else whole
    expected = {key.removeprefix("module._orig_mod."): value for key, value in merged.items() if key not in OTHERS}
    expected.pop("optimizer", None)
    found = read_weights(tmp_path / "step-5")
    assert found.format == "torch.distributed.checkpoint"
    assert found.tensors.keys() >= expected.keys() == MODEL.keys()
    assert tensor_digest(dict(found.tensors, rng=MODEL["count"])) == tensor_digest({**expected, "rng": MODEL["count"]})
    for name, value in expected.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found.tensors[name], value)


def test_a_state_of_fsdp_and_its_optimizer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 9))
    with one_rank():
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 5)).sum().backward()
        optimizer.step()
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optim": state}, checkpoint_id=tmp_path)
        expected = {name: value.full_tensor() for name, value in weights.items()}  # type: ignore[union-attr]
    assert tensor_digest(read_weights(tmp_path).tensors) == tensor_digest(expected)


def test_pieces_of_four_ranks(tmp_path: Path, child_process: None) -> None:
    """By FSDP, and sharded by rows and columns; some ranks have no row of a small tensor."""
    save_as_ranks(tmp_path / "step", 4)
    expected = torch.load(tmp_path / "step.pt")
    found = read_weights(tmp_path / "step").tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_folder_inside_a_steps_folder_and_the_average_beside_a_model(tmp_path: Path) -> None:
    for name in ("model_and_optim", "pytorch_model_fsdp_0"):
        averaged = {key: value + 1 for key, value in MODEL.items()}
        save_distributed(tmp_path / name / name, {"model": MODEL, "ema": averaged})
        (tmp_path / name / "train").mkdir()
        (tmp_path / name / "train" / "rank0.pt").write_bytes(b"x")
        found = read_weights(tmp_path / name)
        assert tensor_digest(found.tensors) == tensor_digest(MODEL)
        assert tensor_digest(found.averaged) == tensor_digest(averaged)


def test_operations_on_a_tensor_in_pieces(tmp_path: Path) -> None:
    """Whoever reads weights need not know that a tensor is in pieces; results are plain tensors."""
    save_distributed(tmp_path, {"model": MODEL})
    found, value = read_weights(tmp_path).tensors["embed.weight"], MODEL["embed.weight"]
    assert (found.dim(), found.numel(), found.is_floating_point(), found.is_meta) == (2, 70, True, False)
    pairs = [(found + 1, value + 1), (found[2:], value[2:]), (found.double(), value.double()), (found.t(), value.t())]
    pairs += [(torch.cat((found, found)), torch.cat((value, value))), (torch.zeros(7, 10).copy_(found), value)]
    for ours, theirs in pairs:
        assert type(ours) is Tensor
        assert torch.equal(ours, theirs)
    parameter = nn.Linear(10, 7, bias=False)
    parameter.load_state_dict({"weight": found})
    assert torch.equal(parameter.weight, value)


def test_the_files_that_were_opened_are_read(tmp_path: Path) -> None:
    """A training that replaces or deletes the folder, while a worker has the files open, changes nothing."""
    save_distributed(tmp_path / "step5" / "model_and_optim", {"model": MODEL, "optim": OPTIMIZER})
    (tmp_path / "step5" / "config.json").write_text("{}")
    before = hash_files(tmp_path / "step5")
    with opened(CheckpointRef(str(tmp_path / "step5"))) as pinned:
        (tmp_path / "step5").rename(tmp_path / "old")
        assert tensor_digest(read_weights(Path(pinned.path)).tensors) == tensor_digest(MODEL)
        assert hash_files(Path(pinned.path)) == before


def test_the_safetensors_of_torch_are_those_of_hugging_face(tmp_path: Path) -> None:
    writer = HuggingFaceStorageWriter(str(tmp_path), {name: 1 + (name < "f") for name in MODEL})
    with one_rank():
        dcp.save({name: value.contiguous() for name, value in MODEL.items()}, storage_writer=writer)
    assert tensor_digest(read_weights(tmp_path).tensors) == tensor_digest(MODEL)


def refused(folder: Path, errors: type[CheckpointError], words: str, read: Any = read_weights) -> None:
    with pytest.raises(errors, match=words):
        read(folder)


def test_what_is_no_single_model(tmp_path: Path) -> None:
    save_distributed(tmp_path / "two", {"actor": MODEL, "critic": MODEL})
    refused(tmp_path / "two", NotACheckpoint, "holds 2 models, under 'actor', 'critic'; save the model to evaluate")
    save_distributed(tmp_path / "none", {"optim": OPTIMIZER})
    refused(tmp_path / "none", NotACheckpoint, "holds no model")
    save_distributed(tmp_path / "one", {"model": MODEL})
    for name in (".metadata", "__0_0.distcp"):
        refused(tmp_path / "one" / name, NotACheckpoint, f"post its folder, {tmp_path / 'one'}")
    (tmp_path / "one" / "pytorch_model.bin").touch()
    refused(tmp_path / "one", NotACheckpoint, "holds .metadata and pytorch_model.bin, two sets of weights")
    (tmp_path / "one" / "pytorch_model.bin").unlink()
    (tmp_path / "one" / "__0_1.distcp").unlink()
    refused(tmp_path / "one", NotACheckpoint, "lacks __0_1.distcp, which .metadata names; copy all files")
    (tmp_path / "one" / ".metadata").unlink()
    refused(tmp_path / "one", NotACheckpoint, "has no .metadata yet, which a trainer writes last")


def test_files_cut_off(tmp_path: Path) -> None:
    save_distributed(tmp_path, {"model": MODEL}, files=1)
    os.truncate(tmp_path / "__0_0.distcp", 5000)
    refused(tmp_path, NotACheckpoint, r"__0_0.distcp is cut off: .* ends at byte [\d,]+, the file at 5,000; copy")
    content = (tmp_path / ".metadata").read_bytes()
    for part in (b"", b"text", content[:-1], content[: len(content) // 2], content.replace(b"Metadata", b"metadatA")):
        (tmp_path / ".metadata").write_bytes(part)
        refused(tmp_path, NotACheckpoint, r"\.metadata is damaged or not by torch.distributed.checkpoint")


def info(metadata: Any, name: str = "model.embed.weight", place: tuple[int, ...] = (0, 0)) -> Any:
    return metadata.storage_data[MetadataIndex(name, torch.Size(place))]


def entry(metadata: Any, name: str = "model.embed.weight") -> Any:
    return metadata.state_dict_metadata[name]


def chunk(metadata: Any, start: tuple[int, ...], sizes: tuple[int, ...], number: int = 0) -> None:
    entry(metadata).chunks[number] = ChunkStorageMetadata(torch.Size(start), torch.Size(sizes))


def shared(metadata: Any) -> None:
    """One list of empty pieces for many tensors."""
    chunks = [*entry(metadata).chunks, *[ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((0, 0)))] * 60_000]
    for name in ("model.embed.weight", "model.turned.weight"):
        entry(metadata, name).chunks = chunks
    metadata.state_dict_metadata["model.turned.weight"] = entry(metadata)
    for index in [index for index in metadata.storage_data if index.fqn == "model.embed.weight"]:
        metadata.storage_data[MetadataIndex("model.turned.weight", index.offset)] = metadata.storage_data[index]


def spelled(metadata: Any) -> None:
    """One long text in the paths of thousands of keys."""
    path = ("x" * 1_000_000,) * 1000
    for number in range(20_000):
        metadata.state_dict_metadata[f"{number}"] = entry(metadata)
        metadata.planner_data[f"{number}"] = path


def cyclic(metadata: Any) -> None:
    entry(metadata).chunks = loop = []
    loop.append(loop)


HOSTILE: dict[str, tuple[Callable[[Any], Any], type[CheckpointError], str]] = {
    "code": (
        lambda m: setattr(m, "planner_data", Calls(os.system, "touch ran")),
        UnsafeCheckpoint,
        "would run posix.s",
    ),
    "a class": (lambda m: setattr(m, "version", Calls(zipfile.ZipFile, "x")), UnsafeCheckpoint, "would run zipfile.Z"),
    "an import": (lambda m: setattr(m, "version", Calls(__import__, "os")), UnsafeCheckpoint, "run builtins.__import"),
    "leads out": (lambda m: setattr(info(m), "relative_path", "../x.distcp"), NotACheckpoint, "no .distcp file in the"),
    "absolute": (lambda m: setattr(info(m), "relative_path", "/x.distcp"), NotACheckpoint, "no .distcp file in the"),
    "null": (
        lambda m: setattr(info(m), "relative_path", "\0.distcp"),
        NotACheckpoint,
        r"names '.x00.distcp', which is no",
    ),
    "no text": (lambda m: setattr(info(m), "relative_path", [[]]), NotACheckpoint, "names something, which is no"),
    "another file": (lambda m: setattr(info(m), "relative_path", "config.json"), NotACheckpoint, "names config.json"),
    "outside": (lambda m: setattr(info(m), "offset", 10**12), NotACheckpoint, "is cut off"),
    "negative": (lambda m: setattr(info(m), "offset", -1), NotACheckpoint, "is damaged"),
    "long": (lambda m: setattr(info(m), "length", 10**12), NotACheckpoint, "is damaged"),
    "short": (lambda m: setattr(info(m), "length", 8), NotACheckpoint, "is damaged"),
    "on another": (lambda m: vars(info(m)).update(vars(info(m, place=(0, 5)))), NotACheckpoint, "is damaged"),
    "compressed": (lambda m: setattr(info(m), "transform_descriptors", ["z"]), ShardedCheckpoint, "dcp_to_torch"),
    "a gap": (lambda m: entry(m).chunks.pop(), NotACheckpoint, "pieces of model.embed.weight that overlap, leave gaps"),
    "an overlap": (lambda m: chunk(m, (0, 0), (4, 5)), NotACheckpoint, "overlap"),
    "twice": (lambda m: entry(m).chunks.append(entry(m).chunks[0]), NotACheckpoint, "overlap"),
    "beyond": (lambda m: chunk(m, (0, 0), (3, 50)), NotACheckpoint, "overlap"),
    "of no place": (lambda m: m.storage_data.pop(next(iter(m.storage_data))), NotACheckpoint, "overlap|damaged"),
    "flat": (lambda m: chunk(m, (0,), (3,)), NotACheckpoint, "overlap"),
    "larger": (lambda m: setattr(entry(m), "size", torch.Size((7, 11))), NotACheckpoint, "overlap"),
    "absurd": (lambda m: setattr(entry(m), "size", torch.Size((2**62, 10))), NotACheckpoint, "damaged"),
    "of a text": (lambda m: setattr(entry(m), "size", "7"), NotACheckpoint, "damaged"),
    "a dtype": (lambda m: setattr(entry(m).properties, "dtype", torch.complex128), NotACheckpoint, "as complex128, wh"),
    "a cycle": (cyclic, NotACheckpoint, "damaged"),
    "a list of all": (shared, ShardedCheckpoint, "more pieces than are read in place; save the model without its opt"),
    "long paths": (spelled, NotACheckpoint, "overlap"),
    "no pieces": (lambda m: setattr(m, "storage_data", None), NotACheckpoint, "damaged"),
    "no tensors": (lambda m: setattr(m, "state_dict_metadata", []), NotACheckpoint, "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_metadata_that_means_harm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, errors, words = HOSTILE[name]
    save_distributed(tmp_path / "step", {"model": MODEL})
    change_metadata(tmp_path / "step", change)
    begun = time.process_time()
    refused(tmp_path / "step", errors, words)
    assert time.process_time() - begun < 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step"]


START = b"\x80\x04"
FLOODS = {
    "dictionaries": b"}",
    "lists in a list": b"](" + b"]" * 1000 + b"e",
    "texts": b"\x8c\x02ab\x94",
    "nothing": b"N",
    "memo": b"N\x94\x94\x94",
    "marks": b"(",
    "tuples": b")\x85\x85\x85",
    "objects": b"\x8c\x05torch\x8c\x04Size\x93)R",
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_instructions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file each byte of which becomes an object; at a thirtieth of the size, where 100 MB are 3.3."""
    for limit in ("MAX_METADATA", "MAX_VALUES"):
        monkeypatch.setattr(distributed, limit, getattr(distributed, limit) // 30)
    unit = FLOODS[name]
    (tmp_path / ".metadata").write_bytes(START + unit * ((distributed.MAX_METADATA - 10) // len(unit)))
    tracemalloc.start()
    try:
        refused(tmp_path, ShardedCheckpoint, "more pieces than are read in place")
        assert tracemalloc.get_traced_memory()[1] - distributed.MAX_METADATA < 3_300_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (START + b")" + b"\x85" * 300_000 + b"}\x94h\x00" + b"N" * 2 + b"s.", NotACheckpoint),
        (START + b"})" + b"\x85" * 300_000 + b"Ns.", NotACheckpoint),  # a key that is hashed by recursion
        (START + b"Nr\xff\xff\xff\xff.", NotACheckpoint),  # the memo as a list of 4,000,000,000
        (START + b"h\x05.", NotACheckpoint),
        (START + b"\x8c\xffab.", NotACheckpoint),
        (START + b"X\xff\xff\xff\x7fab.", NotACheckpoint),
        (START + b"\x8a\xff" + b"\xff" * 255 + b"\x85.", NotACheckpoint),
        (START + b"e", NotACheckpoint),
        (START + b"R", NotACheckpoint),
        (START + b"NNb.", NotACheckpoint),
        (START + b"\x82\x01.", UnsafeCheckpoint),  # EXT1, a name from a registry
        (START + b"cos\nsystem\n(S'x'\ntR.", UnsafeCheckpoint),
        (START + b"\x8c\x02os\x8c\x06system\x93.", UnsafeCheckpoint),
        (START + b"\x8c\x15torch.distributed.checkpoint\x8c\x09os.system\x93.", CheckpointError),
        (START + b"(i__main__\nx\n.", UnsafeCheckpoint),
    ],
)
def test_pickles_that_are_no_metadata(content: bytes, errors: type[CheckpointError], tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    refused(tmp_path, errors, str(tmp_path))


def test_a_million_entries(tmp_path: Path) -> None:
    with (tmp_path / ".metadata").open("wb") as file:
        file.write(START)
        file.truncate(150_000_000)
    begun = time.process_time()
    refused(tmp_path, ShardedCheckpoint, "more pieces than are read in place")
    assert time.process_time() - begun < 1


def deflated(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", content)
        file.writestr("x/data/0", bytes(24))
    return stream.getvalue()


def tensor(shape: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1), count: int = 6, offset: int = 0) -> bytes:
    """The pickle of a tensor alone, as in a piece."""
    return tensor_pickle(shape, stride, count, offset, alone=True)


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        pickle.dumps(5, 2),
        tensor((2, 3), (0, 0), 1),  # six values from one
        tensor((2, 3), (3, 1), 5),
        tensor((2, 3), (3, 1), 6, offset=1),
        tensor((2, 3), (3, 1), 6, offset=-1),
        tensor((3, 2), (2, 1)),
        tensor((2, 3), (3, 1), 10**12),
        tensor((2, 3), (3, 1), 7),
    ],
)
def test_a_piece_that_is_not_what_the_metadata_says(content: bytes, tmp_path: Path) -> None:
    piece_of(tmp_path, content)
    refused(
        tmp_path, NotACheckpoint, "is not what .metadata says", lambda folder: read_weights(folder).tensors["w"] + 0
    )


def piece_of(folder: Path, pickled: bytes, **more: bytes) -> None:
    """Write a folder of one tensor whose only piece is an archive with this pickle."""
    save_distributed(folder, {"w": torch.ones(2, 3)}, files=1)
    archive(folder / "__0_0.distcp", pickled, bytes(24), **more)
    size = (folder / "__0_0.distcp").stat().st_size
    change_metadata(folder, lambda m: vars(info(m, "w")).update(offset=0, length=size))


def test_a_piece_by_hand_and_its_forms(tmp_path: Path) -> None:
    """That the pieces above are refused for what they say, and not for their form; then code in a piece."""
    piece_of(tmp_path / "good", tensor())
    assert read_weights(tmp_path / "good").tensors["w"].equal(torch.zeros(2, 3))
    content = (tmp_path / "good" / "__0_0.distcp").read_bytes()
    (tmp_path / "good" / "__0_0.distcp").write_bytes(content.replace(b"little", b"bigend"))

    def whole(folder: Path) -> Any:
        return read_weights(folder).tensors["w"].sum()

    refused(tmp_path / "good", NotACheckpoint, "is not what .metadata says", whole)
    piece_of(tmp_path / "code", pickle.dumps(Calls(os.system, f"touch {tmp_path}/ran"), 2))
    refused(tmp_path / "code", UnsafeCheckpoint, "__0_0.distcp at byte 0 would run posix.system", whole)
    piece_of(tmp_path / "deflated", tensor())
    (tmp_path / "deflated" / "__0_0.distcp").write_bytes(deflated(tensor()).ljust(2000, b"\0"))
    refused(tmp_path / "deflated", NotACheckpoint, "is not what .metadata says", whole)
    assert not (tmp_path / "ran").exists()


def test_an_archive_whose_directory_is_the_values(tmp_path: Path) -> None:
    """zipfile reads as many entries as the end of the archive claims, wherever they are."""
    count = 8_000_000
    save_distributed(tmp_path, {"w": torch.zeros(1, count)}, files=1)
    path = tmp_path / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    central = struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    claimed = len(central) * 600_000
    end = content.rindex(b"PK\5\6")
    content[end - claimed : end] = central * 600_000
    content[end:] = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, claimed, end - claimed, 0)
    path.write_bytes(content)
    change_metadata(tmp_path, lambda m: vars(info(m, "w")).update(length=len(content)))
    tracemalloc.start()
    try:
        refused(tmp_path, NotACheckpoint, "is not what .metadata says", lambda at: read_weights(at).tensors["w"] + 0)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_the_configuration_beside_the_steps(tmp_path: Path) -> None:
    """torchtitan writes none: one file in the folder of all steps serves every step, and only such steps."""
    from evalsvc.families.reading import find_model_config

    fields = {"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for name in ("step-10", "checkpoint-20/pytorch_model_fsdp_0"):
        save_distributed(tmp_path / name, {"model": MODEL})
    found = [find_model_config(tmp_path / name) for name in ("step-10", "checkpoint-20")]
    assert [config and config["hidden_dim"] for config in found] == [16, 16]
    (tmp_path / "other").mkdir()
    assert find_model_config(tmp_path / "other") is None
