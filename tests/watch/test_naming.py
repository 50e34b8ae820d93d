"""What names say."""

import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.watch.naming import Named, StepPattern, read_averaged_name, read_name, skip_reason


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("epoch_3.pt", Named(epoch=3)),
        ("checkpoint-500", Named(step=500)),
        ("step_0000500.safetensors", Named(step=500)),
        ("epoch=3-step=500.ckpt", Named(step=500)),
        ("global_step500.pt", Named(step=500)),
        ("model_12.pth", Named(step=12)),
        ("iter-7.pt", Named(step=7)),
        ("final.pt", Named()),
        ("footstep5.pt", Named()),
    ],
)
def test_steps_and_epochs(name: str, said: Named) -> None:
    assert read_name(name) == said
    assert skip_reason(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "optimizer_3.pt",
        "stats_3.pt",
        "epoch_latest.pt",
        "last.ckpt",
        "model-best.pt",
        "epoch_3.tmp.pt",
        "tmp-checkpoint-500",
        "scaler.pt",
        "training_args.bin",
        "rng_state_0.pth",
        "pytorch_model-00001-of-00002.bin",
    ],
)
def test_what_lies_beside_checkpoints(name: str) -> None:
    assert skip_reason(name) is not None


def test_averagers_keep_their_name_as_the_variant() -> None:
    """Two averagers of one method differ in their parameters, and would else be in one series."""
    assert read_averaged_name("ema_0.9999_1_12.pt") == Named(epoch=12, variant="ema_0.9999_1")
    assert read_averaged_name("average.pt") == Named()


def test_a_pattern_of_ones_own() -> None:
    pattern = StepPattern(r"(?P<variant>ema|raw)-(?P<step>\d+)k\.pt")
    assert pattern.read("ema-12k.pt") == Named(step=12, variant="ema")
    assert pattern.read("epoch_3.pt") is None
    assert StepPattern(r"it(\d+)").read("it0070.pt") == Named(step=70)
    assert StepPattern(r"e(?P<epoch>\d+)").read("e3.pt") == Named(epoch=3)


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "is no regular expression"), (r"\d+", "has no group for the step")]
)
def test_a_pattern_that_is_none(pattern: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        StepPattern(pattern)


def test_a_group_that_is_no_number() -> None:
    with pytest.raises(InvalidRequest, match=r"'epoch_3' in epoch_3\.pt, which is no step; put"):
        StepPattern(r"(.*)\.pt").read("epoch_3.pt")
