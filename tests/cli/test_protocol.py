"""`evalsvc protocol`."""

import json
from typing import Any

import pytest
from console import Command
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.assets import ASSETS
from evalsvc.spec.protocol import Protocol

INCEPTION = str(ASSETS["inception"].tensors)
A = Protocol({"data": "ab" * 32, "extractor": {"name": "inception", "sha256": INCEPTION}, "scale": 3.0})
B = Protocol({"data": "cd" * 32, "extractor": {"name": "inception", "sha256": INCEPTION}, "seed": 1})


@pytest.fixture(autouse=True)
def evaluated(command: Command, service: Any) -> None:
    enter(service.store, submission(5), suite())
    evaluate_whole(service.store, metric(2.0, "loss-0/fid", protocol=A), metric(2.0, "loss-0/kid", protocol=A))
    enter(service.store, submission(10), suite())
    evaluate_whole(service.store, metric(2.0, "loss-0/fid", protocol=B))


def test_digests_are_shown_with_the_files_that_they_are_of(command: Command) -> None:
    """`{"data": "9f86d0…"}` told nobody which file was meant."""
    shown = command("protocol", "run-a@5").out.splitlines()
    assert shown == [
        f"protocol {A.id} measured loss-0/fid, loss-0/kid:",
        f"  data: {'ab' * 32} (/data.jsonl)",
        "  extractor.name: inception",
        f"  extractor.sha256: {INCEPTION} (asset inception)",
        "  scale: 3.0",
    ]
    alone = command("protocol", A.id).out
    assert f"  data: {'ab' * 32}\n" in alone, "which file this is, only an evaluation knows"
    assert "(asset inception)" in alone
    assert json.loads(command("protocol", A.id, "--format", "json").out)["protocols"][0]["content"] == A.content
    csv = command("protocol", "run-a@5", "--metric", "loss-0/kid", "--format", "csv").out
    assert f"{A.id},data,{'ab' * 32},/data.jsonl" in csv


def test_two_protocols_are_told_apart(command: Command) -> None:
    rows = [line.split() for line in command("protocol", A.id, B.id).out.splitlines()]
    assert ["scale", "3.0"] in rows
    assert ["seed", "1"] in rows
    found = json.loads(command("protocol", A.id, B.id, "--format", "json").out)
    assert found["scale"] == {"a": 3.0}
    by_name = command("protocol", "run-a@5", "run-a@10", "--metric", "loss-0/fid").out
    assert "run-a@10" in by_name
    assert command("protocol", A.id, A.id).out == f"{A.id} and {A.id} are the same protocol\n"
    assert "name a metric by --metric" in command("protocol", "run-a@5", B.id).err


def test_protocols_are_listed(command: Command) -> None:
    lines = command("protocol", "--run", "run-a").out.splitlines()
    assert any(line.split() == [A.id, "1", "loss-0/fid,", "loss-0/kid"] for line in lines)
    assert B.id not in command("protocol", "--metric", "loss-0/kid").out


def test_what_is_not_there_has_near_misses(command: Command) -> None:
    assert f"did you mean '{A.id}'" in command("protocol", A.id[:-1] + "x").err
    assert "did you mean 'loss-0/fid'" in command("protocol", "run-a@5", "--metric", "loss-0/fd").err
    assert "leave --metric out" in command("protocol", A.id, "--metric", "loss-0/fid").err
