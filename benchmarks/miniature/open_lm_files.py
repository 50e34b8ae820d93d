"""A training run's folder as open_lm writes it: params.txt, the model's JSON, checkpoints/epoch_N.pt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalsvc.models import Transformer

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
"""What the miniature has in common with a run of open_lm's own that changes none of these."""

MODEL = "open_lm_miniature"
INTERVALS = {f"loss_{of}_{end}_95": -1.0 for of in ("sequences", "tokens") for end in ("lower", "upper")}
"""What open_lm writes when it is not asked for confidence intervals."""
IN_PARAMETERS = ("model_norm", "qk_norm", "positional_embedding_type", "ffn_type", "seq_len", "vocab_size")


def write_run(folder: Path, shape: dict[str, Any], training: dict[str, Any]) -> None:
    """params.txt and the model's JSON; `training` are the parameters of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{MODEL}.json").write_text(json.dumps(shape, indent=4) + "\n")
    common = dict(line.split(": ", 1) for line in PARAMETERS.strip("\n").split("\n"))
    name = folder.name
    places = {
        "checkpoint_path": f"/runs/{name}/checkpoints",
        "failed_checkpoint_path": f"/runs/{name}/checkpoints_failed",
        "log_path": f"/runs/{name}/out.log",
        "logs": "/runs",
        "model": MODEL,
        "name": name,
    }
    arguments = common | {key: shape[key] for key in IN_PARAMETERS} | places | training
    (folder / "params.txt").write_text("".join(f"{key}: {arguments[key]}\n" for key in sorted(arguments)))


def epoch_file(
    model: Transformer, name: str, epoch: int, step: int, samples: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """The content of checkpoints/epoch_N.pt after `epoch` epochs. Weights are bfloat16, to be small."""
    return {
        "epoch": epoch,
        "name": name,
        "state_dict": _state_dict(model),
        "evaluation_metrics": [{**metrics, **INTERVALS, "val_data": ["validation_captions.jsonl"], "model": MODEL}],
        "samples_seen": samples,
        "step": step,
        "shard_shuffle_seed": 0,
    }


def _state_dict(model: Transformer) -> dict[str, Tensor]:
    """In open_lm's order and with the rotary frequencies that it saves in every layer."""
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.to(torch.bfloat16, copy=True)
        if name.endswith("attention.out_proj.weight"):
            buffer = name.replace("out_proj.weight", "pos_embed.inv_freq")
            state[buffer] = model.positions.inv_freq.clone()
    return state
