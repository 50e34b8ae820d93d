"""Formats of checkpoints, by the names and the first bytes of files. Nothing is loaded, and torch is not needed."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from evalsvc.errors import NotACheckpoint, first_few
from evalsvc.families.family import LISTS, MODEL_STATES
from evalsvc.spec.images import ARCHIVES, PICTURES

ZIP = b"PK\x03\x04"

FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "consolidated.pth",
    "pytorch_model_fsdp.bin",
)
"""Names of weights in a folder of Hugging Face, Meta or FSDP; the first that exists is used."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
MAX_ADAPTER_CONFIG = 1_000_000
"""Maximum number of bytes of an adapter's configuration, which may name every module."""

SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
"""Name of one of several files of Meta's, each of which has a part of every tensor."""

METADATA = LISTS[0]
DISTRIBUTED = ".distcp"

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.(?:safetensors|bin|pt|pth))")
"""Name of one of several files of Hugging Face, each of which has some of the tensors."""

STATES = re.compile(
    r"(?:[^/]+/)?(?:mp_rank|(?:bf16_)?zero_pp_rank|expp_rank|layer|expert)_\d[\w-]*(model|optim)_states\.pt"
)
"""Name of a file of DeepSpeed, in the folder of a step or in the folder above."""

MAX_HEADER = 25_000_000
"""Maximum number of bytes of a header: a quarter of the format's own limit, enough for 100,000 tensors."""

MAX_SHOWN = 200

IMAGES: Mapping[str, object] = {"family": "images"}
"""Model of a checkpoint that is images and has no weights."""

HEADS = {".tar": (257, b"ustar"), ".npz": (0, ZIP), ".parquet": (0, b"PAR1")}
"""Place and content of the bytes by which an archive of images is known."""

MAX_IMAGES_HEADER = 4096
"""Maximum number of bytes of the header of a safetensors file that holds only the tensor `images`."""

NO_ARCHIVE = (*PICTURES, ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
"""Endings of files that hold a single image, or that are compressed."""

AS_IMAGES = "give images as a folder, a .tar without compression, an .npz with arr_0, or Parquet"


def weights_at(path: Path, shown: str) -> Path:
    """Return the file that the weights in a file or folder are read from, called `shown` in messages."""
    if path.is_dir():
        return path / weights_among(names_in(path), shown)
    refuse_part([path.name], shown)
    if path.name == METADATA or path.suffix == DISTRIBUTED:
        raise NotACheckpoint(f"{shown} is a part of a torch.distributed.checkpoint; post its folder, {path.parent}")
    if SHARD.fullmatch(path.name):
        raise NotACheckpoint(f"{shown} is one of several parts of a model; post the folder of all parts")
    return path


def images_among(names: Collection[str], folder: str) -> str | None:
    """Return the archive of images in a folder with these names, or "" if the folder has image files; None if the
    folder holds no images, or files that may be weights."""
    archives = sorted(name for name in names if name.startswith("images.") and name.endswith(ARCHIVES))
    if any(name.endswith((".pt", ".pth", ".bin", ".safetensors")) for name in {*names} - {*archives}):
        return None
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    if len(archives) + bool(pictures) > 1:
        raise NotACheckpoint(f"{folder} holds {archives[0]} and other images; keep one of them")
    return archives[0] if archives else "" if pictures and "checkpoints" not in names else None


def is_archive(file: BinaryIO, name: str, shown: str) -> bool:
    """Return whether an open file with a name is an archive of images. Raises NotACheckpoint for images in a form that
    is not read."""
    ending = Path(name).suffix.lower()
    if ending in NO_ARCHIVE:
        raise NotACheckpoint(f"{shown} is one image, or is compressed; {AS_IMAGES}")
    head = file.read(8 + MAX_IMAGES_HEADER)
    if ending == ".safetensors":
        with suppress(ValueError, TypeError, RecursionError):  # hostile JSON may be no object
            length = int.from_bytes(head[:8], "little")
            return length <= MAX_IMAGES_HEADER and {*json.loads(head[8 : 8 + length])} - {"__metadata__"} == {"images"}
    if ending not in HEADS:
        return False
    place, sign = HEADS[ending]
    if head[place : place + len(sign)] != sign:
        raise NotACheckpoint(f"{shown} ends in {ending} and is no such file; {AS_IMAGES}")
    return True


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder, and those of weights in the folders of its steps and parts."""
    states = {path.relative_to(folder).as_posix() for path in folder.glob("*/*_states.pt")}
    return {entry.name for entry in folder.iterdir()} | states | {name for name in LISTS if (folder / name).is_file()}


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
    if not weights and (weights := [name for name in ADAPTER_FILES if name in names]) and ADAPTER_CONFIG not in names:
        raise NotACheckpoint(f"{folder} holds {weights[0]} without {ADAPTER_CONFIG}, as peft writes both; copy it too")
    if tuple(weights[:2]) in (FOLDER_FILES[:2], FOLDER_FILES[2:4]) or (lists and len(weights) > 1):
        raise NotACheckpoint(
            f"{folder} holds {weights[0]} and {weights[1]}, two sets of weights; remove the one that is not the model's"
        )
    unfinished = {name for inner in LISTS[1:] if (name := inner.partition("/")[0]) in names}
    if not weights and (unfinished or any(name.endswith(DISTRIBUTED) for name in names)):
        raise NotACheckpoint(
            f"{folder} has no {METADATA} yet, which a trainer writes last; post it when it is complete"
        )
    weights = weights or parts_of(names, folder)
    if not weights and (states := sorted(filter(STATES.fullmatch, names))):
        return _states_among(states, folder)
    if not weights:
        refuse_part(names, folder)
    return next(iter(weights), None)


def parts_of(names: Collection[str], folder: str) -> list[str]:
    """Return the names of all parts of a model that has no index; empty if there are none."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for match in filter(None, map(PART.fullmatch, sorted(names))):
        sets.setdefault((match[1], match[3], match[4]), []).append(match[0])
    if len(sets) > 1:
        named = ", ".join(parts[0] for parts in list(sets.values())[:3])
        raise NotACheckpoint(f"{folder} holds parts of several models: {named}; keep the parts of one model")
    for (stem, count, ending), parts in sets.items():
        wanted = [f"{stem}-{number:05}-of-{count}{ending}" for number in range(1, int(count) + 1)]
        if lacking := [name for name in wanted if name not in names]:
            raise NotACheckpoint(
                f"{folder} holds {len(parts)} of the {len(wanted)} parts of a model, and not {first_few(lacking, 3)}; "
                "copy all parts"
            )
        return wanted
    return []


def _states_among(states: Sequence[str], folder: str) -> str:
    steps = sorted({name.rpartition("/")[0] for name in states})
    if len(steps) > 1:
        raise NotACheckpoint(f"{folder} is the folder of a run: post one of its folders {first_few(steps, 5)}")
    models = {name.rpartition("/")[2]: name for name in states if name.endswith("model_states.pt")}
    if not models:
        raise NotACheckpoint(
            f"{folder}/{states[0]} is of DeepSpeed's optimizer; post the folder of all files of the step"
        )
    if any(name.startswith("zero_pp_rank_") for name in models):
        run, _, step = f"{folder}/{steps[0]}".rstrip("/").rpartition("/")
        raise NotACheckpoint(
            f"{folder} holds parts of tensors (ZeRO-3); join the parts by DeepSpeed's own program, and post {folder} "
            f"again: python {run}/zero_to_fp32.py {run} {folder} --tag {step} --safe_serialization"
        )
    whole = models.pop(MODEL_STATES, None)
    if whole is None or models:
        raise NotACheckpoint(
            f"{folder} holds {min(models)}: DeepSpeed divided the model by tensors, layers or experts; save the whole "
            "model in the training program, and post that file"
        )
    return whole


def refuse_part(names: Collection[str], shown: str) -> None:
    """Raise NotACheckpoint if a file, or a folder with these names, holds only a part of a model."""
    if any(name.startswith("adapter_model.") for name in names):
        raise adapter(shown)
    counts = {match[3] for match in map(PART.fullmatch, names) if match}
    if counts - {"00001"}:
        raise NotACheckpoint(f"{shown} is one of {int(max(counts))} parts of a model; post the folder of all parts")
    if states := sorted(filter(STATES.fullmatch, names)):
        _states_among(states, shown.rpartition("/")[0])


def is_adapter(path: Path) -> bool:
    return path.is_dir() and known_weights(names_in(path), str(path)) in ADAPTER_FILES


def adapter(shown: str) -> NotACheckpoint:
    return NotACheckpoint(
        f"{shown} is of a LoRA adapter, which holds only what differs from its base; give its folder on a disk, alone "
        "or with the base: 'BASE + lora(FOLDER)'"
    )


def merge_it(folder: object) -> str:
    """Return what to do with an adapter that evalsvc cannot merge, as the end of a message."""
    return f"merge {folder} into its base, and give the result: model.merge_and_unload().save_pretrained(FOLDER)"


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
