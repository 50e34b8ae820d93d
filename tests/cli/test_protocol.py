"""`evalsvc protocol`."""

from typing import Any

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.assets import ASSETS
from evalsvc.spec.protocol import Protocol

INCEPTION = str(ASSETS["inception"].tensors)
A = Protocol({"data": "ab" * 32, "extractor": {"name": "inception", "sha256": INCEPTION}, "scale": 3.0})
B = Protocol({"data": "cd" * 32, "extractor": {"name": "inception", "sha256": INCEPTION}, "seed": 1})


@pytest.fixture(autouse=True)
def evaluated(service: Any) -> None:
    enter(service.store, submission(5), suite())
    evaluate_whole(service.store, metric(2.0, "loss-0/fid", protocol=A), metric(2.0, "loss-0/kid", protocol=A))
    enter(service.store, submission(10), suite())
    evaluate_whole(service.store, metric(2.0, "loss-0/fid", protocol=B))


def test_digests_are_shown_with_the_files_that_they_are_of(evalsvc: Shell) -> None:
    """`{"data": "9f86d0…"}` told nobody which file was meant."""
    assert evalsvc("protocol run-a@5").out.splitlines() == [
        f"protocol {A.id} measured loss-0/fid, loss-0/kid:",
        f"  data: {'ab' * 32} (/data.jsonl)",
        "  extractor.name: inception",
        f"  extractor.sha256: {INCEPTION} (asset inception)",
        "  scale: 3.0",
    ]
    alone = evalsvc(f"protocol {A.id}").out
    assert f"  data: {'ab' * 32}\n" in alone, "which file this is, only an evaluation knows"
    assert "(asset inception)" in alone
    assert evalsvc(f"protocol {A.id} --format json").json["protocols"][0]["content"] == A.content
    csv = evalsvc("protocol run-a@5 --metric loss-0/kid --format csv").out
    assert f"{A.id},data,{'ab' * 32},/data.jsonl" in csv


def test_protocols_are_listed_and_told_apart(evalsvc: Shell) -> None:
    assert [A.id, "1", "loss-0/fid,", "loss-0/kid"] in evalsvc("protocol --run run-a").cells
    assert B.id not in evalsvc("protocol --metric loss-0/kid").out
    shown = evalsvc(f"protocol {A.id} {B.id}").cells
    assert (["scale", "3.0"] in shown, ["seed", "1"] in shown) == (True, True)
    assert evalsvc(f"protocol {A.id} {B.id} --format json").json["scale"] == {"a": 3.0}
    assert "run-a@10" in evalsvc("protocol run-a@5 run-a@10 --metric loss-0/fid").out
    assert evalsvc(f"protocol {A.id} {A.id}").out == f"{A.id} and {A.id} are the same protocol\n"
    assert "name a metric by --metric" in evalsvc(f"protocol run-a@5 {B.id}").err
    assert f"did you mean '{A.id}'" in evalsvc(f"protocol {A.id[:-1]}x").err
