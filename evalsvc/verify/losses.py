"""Losses of token sequences from the real open_lm's logits: the sums of `evalsvc.tasks.loss`, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evalsvc.spec.layout import VocabularyLayout

Sums = Mapping[str, Sequence[float]]
"""Number for each sequence, by the names in `tasks.loss.teacher_forcing.COLUMNS`."""


def loss_sums(
    logits: Tensor,  # [T, V] of a sequence of T ids
    ids: Sequence[int],
    layout: VocabularyLayout,
) -> dict[str, float]:
    """Return the sums of one sequence: plain cross entropy, with every normaliser computed from all its logits."""
    image = layout.image_range or range(0)
    sums = dict.fromkeys(("nll_text", "nll_image", "nll_special", "within_text", "within_image", "image_mass"), 0.0)
    counts = dict.fromkeys(("n_text", "n_image", "n_special"), 0.0)
    for row, target in zip(logits.double(), ids[1:], strict=False):
        if target == layout.pad_id:
            continue
        kind = "text" if target in layout.text_ids else "image" if target in image else "special"
        counts[f"n_{kind}"] += 1
        sums[f"nll_{kind}"] += float(row.logsumexp(0) - row[target])
        if kind != "special":
            ids_of_type = layout.text_ids if kind == "text" else image
            sums[f"within_{kind}"] += float(row[ids_of_type.start : ids_of_type.stop].logsumexp(0) - row[target])
        if kind == "text" and image:
            sums["image_mass"] += float(row.softmax(0)[image.start : image.stop].sum())
    return counts | sums


def loss_values(task: str, sums: Sums) -> dict[str, float]:
    """Return the metrics of a loss task by name: sums over the sequences, divided by their numbers of tokens."""
    totals = {name: sum(column) for name, column in sums.items()}
    totals["n_total"], totals["nll_total"] = (
        sum(totals[f"{part}_{kind}"] for kind in ("text", "image", "special")) for part in ("n", "nll")
    )
    parts = {kind: (f"nll_{kind}", f"n_{kind}") for kind in ("text", "image", "special", "total")}
    parts |= {f"{kind}_within": (f"within_{kind}", f"n_{kind}") for kind in ("text", "image")}
    parts["image_mass"] = ("image_mass", "n_text")
    return {f"{task}/{name}": totals[total] / totals[n] for name, (total, n) in parts.items() if totals[n]}
