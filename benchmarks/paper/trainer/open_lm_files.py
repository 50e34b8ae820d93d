"""The files of a training run of open_lm: `params.txt`, the model's JSON, and what is in `checkpoints/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalsvc.families.reading import family_of
from evalsvc.files.atomic import write_whole
from evalsvc.models import Transformer
from evalsvc.spec.model_config import OPEN_LM_FIELDS, ModelConfig
from trainer.recipe import RANDOM, Recipe

MODE = 0o644
"""Permissions of everything in the folder of a training."""

PARAMETERS = """
accum_freq: 1
attn_activation: None
attn_name: torch_attn
attn_seq_scalar: None
attn_seq_scalar_alpha: None
average: None
average_coefficients: None
averagers: None
copy_codebase: False
data_key: txt
data_tolerate_error_p: 0.09
data_tolerate_num_ckpts: 0
dataset_manifest: None
dataset_resampled: False
ddp_static_graph: False
debug: False
delete_previous_checkpoint: False
device: cpu
disable_buffer: False
dist_backend: nccl
dist_url: env://
distill_model: None
distill_pretrained: None
distributed: False
epochs_cooldown: None
eps: 1e-08
experimental_meta_device: False
force_distributed: False
fsdp: False
fsdp_amp: False
fsdp_backward_prefetch: False
fsdp_checkpoint: False
fsdp_cpu_offload: False
fsdp_hybrid: False
fsdp_hybrid_o2: False
fsdp_limit_all_gathers: False
fsdp_pure_bf16: False
fsdp_use_orig_params: False
global_val_batch_size: None
grad_checkpointing: False
hf_fsdp_block: None
hf_model: None
hf_seq_len: None
ignore_parse_errors: False
load_pretrained_state: False
local_rank: 0
log_avg_model_training_loss: 0
log_every_n_steps: 100
log_level: 20
log_local: False
log_logit_mean: False
lr_cooldown_end: 0.0
lr_cooldown_power: 1.0
lr_scheduler: cosine
moe_capacity_factor: 1.25
moe_expert_model_parallelism: False
moe_freq: 0
moe_loss_weight: 0.1
moe_num_experts: None
moe_top_k: 2
moe_weight_parallelism: False
multiple_data_passes: False
no_set_device_rank: False
optimizer: adamw
precision: fp32
preset_world_size: None
rank: 0
remote_sync: None
remote_sync_frequency: 300
remote_sync_protocol: s3
report_to:\x20
resume: None
save_frequency: 1
save_most_recent: False
skip_scheduler: False
squash_mask_left: False
target_mask_individual: None
target_mask_left: None
tensorboard: False
tensorboard_path:\x20
torchcompile: False
torchscript: False
trace: False
train_data: None
train_data_mix_weights: None
train_data_upsampling_factors: None
use_bn_sync: False
use_bnb_linear: None
val_data_key: None
val_frequency: 1
val_iter_ci: 10000
val_max_pop_ci: None
val_num_samples: None
val_seq_ci: False
val_tok_ci: False
wandb: False
wandb_notes:\x20
wandb_project_name: open-lm
workers: 0
world_size: 1
z_loss_coefficient: 0.0
"""
"""Parameters that this trainer has in common with every run of open_lm, or does not have."""

TAKEN = ("model_norm", "qk_norm", "positional_embedding_type", "ffn_type", "seq_len", "vocab_size")
"""Fields of the model that `params.txt` repeats."""
NO_JSON = {"precision"}
"""Fields of the model that are in `params.txt` only."""
ROTATED = ("rotary", "head_rotary")
"""Positional embeddings whose frequencies open_lm saves in every layer."""


def model_name(recipe: Recipe) -> str:
    """Return the name of the model's JSON: that of the recipe's model, or `model`."""
    return Path(recipe.model).stem if recipe.model is not None else "model"


def write_run(folder: Path, config: ModelConfig, recipe: Recipe) -> None:
    """Write `params.txt` and the model's JSON, from which the configuration of every checkpoint is read.

    Both replace the files of an interrupted training: an evaluation that reads those keeps what it has opened.
    """
    name = model_name(recipe)
    shape = config.model_dump(mode="json", include=OPEN_LM_FIELDS - NO_JSON)
    write_whole(folder / f"{name}.json", (json.dumps(shape, indent=4) + "\n").encode(), mode=MODE)
    common = dict(line.split(": ", 1) for line in PARAMETERS.strip("\n").split("\n"))
    places = {
        "checkpoint_path": folder / "checkpoints",
        "failed_checkpoint_path": folder / "checkpoints_failed",
        "log_path": folder / "out.log",
        "logs": folder.parent,
        "model": name,
        "name": recipe.name,
    }
    arguments = common | {key: shape[key] for key in TAKEN} | places | _training(recipe, config)
    lines = (f"{key}: {arguments[key]}\n" for key in sorted(arguments))
    write_whole(folder / "params.txt", "".join(lines).encode(), mode=MODE)


def _training(recipe: Recipe, config: ModelConfig) -> dict[str, Any]:
    return {
        "beta1": recipe.betas[0],
        "beta2": recipe.betas[1],
        "dataset_type": "webdataset" if recipe.data is not None and recipe.data.is_dir() else "jsonl",
        "epochs": len(recipe.kept) - 1,
        "force_min_lr": recipe.floor * recipe.learning_rate,
        "global_batch_size": recipe.batch,
        "grad_clip_norm": recipe.clip,
        "lr": recipe.learning_rate,
        "per_gpu_batch_size": recipe.batch,
        # The Transformer rounds no rotary frequencies under autocast, as open_lm does: only what a start brings counts.
        "precision": config.precision or "fp32",
        "pretrained": None if recipe.start == RANDOM else recipe.start,
        "seed": recipe.seed,
        "train_num_samples": recipe.steps * recipe.batch,
        "val_data": None,
        "warmup": recipe.warm_up,
        "wd": recipe.weight_decay,
    }


def epoch_content(model: Transformer, recipe: Recipe, epoch: int, step: int) -> dict[str, Any]:
    """Return the content of `epoch_N.pt`; an epoch ends where a checkpoint is written."""
    return {
        "epoch": epoch,
        "name": recipe.name,
        "state_dict": state_dict(model, model.state_dict()),
        "evaluation_metrics": [],
        "samples_seen": step * recipe.batch,
        "step": step,
        "shard_shuffle_seed": recipe.batch_seed,
    }


def optimizer_content(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> dict[str, Any]:
    """Return the content of `optimizer_N.pt`."""
    return {"epoch": epoch, "name": recipe.name, "optimizer": optimizer.state_dict(), "evaluation_metrics": []}


def average_name(decay: float) -> str:
    """Return the name of open_lm's averager: the method with its decay, and the number of steps between updates."""
    return f"ema_{decay!r}_1"


def average_content(model: Transformer, averages: Mapping[str, Tensor], decay: float, step: int) -> dict[str, Any]:
    """Return the content of the file of an averager after `step` updates."""
    counters = {"update_counter": step, "step_counter": step, "freq": 1}
    weights = {"av_model_sd": state_dict(model, dict(model.state_dict()) | dict(averages))}
    unused = dict.fromkeys(("suffix_steps", "power", "start"))
    return {**counters, **weights, "method": "ema", "eta": None, "gamma": decay, **unused}


def state_dict(model: Transformer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the Transformer's parameters with open_lm's other names, and frequencies in every layer."""
    sources = family_of(model.config).sources(model.config)
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "output.weight" and model.config.weight_tying:
            continue  # another name of the embeddings, below
        state[name] = tensor.detach().cpu()
        if name.endswith("attention.out_proj.weight") and model.config.positional_embedding_type in ROTATED:
            state[name.replace("out_proj.weight", "pos_embed.inv_freq")] = model.positions.inv_freq.cpu()
        if name in sources:
            state |= dict.fromkeys(sources[name].aliases, state[name])
    return state
