"""What the model says, against its plain logits."""

from pathlib import Path

import pytest
import torch

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.data.tokens import read_tokens
from evalsvc.errors import OutOfMemory
from evalsvc.miniature import ROOT
from evalsvc.models import Transformer, load_model
from evalsvc.spec.layout import parse_layout
from evalsvc.tasks.loss.layout_evidence import ModelEvidence

CHECKPOINT = ROOT / "runs/pretrained/checkpoints/epoch_5.pt"
LAYOUT = parse_layout(str(ROOT / "runs/layout.yaml")).resolve(583)


class Here:
    """The work of a test: this process, and as many tokens in a batch as it likes."""

    checkpoint = CheckpointRef(path=str(CHECKPOINT))
    device = "cpu"

    def __init__(self, batch_tokens: int = 8192) -> None:
        self.batch_tokens = batch_tokens

    def report(self, done: int) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(CHECKPOINT)


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    records = read_tokens(Path(ROOT / "heldout_pairs.jsonl")).records[:5]
    return [LAYOUT.sequence(record.text_ids, record.image_codes).ids for record in records]


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_masses_are_those_of_the_plain_logits(
    model: Transformer, sequences: list[list[int]], batch_tokens: int
) -> None:
    """Prefixes of different lengths share a batch, and each is read at its own end."""
    prefixes = [sequence[: 3 + 7 * index] for index, sequence in enumerate(sequences)]
    groups = [range(512), [577], [579, 582], []]
    found = ModelEvidence(Here(batch_tokens), model).next_log_masses(prefixes, groups)
    for prefix, row in zip(prefixes, found, strict=True):
        with torch.inference_mode():
            probabilities = model(torch.tensor([prefix]))[0, -1].double().softmax(-1)
        expected = [float(probabilities[list(group)].sum().log()) for group in groups]
        assert row == pytest.approx(expected, abs=1e-4)


def test_sums_are_those_of_the_plain_logits(model: Transformer, sequences: list[list[int]]) -> None:
    found = ModelEvidence(Here(), model).sums(LAYOUT, sequences)
    for index, sequence in enumerate(sequences):
        with torch.inference_mode():
            logs = model(torch.tensor([sequence]))[0, :-1].double().log_softmax(-1)
        total = -float(logs.gather(1, torch.tensor(sequence[1:])[:, None]).sum())
        parts = sum(found[f"nll_{kind}"][index] for kind in ("text", "image", "special"))
        assert parts == pytest.approx(total, rel=1e-5)


def test_memory_that_ran_out_is_told(
    model: Transformer, sequences: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for a layout on a small card shall read what to do, and no traceback."""

    def out_of_memory(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "hidden", out_of_memory)
    evidence = ModelEvidence(Here(), model)
    with pytest.raises(OutOfMemory, match="lower EVALSVC_BATCH_TOKENS"):
        evidence.sums(LAYOUT, sequences)
    with pytest.raises(OutOfMemory, match="lower EVALSVC_BATCH_TOKENS"):
        evidence.next_log_masses(sequences, [[1]])


def test_other_errors_stay_what_they_are(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(model, "hidden", broken)
    with pytest.raises(ValueError, match="broken"):
        ModelEvidence(Here(), model).next_log_masses([[1]], [[1]])
