"""Another package adds a task, a metric, a decoder and an extractor, each by one file and one entry point."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from miniature_run import DECODER, pretrained
from square_features import offer_squares

from evalsvc.decoders import load_decoder
from evalsvc.errors import InvalidSuite
from evalsvc.features import load_extractor
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.suite import parse_suite
from evalsvc.worker.local import run_suite

PACKAGE = Path(__file__).parents[1] / "support" / "plug_ins"


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None) -> None:
    monkeypatch.syspath_prepend(PACKAGE)
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EVALSVC_THREADS", "1")


@pytest.fixture
def negative(tmp_path: Path) -> str:
    """A configuration that asks for the package's decoder."""
    config = yaml.safe_load((ROOT / "movqgan" / "config.yaml").read_text())
    config["model"]["target"] = "inverted.Decoder"
    (tmp_path / "negative.yaml").write_text(json.dumps(config))
    return str(tmp_path / "negative.yaml")


def evaluate(*tasks: dict[str, Any]) -> dict[str, float]:
    result = run_suite(parse_suite({"tasks": list(tasks)}, "test"), pretrained(5), lambda *_: None)
    assert result["errors"] == {}
    return {metric["name"]: metric["value"] for metric in result["metrics"]}


@pytest.mark.usefixtures("_installed")
def test_a_task_is_one_file_and_one_entry_point() -> None:
    label = pretrained(5).label
    assert evaluate({"kind": "letters", "times": 2}) == {"letters/count": 2 * sum(map(str.isalpha, label))}
    with pytest.raises(InvalidSuite, match="no key is named 'time'; did you mean 'times'"):
        parse_suite({"tasks": [{"kind": "letters", "time": 2}]}, "test")


@pytest.mark.usefixtures("_installed")
def test_so_are_a_metric_and_a_decoder(monkeypatch: pytest.MonkeyPatch, negative: str) -> None:
    offer_squares(monkeypatch)
    task = {"kind": "text_to_image", "samples": 8, "decoder": DECODER, "extractor": "squares", "metrics": ["spread"]}
    plain = evaluate({**task, "name": "plain"})["plain/spread"]
    assert plain > 0
    assert evaluate({**task, "name": "negative", "decoder_config": negative})["negative/spread"] == pytest.approx(
        plain, rel=0.02
    ), "negatives lie as far apart, but for rounding and clamping"
    codes = torch.zeros(1, 64, dtype=torch.int64)
    positive = load_decoder(DECODER, ROOT / "movqgan" / "config.yaml").decode(codes)
    torch.testing.assert_close(load_decoder(DECODER, negative).decode(codes), -positive)


@pytest.mark.usefixtures("_installed")
def test_so_is_an_extractor(tmp_path: Path) -> None:
    (tmp_path / "factor.txt").write_text("2")
    extractor = load_extractor("brightness", tmp_path / "factor.txt")
    assert extractor.features(torch.full((2, 3, 4, 4), 100, dtype=torch.uint8), "none")[1].tolist() == [
        [200.0],
        [200.0],
    ]


def test_without_the_package_none_of_them_is_there() -> None:
    assert not {"letters", "spread", "inverted", "brightness"} & {
        name for group in catalog.COMPONENTS for name in catalog.names(group)
    }
