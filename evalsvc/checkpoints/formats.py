"""Formats of checkpoints, by the names and the first bytes of files. Nothing is loaded, and torch is not needed."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from evalsvc.checkpoints.torch_file import ZIP
from evalsvc.errors import NotACheckpoint
from evalsvc.families.family import LISTS

FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "consolidated.pth",
)
"""Names of weights in a folder of Hugging Face or Meta; the first that exists is used."""

SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
"""Name of one of several files of Meta's, each of which has a part of every tensor."""

METADATA = LISTS[0]
DISTRIBUTED = ".distcp"

PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.")

MAX_HEADER = 25_000_000
"""Maximum number of bytes of a header: a quarter of the format's own limit, enough for 100,000 tensors."""

MAX_SHOWN = 200


def weights_at(path: Path, shown: str) -> Path:
    """Return the file that the weights in a file or folder are read from, called `shown` in messages."""
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        return path / weights_among(names | {name for name in LISTS if (path / name).is_file()}, shown)
    refuse_part([path.name], shown)
    if path.name == METADATA or path.suffix == DISTRIBUTED:
        raise NotACheckpoint(f"{shown} is a part of a torch.distributed.checkpoint; post its folder, {path.parent}")
    if SHARD.fullmatch(path.name):
        raise NotACheckpoint(f"{shown} is one of several parts of a model; post the folder of all parts")
    return path


def weights_among(names: Collection[str], folder: str) -> str:
    """Return the name of the weights in a folder with these names; see `weights_at`."""
    if (name := known_weights(names, folder)) is not None:
        return name
    checkpoints = sorted(name for name in names if name.endswith((".pt", ".pth", ".bin", ".safetensors")))
    if checkpoints:
        listing = f"it holds {', '.join(checkpoints[:5])}: post one of these files"
    elif "checkpoints" in names:
        listing = f"it is the folder of a run: post one of the files in {folder}/checkpoints"
    else:
        listing = "it holds no weights"
    raise NotACheckpoint(f"{folder} is a folder without {' or '.join(FOLDER_FILES)}; {listing}")


def known_weights(names: Collection[str], folder: str) -> str | None:
    """Return the first of FOLDER_FILES among the names in a folder, which may be incomplete; see `weights_at`."""
    lists = [name for name in LISTS if name in names]
    weights = lists + ([name for name in FOLDER_FILES if name in names] or sorted(filter(SHARD.fullmatch, names)))
    if tuple(weights[:2]) in (FOLDER_FILES[:2], FOLDER_FILES[2:4]) or (lists and len(weights) > 1):
        raise NotACheckpoint(
            f"{folder} holds {weights[0]} and {weights[1]}, two sets of weights; remove the one that is not the model's"
        )
    unfinished = {name for inner in LISTS[1:] if (name := inner.partition("/")[0]) in names}
    if not weights and (unfinished or any(name.endswith(DISTRIBUTED) for name in names)):
        raise NotACheckpoint(
            f"{folder} has no {METADATA} yet, which a trainer writes last; post it when it is complete"
        )
    if not weights:
        refuse_part(names, folder)
    return next(iter(weights), None)


def refuse_part(names: Collection[str], shown: str) -> None:
    """Raise NotACheckpoint if a file, or a folder with these names, holds only a part of a model."""
    if any(name.startswith("adapter_model.") for name in names):
        raise adapter(shown)
    if parts := sorted(name for name in names if PART.search(name)):
        index = FOLDER_FILES[0 if parts[0].endswith(".safetensors") else 2]
        raise NotACheckpoint(
            f"{shown} holds {parts[0]}, a part of a model; post the folder of all parts with their index, {index}, as "
            "save_pretrained writes both"
        )


def adapter(shown: str) -> NotACheckpoint:
    return NotACheckpoint(
        f"{shown} is a LoRA adapter, which holds only what differs from its base; merge the adapter into the base, and "
        "post the folder of the merged model: model.merge_and_unload().save_pretrained(FOLDER)"
    )


def conversion(folder: Path) -> str:
    """Return the advice for a folder of torch.distributed.checkpoint that is not read in place."""
    return (
        "convert it to one file: python -P -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        f"{folder} {folder}.pt"
    )


def format_of(path: Path) -> Literal["safetensors", "torch", "index"]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise NotACheckpoint(f"{path} is not a regular file; use a checkpoint file or a Hugging Face folder")
    if status.st_size == 0:
        raise NotACheckpoint(f"{path} is empty; wait until it is written, or check for a full disk")
    with path.open("rb") as file:
        head = file.read(16)
    # Before pickles: the length of a safetensors header may begin with the byte that a pickle begins with.
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return "safetensors"
    if head.startswith((ZIP, b"\x80")):
        return "torch"
    if head.lstrip().startswith(b"{"):
        return "index"
    if not head.strip(b"\0"):
        raise NotACheckpoint(f"{path} starts with zeros, so the copy is unfinished; copy it again")
    is_text = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)
    kind = "is text" if is_text else f"starts with {head[:8].hex(' ')}"
    raise NotACheckpoint(f"{path} {kind}; a checkpoint is a torch.save file (zip or pickle) or safetensors")


def weight_map(content: bytes, index: Path | str) -> dict[str, str]:
    """Return the file of each tensor according to the content of a Hugging Face index."""
    try:
        mapping = json.loads(content).get("weight_map")
    except (ValueError, RecursionError, AttributeError) as error:
        raise NotACheckpoint(f"{index} starts like JSON but is truncated or damaged; copy or write it again") from error
    if not isinstance(mapping, dict) or not mapping:
        raise NotACheckpoint(f"{index} is JSON without a weight_map, so it holds no weights; use a checkpoint file")
    by_tensor = {str(tensor): str(name) for tensor, name in mapping.items()}
    for name in sorted(set(by_tensor.values())):
        # An index may name files in its own folder only, and no other index, which could be itself.
        if Path(name).name != name or name in ("", "..") or name.endswith(".json"):
            raise NotACheckpoint(
                f"{index} names {legible(name)!r}, which is not a weights file in the same folder; correct the index"
            )
    return by_tensor


def legible(name: str) -> str:
    """Return a name from a file, which strangers choose, for messages: short, and without control characters."""
    cut = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"
    return cut if cut.isprintable() else ascii(cut)


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file after checking it against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise NotACheckpoint(
                f"{path} claims a safetensors header of {length:,} bytes, too many for a model; copy or write it again"
            )
        if 8 + length > size:
            raise NotACheckpoint(f"{path} is cut off inside its safetensors header; copy or write it again")
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw, object_pairs_hook=_each_once)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise NotACheckpoint(f"{path} has a damaged safetensors header; copy or write it again") from error
    if end > size:
        raise NotACheckpoint(f"{path} is cut off: its tensors end at byte {end:,}, the file at {size:,}; copy it again")
    return header


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        raise ValueError("a name is given twice, and other readers may use the other entry")
    return by_name
