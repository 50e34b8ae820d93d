"""Another package adds a task, a metric, a decoder and an extractor, each by one file and one entry point."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from miniature_run import DECODER, pretrained
from square_features import offer_squares
from task_runs import metrics, run_task

from evalsvc.decoders import load_decoder
from evalsvc.errors import InvalidSuite
from evalsvc.features import load_extractor
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.suite import parse_suite

PACKAGE = Path(__file__).parents[1] / "support" / "plug_ins"


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PACKAGE)


@pytest.fixture
def negative(tmp_path: Path) -> str:
    config = yaml.safe_load((ROOT / "movqgan" / "config.yaml").read_text())
    config["model"]["target"] = "inverted.Decoder"
    (tmp_path / "negative.yaml").write_text(json.dumps(config))
    return str(tmp_path / "negative.yaml")


def value(name: str, /, **task: Any) -> float:
    return float(metrics(run_task(pretrained(5), **task))[name]["value"])


@pytest.mark.usefixtures("_installed")
def test_a_task_is_one_file_and_one_entry_point() -> None:
    letters = sum(map(str.isalpha, pretrained(5).label))
    assert value("letters/count", kind="letters", times=2) == 2 * letters
    with pytest.raises(InvalidSuite, match="no key is named 'time'; did you mean 'times'"):
        parse_suite({"tasks": [{"kind": "letters", "time": 2}]}, "test")


@pytest.mark.usefixtures("_installed")
def test_so_are_a_metric_and_a_decoder(monkeypatch: pytest.MonkeyPatch, negative: str) -> None:
    offer_squares(monkeypatch)
    task = {"kind": "text_to_image", "samples": 8, "decoder": DECODER, "extractor": "squares", "metrics": ["spread"]}
    plain, inverted = (value("x/spread", name="x", **task, **given) for given in ({}, {"decoder_config": negative}))
    assert inverted == pytest.approx(plain, rel=0.02) != 0, "negatives lie as far apart, but for rounding and clamping"
    codes = torch.zeros(1, 64, dtype=torch.int64)
    positive = load_decoder(DECODER, ROOT / "movqgan" / "config.yaml").decode(codes)
    torch.testing.assert_close(load_decoder(DECODER, negative).decode(codes), -positive)


@pytest.mark.usefixtures("_installed")
def test_so_is_an_extractor(tmp_path: Path) -> None:
    (tmp_path / "factor.txt").write_text("2")
    extractor = load_extractor("brightness", tmp_path / "factor.txt")
    images = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    assert extractor.features(images, "none")[1].tolist() == [[200.0], [200.0]]


def test_without_the_package_none_of_them_is_there() -> None:
    assert not {"letters", "spread", "inverted", "brightness"} & {
        name for group in catalog.COMPONENTS for name in catalog.names(group)
    }
