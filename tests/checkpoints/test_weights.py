"""Every format that holds an open_lm model, and every file that looks like one and is not."""

import hashlib
import json
import re
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_files import LEGACY_TORCH_MAGIC, entry, safetensors
from safetensors.torch import save_file
from torch import Tensor

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.checkpoints.weights import load_torch as load
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import (
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    NotACheckpoint,
    UnsupportedModel,
)

ONE = torch.ones(1)


@pytest.fixture
def epoch_file(open_lm_case: Path) -> Path:
    return open_lm_case / "checkpoints" / "epoch_1.pt"


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("tok_embeddings.weight", "layers.0.attention.in_proj.weight", "norm.weight", "output.weight")
    return {name: torch.randn(4, 6, generator=generator) for name in names}


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "renamed.safetensors"])
def test_an_adapter_is_told_how_it_becomes_a_model(tensors: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    """The advice was to post the adapter's file, which then lacked every tensor of a model."""
    matrices = {f"base_model.model.q_proj.lora_{side}.weight": tensors["norm.weight"].clone() for side in "AB"}
    save_file(matrices, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text("{}")
    for path in [tmp_path / name] if name.startswith("renamed") else [tmp_path / name, tmp_path]:
        refused(path, NotACheckpoint, r"LoRA adapter.*give its folder .*'BASE \+ lora\(FOLDER\)'")


def test_files_of_open_lm_and_lightning(epoch_file: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Lightning's have an epoch like open_lm's, and an optimizer, as older ones of open_lm have."""
    epoch, average = read_weights(epoch_file), read_weights(epoch_file.with_name("ema_0.9_1_1.pt"))
    assert (epoch.format, average.format) == ("open_lm epoch", "open_lm average")
    assert epoch.tensors.keys() == average.tensors.keys()
    assert epoch.tensors["tok_embeddings.weight"].shape == (112, 16)
    content = {"epoch": 2, "global_step": 5000, "pytorch-lightning_version": "1.5.10", "state_dict": tensors}
    optimizers = {"optimizer_states": [{"state": tensors}], "optimizer": {"state": tensors}}
    torch.save(content | optimizers, tmp_path / "step=5000-model.ckpt")
    weights = read_weights(tmp_path / "step=5000-model.ckpt")
    assert (weights.format, weights.tensors.keys()) == ("Lightning checkpoint", tensors.keys())


def test_model_and_average_of_a_training_loop(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """As LlamaGen's trainer saves them. A decay rate under `ema` is no average, and an average alone is the weights."""
    averaged = {name: tensor + 1 for name, tensor in tensors.items()}
    saved = {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}, "ema": averaged, "steps": 7}
    path = tmp_path / "0000007.pt"
    torch.save(saved | {"optimizer": {"state": {}}}, path)
    found = read_weights(path)
    assert found.tensors.keys() == found.averaged.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name] + 1, found.averaged[name]) for name in tensors)
    torch.save({"state_dict": tensors, "ema": {"decay": 0.9}}, path)
    assert read_weights(path).averaged == {}
    torch.save({"ema": averaged}, path)
    assert tensor_digest(read_weights(path).tensors) == tensor_digest(averaged)


@pytest.mark.parametrize("legacy", [False, True])
def test_bare_and_wrapped_state_dicts(tensors: dict[str, Tensor], tmp_path: Path, legacy: bool) -> None:
    """Under a name that says nothing: what a file is, is told by its content."""
    for kind, content in (("bare state dict", tensors), ("state_dict", {"state_dict": tensors})):
        torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
        weights = read_weights(tmp_path / "x")
        assert weights.format == kind
        assert same(weights.tensors, tensors)
    assert not legacy or (tmp_path / "x").read_bytes().startswith(LEGACY_TORCH_MAGIC)


def test_numpy_scalars_are_allowed(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Metrics with confidence intervals, or a step counted by numpy, end up in the file as numpy scalars."""
    kinds = ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?", ">f8")
    values = [np.array([1]).astype(kind)[0] for kind in kinds]
    content = {"epoch": np.int64(3), "step": np.int64(700), "state_dict": tensors, "evaluation_metrics": values}
    before, path = set(torch.serialization.get_safe_globals()), tmp_path / "epoch_3.pt"
    for legacy in (False, True):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert same(read_weights(path).tensors, tensors)
        loaded: Any = load(path)
        assert (loaded["step"], loaded["epoch"], loaded["evaluation_metrics"]) == (700, 3, values)
        assert [value.dtype for value in loaded["evaluation_metrics"]] == [value.dtype for value in values]
    assert set(torch.serialization.get_safe_globals()) == before, "this ends with the call"
    # The trainer's environment is often older than ours, and numpy 2 renamed the module.
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    older: Any = load(path)
    assert older["step"] == 700


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "_orig_mod.module.",
        "module._orig_mod.model.",
        "model." * 5_000,
        "_orig_mod." * 9,
    ],
)
def test_prefixes_in_any_order(tensors: dict[str, Tensor], tmp_path: Path, prefix: str) -> None:
    """The tensors outlive the file: a training loop deletes old checkpoints while they are being read."""
    torch.save({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x.pt")
    weights = read_weights(tmp_path / "x.pt")
    (tmp_path / "x.pt").unlink()
    assert same(weights.tensors, tensors)
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x", {"step": "400"})
    weights = read_weights(tmp_path / "x")
    assert weights.format == "safetensors"
    assert same(weights.tensors, tensors)


SAVE: dict[str, Callable[..., object]] = {"bin": torch.save, "safetensors": save_file}


def write_sharded(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
    """Write the tensors into two files and an index."""
    names, (stem, _, suffix) = list(tensors), name.partition(".")
    weight_map = {}
    for number, part in enumerate((names[:2], names[2:]), 1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        SAVE[suffix]({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_hugging_face_folders(tensors: dict[str, Tensor], tmp_path: Path, name: str, sharded: bool) -> None:
    prefixed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    if sharded:
        write_sharded(tmp_path, prefixed, name)
        assert same(read_weights(tmp_path / f"{name}.index.json").tensors, tensors)
    else:
        SAVE[name.partition(".")[2]](prefixed, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert same(read_weights(tmp_path).tensors, tensors)


def test_the_digest_is_that_of_names_shapes_and_values(tensors: dict[str, Tensor]) -> None:
    wanted = hashlib.sha256()
    for name in sorted(tensors):
        wanted.update(f"{name} [4, 6]\n".encode() + tensors[name].numpy().astype("<f4").tobytes())
    assert tensor_digest(tensors) == wanted.hexdigest()
    assert tensor_digest({name: tensors[name].double() for name in reversed(tensors)}) == wanted.hexdigest()
    assert tensor_digest({name: tensor.T.contiguous().T for name, tensor in tensors.items()}) == wanted.hexdigest()
    assert tensor_digest({name: tensor.view(6, 4) for name, tensor in tensors.items()}) != wanted.hexdigest()
    assert tensor_digest(tensors | {"norm.weight": tensors["norm.weight"] + 1e-6}) != wanted.hexdigest()


def refused(path: Path, error: type[CheckpointError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) or str(path.parent) in str(caught.value)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_off(tensors: dict[str, Tensor], tmp_path: Path, keep: float, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(path, NotACheckpoint, "is damaged" if kind == "legacy" else "is cut off")


def test_companions_of_an_epoch_file(epoch_file: Path, tmp_path: Path) -> None:
    """Told by content, under any name; the epoch file that is meant is named."""
    copy = tmp_path / "latest.pt"
    for name, kind in (("optimizer_1.pt", "the optimizer state"), ("stats_1.pt", "the statistics")):
        shutil.copy(epoch_file.with_name(name), copy)
        refused(copy, NotACheckpoint, f"holds {kind} of epoch 1 and no weights; post that epoch's epoch_1.pt instead")
    shutil.copy(epoch_file, tmp_path / "epoch_1.pt")
    refused(copy, NotACheckpoint, f"post {tmp_path}/epoch_1.pt instead")


def zeros(path: Path) -> None:
    """What a full disk or an interrupted copy leaves: the length of a checkpoint and nothing in it."""
    with path.open("wb") as file:
        file.truncate(8_000_000_000)


def headed(header: Any) -> Callable[[Path], object]:
    return lambda path: safetensors(path, header)


BAD_HEADER = "damaged safetensors header"
NO_CHECKPOINTS: tuple[tuple[Any, str], ...] = (
    (b"", "is empty; wait until it is written"),
    (b"epoch,loss\n1,2.5\n", "is text; a checkpoint is a torch.save file"),
    (b"\xff\xd8\xff\xe0 a picture", "starts with ff d8 ff e0"),
    (b'{"hidden_dim": 24}', "JSON without a weight_map, so it holds no weights"),
    (b'{"hidden_dim": ', "starts like JSON but is truncated or damaged"),
    (zeros, "starts with zeros"),
    ([1, 2], "holds a list; a checkpoint is a dictionary of tensors"),
    ({}, "holds nothing; expected tensors by name"),
    ({"lr": 1.0, "network": {}}, "other things than tensors: lr, network; expected tensors by name"),
    ({"lr": 1.0, "model": {}}, "(model of a training loop) holds nothing; expected tensors by name"),
    ({"epoch": 4, "state_dict": {"a": 1}}, "(open_lm epoch) holds other things than tensors: a"),
    (headed(b"{" + b" " * 26_000_000), "claims a safetensors header of 26,000,001 bytes, too many for a model"),
    (headed({"a": entry(0, 32)}), "its tensors end at byte"),
    *(
        (headed(header), "is damaged; copy or write it again")
        for header in (
            {"a": entry(0, 16), "b": entry(8, 16)},
            {"a": entry(-16, 0, [4])},
            {"a": entry(0, 16, [2**63, 2])},
            {"a": {"dtype": "hunter2", "shape": [1], "data_offsets": [0, 4]}},
        )
    ),
    *(
        (headed(header), BAD_HEADER)
        for header in (
            b'{"a": bad',
            b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, NaN]}}',
            b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1e999]}}',
            b'{"a": {"data_offsets": [0, 8], "shape": [2], "dtype": "F32"}, "a": {"data_offsets": [0, 16]}}',
            b"{" + b'"a":{' * 100_000,
            b'{"a": [1, 2]}',
        )
    ),
)
"""Bytes of a file, what torch.save wrote, or a function that writes a file; and what is said of it."""


@pytest.mark.parametrize(("content", "words"), NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: Any, words: str) -> None:
    """Refused at once, and before anything maps the file. Who names a file need not be who may read it."""
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path) if callable(content) else torch.save(content, path)
    start = time.perf_counter()
    refused(path, NotACheckpoint, re.escape(words))
    assert time.perf_counter() - start < 0.5


def test_weights_that_are_no_model(tmp_path: Path) -> None:
    torch.save({"norm.weight": ONE, "module.norm.weight": ONE}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", CheckpointMismatch, r"both norm\.weight and module\.norm\.w")
    for names, said in (
        (("cls_embedding.cap_proj.fc1.weight", "layers.0.attention.wqkv.weight"), "LlamaGen's text-to-image model"),
        (("cls_embedding.embedding_table.weight", "layers.0.attention.wqkv.weight"), "LlamaGen's class-conditional"),
        (("pos_start", "text_proj_for_sos.q.weight", "lvl_embed.weight"), "Infinity, which draws all bits"),
        (("pos_start", "pos_1LC", "class_emb.weight"), "VAR, which draws all codes of the next scale"),
        (("module.showo.model.embed_tokens.weight", "mm_projector.0.weight"), "Show-o, which fills in masked codes"),
        (("showo.model.embed_tokens.weight", "diffusion_head_a.0.x.weight"), "Show-o2, which draws images by a flow"),
        (("vision_gen_enc_model.x.weight", "language_model.lm_head.weight"), "JanusFlow, which draws images by a"),
        (("transformer.wte.weight", *(f"transformer.h.0.attn.c_{part}.weight" for part in "qkv")), "nanochat's model"),
    ):
        torch.save({"model": dict.fromkeys(names, ONE), "args": Namespace(lr=1)}, tmp_path / "x.pt")
        refused(tmp_path / "x.pt", UnsupportedModel, f"x.pt is of {said}")
        torch.save(dict.fromkeys(names, ONE), tmp_path / "consolidated.pth")
        refused(tmp_path, UnsupportedModel, f"consolidated.pth is of {said}")


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    for path in (tmp_path / "epoch_9.pt", tmp_path / "x.pt" / "epoch_9.pt"):
        refused(path, CheckpointNotFound, "no checkpoint at")
    refused(Path("/dev/null"), NotACheckpoint, "not a regular file")
    refused(tmp_path / ("x" * 300), NotACheckpoint, "cannot be read: file name too long")


def test_folders_without_the_weights_of_a_model(epoch_file: Path, tmp_path: Path) -> None:
    refused(tmp_path, NotACheckpoint, "it holds no weights")
    refused(epoch_file.parent, NotACheckpoint, "it holds ema_0.9_1_1.pt, epoch_1.pt, .*: post one of these files")
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    refused(tmp_path / "x.npz", NotACheckpoint, "zip file that torch.save did not write")


def test_an_index_that_contradicts_its_files(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Programs differ in which of two sets of weights they read, and whether they go by the index."""
    write_sharded(tmp_path, tensors)
    index, first = tmp_path / "model.safetensors.index.json", next(iter(tensors))
    written = index.read_text()
    mapping = json.loads(written)["weight_map"]
    for changes, message in (
        ({first: "model-00002-of-00002.safetensors"}, f"says that {first} is in model-00002.*, but it is in model-000"),
        ({"model.more": mapping[first]}, "names 1 tensors that its files do not hold: more"),
    ):
        index.write_text(json.dumps({"weight_map": mapping | changes}))
        refused(tmp_path, CheckpointMismatch, message)
    index.write_text(written)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, NotACheckpoint, "names model-00002-of-00002.safetensors, which is missing .* all 2 files")
    save_file(tensors, tmp_path / "model-00002-of-00002.safetensors")
    refused(tmp_path, CheckpointMismatch, "is in two of the files")
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, NotACheckpoint, "two sets of weights; remove the one")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "..", "", "model.safetensors.index.json", "model-1.safetensors"]
)
def test_an_index_that_leaves_its_folder_or_names_an_index(tmp_path: Path, name: str) -> None:
    """It may name itself, and was read until Python gave up."""
    content = json.dumps({"weight_map": {"a": name}})
    for file in ("model.safetensors.index.json", "model-1.safetensors"):
        (tmp_path / file).write_text(content)
    words = "which is (not a weights file in the same folder|an index too)"
    refused(tmp_path, NotACheckpoint, words)


def test_a_header_whose_length_begins_as_a_pickle(tmp_path: Path) -> None:
    """One in 32 safetensors files: the length of the header is a multiple of 8, and may end in the byte 0x80."""
    safetensors(tmp_path / "x", json.dumps({"x": entry(0, 16)}).encode().ljust(128))
    assert (tmp_path / "x").read_bytes()[0] == 0x80
    assert read_weights(tmp_path / "x").tensors["x"].tolist() == [0] * 4
