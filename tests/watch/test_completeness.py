"""Which files are checkpoints, when they are complete, and where their step comes from."""

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from torch_files import save_filled

from evalsvc.errors import InvalidRequest
from evalsvc.miniature import ROOT
from evalsvc.watch.completeness import (
    NO_STEP,
    NO_WEIGHTS,
    OTHER_NAME,
    OVERWRITTEN,
    STATE,
    UNFINISHED_NAME,
    Classifier,
    Memory,
    Named,
    StepPattern,
    Verdict,
    read_averaged_name,
    read_bare_number,
    read_name,
    skip_reason,
)
from evalsvc.watch.folders import LocalFolder, look_at

MINIATURE = ROOT / "runs" / "pretrained" / "checkpoints"


class Looks:
    """Looks at a training job's folder, by a clock that stands still unless it is told."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder = folder
        self.now = 1000.0
        # By its date everything is new here, so only the clock settles it.
        memory = Memory(folder / "memory.json")
        self.classifier = Classifier(memory, clock=lambda: self.now, wall=lambda: 0.0, **rules)

    def first(self, name: str) -> Verdict:
        return self.classifier.classify(look_at(self.folder / name))

    def second(self, name: str) -> Verdict:
        """The second of two looks, far enough from each other for what does not change."""
        self.first(name)
        self.now += 11
        return self.first(name)


def checkpoint(step: int, variant: str = "raw") -> Verdict:
    return Verdict("checkpoint", step=step, variant=variant)


def test_a_file_is_left_alone_while_it_is_written(tmp_path: Path) -> None:
    """Half of a checkpoint would be posted, and fail hours later as not_a_checkpoint."""
    whole = (MINIATURE / "epoch_3.pt").read_bytes()
    looks = Looks(tmp_path)
    for share in (0.0, 0.3, 0.6, 0.999):
        (tmp_path / "epoch_3.pt").write_bytes(whole[: int(share * len(whole))])
        assert looks.first("epoch_3.pt") == Verdict("waits")
        looks.now += 9  # less than it takes to settle
    looks.now += 60  # the job hangs: the file has settled, and is torn all the same
    torn = looks.first("epoch_3.pt")
    assert torn.kind == "waits"
    assert torn.reason.startswith("is not complete: ")
    assert "cut off" in torn.reason
    (tmp_path / "epoch_3.pt").write_bytes(whole)
    assert looks.second("epoch_3.pt") == checkpoint(80)


def test_a_marker_or_its_age_says_that_a_file_is_complete(tmp_path: Path) -> None:
    save_filled(tmp_path / "epoch_1.pt", {"state_dict": {}, "epoch": 1, "step": 5})
    looks = Looks(tmp_path, marker="{}.done")
    assert looks.second("epoch_1.pt") == Verdict("waits")
    marker = tmp_path / "epoch_1.pt.done"
    marker.touch()
    assert looks.first("epoch_1.pt") == checkpoint(5)
    marker.unlink()
    os.utime(tmp_path / "epoch_1.pt", (0, 0))
    [old] = LocalFolder(tmp_path).list()
    assert Classifier(Memory(tmp_path / "memory.json")).classify(old) == checkpoint(5)


def test_a_name_without_a_step_is_told_what_to_do(tmp_path: Path) -> None:
    for name in ("final.pt", "epoch_2.pt"):
        save_filled(tmp_path / name, {"state_dict": {}, "epoch": 2})
        assert Looks(tmp_path).second(name) == Verdict("no checkpoint", NO_STEP)
    assert Looks(tmp_path, steps_per_epoch=250).second("epoch_2.pt") == checkpoint(500)


def test_a_file_that_cannot_be_opened_takes_no_step_and_says_why(tmp_path: Path) -> None:
    """It had "no step in its name", and with a pattern for the step it took the step, which the evaluation refused."""
    save_filled(tmp_path / "0000005.pt", {"model": {}, "steps": 5, "args": print})
    for rules in ({}, {"step_pattern": StepPattern(r"(\d+)")}):
        refused = Looks(tmp_path, **rules).second("0000005.pt")
        assert refused.kind == "no checkpoint"
        assert refused.reason.startswith("cannot be opened: it would run builtins.print when it is opened")
    (tmp_path / "step_6.pt").write_bytes(pickle.dumps(argparse.Namespace(lr=1), protocol=2))
    old = Looks(tmp_path).second("step_6.pt")
    assert (old.kind, "would run argparse.Namespace" in old.reason) == ("no checkpoint", True)
    (tmp_path / "step_7.pt").write_text("a page of a proxy")
    text = Looks(tmp_path).second("step_7.pt")
    assert (text.kind, text.reason.partition(";")[0]) == ("waits", "is not complete: it is text")


def test_a_number_alone_is_a_step_where_it_can_be_nothing_else(tmp_path: Path) -> None:
    """LlamaGen writes 0050000.pt. A short number may be an epoch, and a long one a date."""
    for name, step in (("0050000.pt", 50_000), ("12345", 12_345), ("5.pt", None), ("20261130.pt", None)):
        assert read_bare_number(name) == step
    save_filled(tmp_path / "0050000.pt", {"model": {}})
    assert Looks(tmp_path).second("0050000.pt") == checkpoint(50_000)
    save_filled(tmp_path / "00005.pt", {"model": {}, "steps": 900})
    assert Looks(tmp_path).second("00005.pt") == checkpoint(900), "what the file says counts first"


def test_a_file_of_a_training_loop_with_its_epoch_is_a_checkpoint(tmp_path: Path) -> None:
    """With an epoch and without `state_dict` it was taken for an optimizer, and left out in silence."""
    for number, key in enumerate(("model", "ema", "module", "state_dict")):
        save_filled(tmp_path / f"{number}.pt", {key: {"w": [0.0]}, "optimizer": {}, "epoch": 1, "step": 5})
        assert Looks(tmp_path).second(f"{number}.pt") == checkpoint(5)
    for name, content in (("optimizer", {"epoch": 1, "optimizer": {}}), ("numbers", {"step": 5, "loss\n": 0.5})):
        save_filled(tmp_path / f"step_5_{name}.pt", content)
        refused = Looks(tmp_path).second(f"step_5_{name}.pt")
        assert refused.kind == "no checkpoint"
        held = ", ".join(repr(key) if key == "loss\n" else key for key in content)
        assert refused.reason == f"holds no weights, but {held}; save the weights as `state_dict` or `model`"


def test_averaged_weights_take_their_step_from_their_epoch(tmp_path: Path) -> None:
    """The epoch's file may come later, and may be deleted before the averaged one is looked at.

    Two averagers of one method differ in their parameters, and would else be in one series.
    """
    assert read_averaged_name("ema_0.9999_1_12.pt") == Named(epoch=12, variant="ema_0.9999_1")
    assert read_averaged_name("average.pt") == Named()
    save_filled(tmp_path / "ema_0.99_1_3.pt", {"av_model_sd": {"w": [0.0]}, "step_counter": 1})
    looks = Looks(tmp_path)
    waits = "waits for epoch_3.pt, which has its step; or give --steps-per-epoch N"
    assert looks.second("ema_0.99_1_3.pt") == Verdict("waits", waits)
    save_filled(tmp_path / "epoch_3.pt", {"state_dict": {}, "epoch": 3, "step": 900})
    assert looks.second("ema_0.99_1_3.pt") == checkpoint(900, "ema_0.99_1")
    (tmp_path / "epoch_3.pt").unlink()
    save_filled(tmp_path / "poly_8_1_3.pt", {"av_model_sd": {"w": [0.0]}, "step_counter": 2})
    assert Looks(tmp_path).second("poly_8_1_3.pt") == checkpoint(900, "poly_8_1")


def test_a_hugging_face_folder_is_whole_when_all_its_shards_are(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + b"\0" * 4
    looks = Looks(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    for name, content, words in [
        ("optimizer.pt", b"x", "it has none of model.safetensors.index.json"),
        (one, whole, f"it holds 1 of the 2 parts of a model, and not {two}; copy all parts"),
        ("model.safetensors.index.json", b'{"weight_map"', "is truncated or damaged"),
        (
            "model.safetensors.index.json",
            json.dumps({"weight_map": {"a": one, "b": two}}).encode(),
            f"the folder lacks {two}",
        ),
        (two, b"", f"{two} is empty"),
        (two, whole[:-1], "its tensors end at byte"),
    ]:
        (tmp_path / "checkpoint-500" / name).write_bytes(content)
        found = looks.second("checkpoint-500")
        assert (found.kind, words in found.reason) == ("waits", True), found
    (tmp_path / "checkpoint-500" / two).write_bytes(whole)
    assert looks.second("checkpoint-500") == checkpoint(500)


def test_an_adapter_is_whole_with_its_configuration(tmp_path: Path) -> None:
    """peft writes the configuration after the weights."""
    looks, header = Looks(tmp_path), b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "checkpoint-500").mkdir()
    whole = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "checkpoint-500" / "adapter_model.safetensors").write_bytes(whole)
    assert "without adapter_config.json" in looks.second("checkpoint-500").reason
    (tmp_path / "checkpoint-500" / "adapter_config.json").write_text("{}")
    assert looks.second("checkpoint-500") == checkpoint(500)


@pytest.mark.parametrize(("name", "inner"), [("step-1000", ""), ("step1000", "model_and_optim")])
def test_a_folder_of_several_ranks_is_complete_with_its_metadata(tmp_path: Path, name: str, inner: str) -> None:
    """The metadata are written last, and a copy of the folder may lack a rank's file even then."""
    import torch
    from distributed_folders import save_distributed

    folder, looks = tmp_path / name / inner, Looks(tmp_path)
    save_distributed(folder, {"model": {"w": torch.ones(9, 9)}, "optim": {"w": torch.ones(9, 9)}})
    for file, words in ((".metadata", "has no .metadata yet"), ("__0_1.distcp", "lacks __0_1.distcp, which")):
        (folder / file).rename(tmp_path / "kept")
        found = looks.second(name)
        assert (found.kind, words in found.reason) == ("waits", True), found
        (tmp_path / "kept").rename(folder / file)
    assert looks.second(name) == checkpoint(1000)


@pytest.mark.parametrize(
    ("file", "words"),
    [("adapter_model.safetensors", "without adapter_config.json"), (".metadata", "is damaged or not by torch")],
)
def test_a_folder_of_another_form_is_told_how_it_becomes_a_model(tmp_path: Path, file: str, words: str) -> None:
    """It was waited for, for ever."""
    (tmp_path / "step_7").mkdir()
    (tmp_path / "step_7" / file).write_bytes(b"x")
    assert words in Looks(tmp_path).second("step_7").reason


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
        ("step-500", Named(step=500)),
        ("step500", Named(step=500)),
        ("global_step500", Named(step=500)),
        ("model_2_step_500.pt", Named(step=500)),
        ("llama-model-7b_step500", Named(step=500)),
        ("model-7b.pt", Named()),
        ("step12k.pt", Named()),
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
        *("optimizer_3.pt", "stats_3.pt", "scaler.pt", "training_args.bin", "rng_state_0.pth"),
        *("epoch_latest.pt", "last.ckpt", "model-best.pt", "epoch_3.tmp.pt", "tmp-checkpoint-500"),
        "pytorch_model-00001-of-00002.bin",
    ],
)
def test_what_lies_beside_checkpoints(name: str) -> None:
    assert skip_reason(name) is not None


def test_what_a_pattern_leaves_alone_is_said(tmp_path: Path) -> None:
    looks = Looks(tmp_path, step_pattern=StepPattern(r"it(\d+)"))
    save_filled(tmp_path / "it7.pt", {"state_dict": {"w": [0.0]}})
    assert looks.second("it7.pt") == checkpoint(7)
    for name, reason in {"epoch_3.pt": OTHER_NAME, "last.pt": OVERWRITTEN, "optimizer_7.pt": STATE}.items():
        save_filled(tmp_path / name, {})
        assert looks.second(name) == Verdict("no checkpoint", reason)


def test_an_unfinished_file_is_said_when_nobody_writes_it_any_more(tmp_path: Path) -> None:
    (tmp_path / "tmp-checkpoint-5").mkdir()
    looks = Looks(tmp_path)
    assert looks.first("tmp-checkpoint-5") == Verdict("waits")
    looks.now += 11
    assert looks.first("tmp-checkpoint-5") == Verdict("no checkpoint", UNFINISHED_NAME)


def test_folders_that_are_no_checkpoints_are_told_apart(tmp_path: Path) -> None:
    """`logs is not complete: it has none of model.safetensors.index.json` was said at each change of the logs."""
    for name in (
        *("logs/events.json", "run/step_5.pt", "llamagen/0005000.pt", "open_lm/checkpoints/epoch_1.pt"),
        *("final/model.safetensors", "checkpoint-5/config.json"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    looks = Looks(tmp_path)
    assert looks.first("logs") == Verdict("no checkpoint", NO_WEIGHTS)
    for name in ("run", "llamagen", "open_lm"):
        reason = f"is a folder of checkpoints, and is not looked into; watch that folder: {tmp_path / name}"
        assert looks.first(name) == Verdict("no checkpoint", reason)
    assert looks.first("final") == Verdict("waits")
    assert looks.second("checkpoint-5").reason.startswith("is not complete: it has none of model.safetensors.index")


def test_a_folder_that_cannot_be_listed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was absent from the output."""
    for name in ("checkpoint-5", "samples"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").touch()
    monkeypatch.setattr("evalsvc.watch.folders.MAX_FILES", 3)
    looks = Looks(tmp_path)
    many = f"{tmp_path / 'checkpoint-5'} holds more than 3 files, too many for a checkpoint; post one of the files"
    assert looks.second("checkpoint-5") == Verdict("waits", f"cannot be read: {many}")
    assert looks.second("samples") == Verdict("no checkpoint", NO_WEIGHTS)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("evalsvc.watch.folders.files_of", refuse)
    assert looks.second("checkpoint-5") == Verdict("waits", "cannot be read: permission denied")
    assert look_at(tmp_path / "nowhere") is None


def test_a_pattern_of_ones_own() -> None:
    pattern = StepPattern(r"(?P<variant>ema|raw)-(?P<step>\d+)k\.pt")
    assert pattern.read("ema-12k.pt") == Named(step=12, variant="ema")
    assert pattern.read("epoch_3.pt") is None
    assert StepPattern(r"it(\d+)").read("it0070.pt") == Named(step=70)
    assert StepPattern(r"e(?P<epoch>\d+)").read("e3.pt") == Named(epoch=3)
    for wrong, words in (
        ("(", "is no regular expression"),
        (r"\d+", "has no group for the step"),
        (r"(.*)\.pt", r"'epoch_3' in epoch_3\.pt, which is no step; put"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            StepPattern(wrong).read("epoch_3.pt")
