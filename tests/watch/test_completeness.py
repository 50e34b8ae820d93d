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
    save_filled(tmp_path / "0000005.pt", {"model": {}, "steps": 5, "args": argparse.Namespace(lr=1)})
    for rules in ({}, {"step_pattern": StepPattern(r"(\d+)")}):
        refused = Looks(tmp_path, **rules).second("0000005.pt")
        assert refused.kind == "no checkpoint"
        assert refused.reason.startswith("cannot be opened: it would run argparse.Namespace when it is opened")
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
        (one, whole, f"it holds {one}, a part of a model; post the folder of all parts with their index"),
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
    [("adapter_model.safetensors", "it is a LoRA adapter"), (".metadata", "is damaged or not by torch")],
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
