"""Plain cross entropy of one sequence, against what the task `loss` computes of the same logits."""

import pytest
import torch
from miniature_run import LAYOUT, pretrained

from evalsvc.config import Settings
from evalsvc.models import load_model
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.protocol import Protocol
from evalsvc.tasks.loss.metrics import loss_metrics, with_totals
from evalsvc.tasks.loss.teacher_forcing import COLUMNS, sequence_sums
from evalsvc.verify.losses import loss_sums, loss_values
from evalsvc.worker.context import ShardContext

PAIRS = [([5, 9, 200, 17], list(range(64))), ([1, 2], [3] * 64), ([300], [63, 0] * 32)]


@pytest.mark.usefixtures("one_thread")
def test_sums_and_metrics_are_those_of_the_task() -> None:
    """Pads are no targets; special tokens have no type of their own to be within."""
    layout = parse_layout(LAYOUT).resolve(583)
    sequences = [layout.sequence(*pair).ids for pair in PAIRS]
    sequences[1] += [582, 582]  # pads
    model = load_model(pretrained(3).path)
    context = ShardContext(pretrained(3), Settings.load(threads=1), lambda done: None)
    mine = sequence_sums(context, model, layout, sequences, ["a", "b", "c"])
    rows = [loss_sums(model(torch.tensor([ids]))[0], ids, layout) for ids in sequences]
    theirs = {name: [row[name] for row in rows] for name in COLUMNS}
    for name in COLUMNS:
        assert theirs[name] == pytest.approx(mine[name], rel=2e-6, abs=1e-7), name
    ids = {"all": 583, "text": 512, "image": 64}
    metrics = {each.name: each.value for each in loss_metrics("loss", with_totals(mine), ids, Protocol({}))}
    values = loss_values("loss", theirs)
    assert values == pytest.approx({name: metrics[name] for name in values}, rel=2e-6)
    assert {"loss/text", "loss/image_within", "loss/special", "loss/total", "loss/image_mass"} < values.keys()
