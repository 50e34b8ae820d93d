"""What a torch.save file says of itself, read without torch."""

import pickle
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from evalsvc.checkpoints.pickle_outline import OTHER, outline, read_outline
from evalsvc.errors import NotACheckpoint
from evalsvc.miniature import ROOT


@pytest.mark.parametrize("name", ["epoch_1.pt", "ema_0.9_1_1.pt", "optimizer_1.pt", "stats_1.pt"])
def test_agrees_with_torch_on_what_open_lm_writes(open_lm_case: Path, name: str) -> None:
    path = open_lm_case / "checkpoints" / name
    content = torch.load(path, weights_only=False)
    found = read_outline(path)
    assert list(found) == list(content)
    plain = {key: value for key, value in found.items() if value is not OTHER}
    assert plain == {key: content[key] for key in plain}
    kinds = (int, float, str)
    assert {key for key, value in content.items() if type(value) in kinds} == set(plain)


def test_the_miniature_says_its_steps() -> None:
    folder = ROOT / "runs" / "pretrained" / "checkpoints"
    assert [read_outline(folder / f"epoch_{epoch}.pt")["step"] for epoch in range(6)] == [0, 10, 20, 80, 300, 3000]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (time.sleep, (1000,))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_nothing_is_carried_out_in_any_protocol(protocol: int) -> None:
    content = {"state_dict": OrderedDict(a=[1, (2, 3)]), "bad": Hostile(), "step": 70_000, "large": 2**80, "text": "é"}
    found = outline(pickle.dumps(content, protocol))
    expected = {"state_dict": OTHER, "bad": OTHER, "step": 70_000, "large": 2**80, "text": "é"}
    assert found == expected


def test_an_inner_dictionary_is_not_taken_for_the_file(tmp_path: Path) -> None:
    """A `step` deep inside the optimizer's state is not the training's."""
    torch.save({"optimizer": {"state": {"step": 5}}, "epoch": 1}, tmp_path / "x.pt")
    assert read_outline(tmp_path / "x.pt") == {"optimizer": OTHER, "epoch": 1}


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    whole = (ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_1.pt").read_bytes()
    torn = tmp_path / "epoch_1.pt"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotACheckpoint, match="cut off"):
        read_outline(torn)


def test_what_is_no_dictionary_says_nothing(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x.pt")
    assert read_outline(tmp_path / "x.pt") == {}
