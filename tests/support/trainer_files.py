"""Write a folder of checkpoints as a trainer's own library does, in one process: `python trainer_files.py KIND FOLDER`.

The weights are those in FOLDER/whole, of transformers. FSDP and DeepSpeed change the process that they run in.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

STEP = "global_step7"


def started(folder: Path) -> Any:
    from transformers import LlamaForCausalLM

    (folder / "store").touch()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    return LlamaForCausalLM.from_pretrained(folder / "whole", dtype=torch.float32)


def fsdp(folder: Path) -> None:
    """Save a model with recomputed activations: by FSDP as one file, by accelerate, and by the wrapped names."""
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils.fsdp_utils import save_fsdp_model
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
    from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    policy = ModuleWrapPolicy({LlamaDecoderLayer})
    sharded = FullyShardedDataParallel(
        started(folder), auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
    )
    apply_activation_checkpointing(sharded, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    for name in ("consolidated", "names"):
        (folder / name).mkdir()
    kind, whole = StateDictType.FULL_STATE_DICT, FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(sharded, kind, whole):
        torch.save(sharded.state_dict(), folder / "consolidated" / "consolidated.pth")
    torch.save(torch.compile(sharded).state_dict() | {}, folder / "names" / "compiled.pt")
    torch.save(dict(sharded.named_parameters()), folder / "names" / "wrapped.pt")
    PartialState(cpu=True)
    accelerator: Any = SimpleNamespace(num_processes=1, process_index=0)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, state_dict_type="FULL_STATE_DICT")
    save_fsdp_model(plugin, accelerator, sharded, folder / "accelerate")


def deepspeed(folder: Path) -> None:
    """Save by each of ZeRO's stages, as the Trainer of Hugging Face does: in the folder of its configuration."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    import deepspeed as library

    library.ops.__compatible_ops__.clear()  # or it compiles the transport of ranks on one machine
    model = started(folder)
    for stage in (0, 2, 3):
        config = {"train_batch_size": 1, "zero_optimization": {"stage": stage}}
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        engine, *_ = library.initialize(model=model, optimizer=optimizer, config=config)
        ids = torch.arange(8)[None]
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
        state = {"args": argparse.Namespace(folder=folder)}
        engine.save_checkpoint(str(folder / f"stage-{stage}"), tag=STEP, client_state=state)


if __name__ == "__main__":
    {"fsdp": fsdp, "deepspeed": deepspeed}[sys.argv[1]](Path(sys.argv[2]))
