"""Registered components, and engines of stages."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from evalsvc.errors import InvalidRequest, InvalidSuite, UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.engines import engine_names, parse_engines, release_of, with_engines
from evalsvc.spec.suite import Suite, parse_suite


def test_what_is_installed_meanwhile_is_found_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are remembered, since to look for them takes longer than many a shard."""

    def install(name: str) -> None:
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[evalsvc.tasks]\n{name} = os:sep\n")

    with pytest.raises(UnknownName):
        catalog.load("tasks", "first")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    install("first")
    assert catalog.load("tasks", "first") is os.sep
    os.utime(tmp_path, ns=(1, 1))  # file systems have coarse clocks, and this test is fast
    install("second")
    assert {"first", "second", "loss"} <= set(catalog.names("tasks"))
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    known = catalog.names("tasks")
    assert not {"first", "second"} & set(known)
    monkeypatch.setattr(catalog, "entry_points", lambda **_: pytest.fail("it looked again"))
    assert catalog.names("tasks") == known


LOSS = {"kind": "loss", "name": "pairs", "data": "/data/pairs.jsonl"}
IMAGES = {"kind": "text_to_image", "name": "images", "captions": "/data/a.jsonl", "decoder": "/data/decoder.ckpt"}


def suite(*tasks: dict[str, Any]) -> Suite:
    return parse_suite({"tasks": list(tasks)}, "mine")


def test_engines_have_names() -> None:
    assert engine_names("model") == ["evalsvc", "float64", "open_lm", "transformers"]
    assert engine_names("decoder") == ["diffusers", "evalsvc"]
    assert engine_names("scoring") == ["evalsvc", "hflm"]
    assert engine_names("extractor") == ["clean-fid", "evalsvc", "torch-fidelity"]
    with pytest.raises(UnknownName, match="did you mean 'scoring'"):
        engine_names("scorin")
    assert release_of("hflm").startswith("hflm 0.")
    assert release_of("of_no_package") == "of_no_package"
    # evalsvc is the engine of what names none: the same suite has one digest, however it says so
    assert suite(LOSS).digest == suite({**LOSS, "engine": {"model": "evalsvc"}}).digest
    assert suite(LOSS).digest != suite({**LOSS, "engine": {"model": "open_lm"}}).digest


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"scoring": "hflm"}, "a task of kind loss has no stage scoring; its stages are model, decoder"),
        ({"model": "open-lm"}, "engine of the stage model.*open_lm"),
        ({"model": 1}, "valid string"),
        (["model"], "engine: "),
        ({"modle": "open_lm"}, "engine.modle"),
    ],
)
def test_an_engine_that_a_task_does_not_have_is_refused(engine: object, message: str) -> None:
    with pytest.raises(InvalidSuite, match=message):
        suite({**LOSS, "engine": engine})


def test_the_option_chooses_for_all_tasks_with_the_stage() -> None:
    chosen = with_engines(suite(LOSS, IMAGES), parse_engines(["model=open_lm", "decoder=diffusers"]))
    engines = {"model": "open_lm", "decoder": "diffusers", "scoring": None}
    assert [task.parameters["engine"] for task in chosen.tasks] == [engines] * 2
    assert chosen.name == "mine"
    assert with_engines(suite(LOSS), []).digest == suite(LOSS).digest
    [task] = with_engines(suite(IMAGES), [("extractor", "torch-fidelity")]).tasks
    assert (task.parameters["extractor"], task.parameters["resize"]) == ("torch-fidelity", "tf1-bilinear")
    [task] = with_engines(suite({**IMAGES, "extractor": "clean-fid"}), [("extractor", "evalsvc")]).tasks
    assert task.parameters["extractor"] == "inception"
    with pytest.raises(InvalidRequest, match="no task of the suite mine has the stage scoring"):
        with_engines(suite(LOSS, IMAGES), [("scoring", "hflm")])
    with pytest.raises(InvalidRequest, match="give a stage and an engine, such as model=open_lm"):
        parse_engines(["open_lm"])
    with pytest.raises(UnknownName, match="hflm"):
        parse_engines(["scoring=hflms"])
