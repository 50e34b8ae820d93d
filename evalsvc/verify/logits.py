"""Comparing logits and losses with the real open_lm, on a checkpoint's own tensors.

    verify_logits    a file and token ids
    verify_losses    a task `loss` of a suite, and the values that were recorded

Both sides compute in float32, evalsvc on the device of the context and open_lm on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, MissingPackage, UnsupportedModel
from evalsvc.models import Transformer
from evalsvc.models.loading import load_model
from evalsvc.spec.model_config import ModelConfig
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.teacher_forcing import COLUMNS, sequence_sums
from evalsvc.tasks.task import Context
from evalsvc.verify.agreement import Agreement, Finding, Untried, release
from evalsvc.verify.loss_sequences import LossSequences, loss_sequences
from evalsvc.verify.losses import Sums, loss_sums, loss_values
from evalsvc.verify.open_lm_reference import build_open_lm, checkpoint_tensors
from evalsvc.verify.own_model import require_own
from evalsvc.verify.recorded_values import RecordedValues
from evalsvc.verify.rounding import MEASURED, NOTE, Rounding, measure_rounding


def verify_logits(
    path: Path,
    config: ModelConfig,
    sequences: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    rotary_inv_freq_dtype: str = "auto",
) -> list[Finding]:
    """Compare the logits of a checkpoint file, sequence by sequence, at all positions and for all ids.

    Raises the errors of `load_model`.
    """
    quantity, program = f"logits of {len(sequences)} sequences", release("open_lm")
    ours = load_model(path, config, device=device, rotary_inv_freq_dtype=rotary_inv_freq_dtype)
    try:
        theirs = build_open_lm(config, read_weights(path).tensors, ours.rotary_inv_freq_dtype)
    except (MissingPackage, CheckpointMismatch) as error:
        return [Untried(quantity, program, error.message)]
    return [_compare_logits(quantity, program, ours, theirs, sequences, measure_rounding(ours, sequences))]


def verify_losses(context: Context, task: Loss, recorded: RecordedValues, n: int) -> list[Finding]:
    """Compare the losses of the first `n` sequences of a task's data, and its metrics.

    If `n` covers the data and the task computes in float32, the recorded values are compared with open_lm's. Otherwise
    evalsvc computes its values over the same sequences again.

    Raises the errors of reading the data and the checkpoint, and NonFinite.
    """
    program = release("open_lm")
    model = context.model(dtype="float32", rotary_inv_freq_dtype=task.rotary_inv_freq_dtype)
    try:
        ours = require_own(model)
        with checkpoint_tensors(context, ours) as tensors:
            theirs = build_open_lm(ours.config, tensors, ours.rotary_inv_freq_dtype)
    except (MissingPackage, CheckpointMismatch, UnsupportedModel) as error:
        return [Untried(f"{task.name}: losses", program, error.message)]
    findings: list[Finding] = []
    for part in loss_sequences(context, task, n):
        first = [ids for ids in part.ids if len(ids) > 1][:MEASURED]
        rounding = measure_rounding(ours, first)
        name = f"{task.name}/general_text" if part.general else task.name
        quantity = f"{name}: logits of {len(first)} sequences"
        findings.append(_compare_logits(quantity, program, ours, theirs, first, rounding))
        findings += _compare_losses(context, task, part, ours, theirs, recorded, rounding)
    return findings


@torch.inference_mode()
def _compare_logits(
    quantity: str,
    program: str,
    ours: Transformer,
    theirs: nn.Module,
    sequences: Sequence[Sequence[int]],
    rounding: Rounding,
) -> Agreement:
    device = ours.tok_embeddings.weight.device
    worst = 0.0
    for sequence in sequences:
        ids = torch.tensor([sequence])
        gap = (ours(ids.to(device)).cpu().double() - theirs(ids)[0].double()).abs().max()
        worst = float("nan") if gap.isnan() else max(worst, float(gap))
    return Agreement(quantity, program, worst, rounding.logit_tolerance, note=NOTE)


def _compare_losses(
    context: Context,
    task: Loss,
    part: LossSequences,
    ours: Transformer,
    theirs: nn.Module,
    recorded: RecordedValues,
    rounding: Rounding,
) -> Iterator[Finding]:
    program, count = release("open_lm"), len(part.ids)
    names = [f"sequence {index}" for index in range(count)]
    evalsvc_sums, reference_sums = (
        sequence_sums(context, ours, context.layout(), part.ids, names),
        _sums(context, theirs, part.ids),
    )
    name = f"{task.name}/general_text" if part.general else task.name
    per_token = [_per_token(sums) for sums in (evalsvc_sums, reference_sums)]
    yield Agreement.of_arrays(
        f"{name}: mean losses of each of {count} sequences",
        program,
        per_token[0],
        per_token[1],
        rounding.loss_tolerance,
        "nats per token, by type of the token, over all ids and within the type's",
    )
    values, wanted = loss_values(task.name, evalsvc_sums), loss_values(task.name, reference_sums)
    if part.general:
        values, wanted = _general(task.name, values), _general(task.name, wanted)
    values_then = recorded.over(count, part.total)
    for metric, value in wanted.items():
        # The change of a probability is the probability times the change of its logarithm.
        tolerance = rounding.loss_tolerance * (value if metric.endswith("/image_mass") else 1)
        now = Agreement.of_numbers(metric, program, values[metric], value, tolerance)
        yield from values_then.compare(now, part.protocol)


@torch.inference_mode()
def _sums(context: Context, theirs: nn.Module, sequences: Sequence[Sequence[int]]) -> Sums:
    layout, rows = context.layout(), []
    for sequence in sequences:
        rows.append(loss_sums(theirs(torch.tensor([sequence]))[0][0], sequence, layout))
        context.report(len(rows))
    return {name: [row[name] for row in rows] for name in COLUMNS}


def _per_token(sums: Sums) -> Tensor:  # [sequences, 6]
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in sums.items()}
    kinds = {name: name.partition("_")[2] for name in COLUMNS if not name.startswith("n_")}
    kinds["image_mass"] = "text"
    return torch.stack([columns[name] / columns[f"n_{kind}"].clamp_min(1) for name, kind in kinds.items()], dim=1)


def _general(task: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of general text, whose names differ from those of the data."""
    names = {f"{task}/text": f"{task}/general_text", f"{task}/text_within": f"{task}/general_text_within"}
    return {names[name]: value for name, value in values.items() if name in names}
