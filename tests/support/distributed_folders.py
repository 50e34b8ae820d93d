"""Folders of torch.distributed.checkpoint, written by torch itself in this process as several ranks would."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardMetadata, init_from_local_shards
from torch.distributed.checkpoint.filesystem import FileSystemWriter


@contextmanager
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def save_distributed(folder: Path, state: Mapping[str, Any], files: int = 3) -> None:
    """Write a state in a few files, with every matrix in four pieces and every longer vector in two."""
    with one_rank():
        dcp.save(_in_pieces(state), storage_writer=FileSystemWriter(folder, thread_count=files))


def _in_pieces(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _in_pieces(inner) for name, inner in value.items()}
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or min(value.shape) < 3:
        return value
    height, width = (value.shape[0] + 2) // 3, 0 if value.dim() == 1 else value.shape[1] // 2
    starts = [(row, *([column] if width else [])) for row in (0, height) for column in ((0, width) if width else (0,))]
    shards = []
    for start in starts:
        piece = value[start[0] : height if start[0] == 0 else None]
        if width:
            piece = piece[:, start[1] : width if start[1] == 0 else None]
        place = ShardMetadata(list(start), list(piece.shape), "rank:0/cpu")
        shards.append(Shard(piece.contiguous(), place))
    return init_from_local_shards(shards, *value.shape)


def change_metadata(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the metadata of a folder, as whoever means harm could."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def save_as_ranks(folder: Path, count: int) -> None:
    """Have processes write a model, sharded by rows, by columns and by FSDP, and the whole tensors to `FOLDER.pt`."""
    torch.multiprocessing.spawn(_rank, (count, str(folder)), nprocs=count)


def _rank(rank: int, count: int, folder: str) -> None:
    from torch import nn
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh
    from torch.distributed.tensor import Shard as Along

    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=count)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("rows", "columns"))
    layouts = {"both": (7, 10, Along(0), Along(1)), "nested": (3, 5, Along(0), Along(0))}
    layouts |= {"copied": (9, 4, Replicate(), Along(1))}
    state: dict[str, Any] = {
        name: distribute_tensor(torch.randn(height, width), mesh, [first, second])
        for name, (height, width, first, second) in layouts.items()
    }
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 9))
    fully_shard(model, mesh=init_device_mesh("cpu", (count,)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    state |= weights
    dcp.save({"model": state, "optim": moments}, checkpoint_id=folder)
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    if rank == 0:
        torch.save(whole, f"{folder}.pt")
    dist.destroy_process_group()
