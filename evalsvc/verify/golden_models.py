"""Comparing language models with open_lm's own outputs from the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.models import Transformer, load_model
from evalsvc.precision import full_precision
from evalsvc.verify.agreement import Agreement
from evalsvc.verify.golden_files import TRAINED, Golden

SMALL = 1e-5
"""Tolerance of logits of about 4, sums of a few hundred products in float32: measured up to 3e-6, while a wrong norm
eps changes 3e-4."""
TRAINED_LOGITS = 1e-4
"""Tolerance of logits of up to 30, otherwise like SMALL."""
HALF = 0.5
"""Tolerance in bfloat16, which keeps 8 bits: a logit of 30 is rounded by 0.06, and three layers add up."""
PREFILL = 7
"""Number of ids that are read together before the cached steps."""


@torch.inference_mode()
def verify_case(golden: Golden, case: str) -> Iterator[Agreement]:
    """Compare the logits of a run that open_lm wrote, in one pass and step by step from the cache."""
    folder = f"open_lm/{case}"
    expected = golden.tensors(f"{folder}/expected")
    model = load_model(golden.folder / folder / "checkpoints" / "epoch_1.pt", device=golden.device)
    ids = expected["input_ids"].to(golden.device)
    with full_precision(torch.device(golden.device)):
        logits_by_way = {"logits": model(ids), "cached steps": _step_by_step(model, ids)}
    for quantity, name in (("logits", "logits_full"), ("cached steps", "logits_step")):
        yield Agreement.of_arrays(
            f"{quantity}: {describe(model)}",
            golden.program("open_lm"),
            logits_by_way[quantity].cpu(),
            expected[name],
            SMALL,
        )


def describe(model: Transformer) -> str:
    """Return the properties that distinguish the models, e.g. `rotary, rms_norm, gelu, qk_norm`."""
    config = model.config
    flags = ("qk_norm", "post_embed_norm", "weight_tying")
    named = [config.positional_embedding_type, config.model_norm, config.ffn_type]
    return ", ".join([*named, *(flag for flag in flags if getattr(config, flag))])


def _step_by_step(model: Transformer, ids: Tensor) -> Tensor:
    cache = model.new_cache(*ids.shape)
    parts = [ids[:, :PREFILL], *torch.split(ids[:, PREFILL:], 1, dim=1)]
    return torch.cat([model(part, cache=cache) for part in parts], dim=1)


@torch.inference_mode()
def verify_miniature(golden: Golden) -> Iterator[Agreement]:
    """Compare logits and losses of the miniature, and its logits in bfloat16 and in another batch."""
    expected, program = golden.tensors("language_model"), golden.program("open_lm")
    pairs = expected["ids"].long().to(golden.device)  # [8, T], -1 behind the end
    real = pairs[:, 1:] >= 0
    pairs = pairs.clamp(min=0)
    with full_precision(torch.device(golden.device)):
        logits = golden.trained(pairs[:, :-1])
        alone = torch.cat([golden.trained(row[None, :-1]) for row in pairs])
        half = load_model(TRAINED, dtype="bfloat16", device=golden.device)(pairs[:2, :80])
    losses = functional.cross_entropy(logits.double().transpose(1, 2), pairs[:, 1:], reduction="none") * real
    chosen = expected["logits"]  # [2, 5, rows], of every 16th place
    yield Agreement.of_arrays("miniature: logits", program, logits[:2, :80:16].cpu(), chosen, TRAINED_LOGITS)
    yield Agreement.of_arrays(
        "miniature: loss of each token", program, losses.cpu(), expected["losses"], TRAINED_LOGITS, "nats"
    )
    note = "bfloat16 against float32: 8 bits of about 30"
    yield Agreement.of_arrays("miniature: logits in bfloat16", program, half[:, ::16].float().cpu(), chosen, HALF, note)
    difference = ((logits - alone) * real[:, :, None]).cpu()
    note = "8 sequences together and each alone"
    yield Agreement.of_arrays(
        "miniature: logits of a batch", "evalsvc", difference, torch.zeros_like(difference), TRAINED_LOGITS, note
    )
