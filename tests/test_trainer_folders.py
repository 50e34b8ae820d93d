"""Folders of torchtitan and OLMo-core, posted to a service: by a path, spooled, and in an object store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_folders import save_distributed
from loss_task import LAYOUT, RECORDS, write
from machines import wait_for
from object_store import ObjectStore, object_store
from safetensors.torch import load_file
from service_process import ServiceProcess
from tiny_families import write_ours

NAMES = {"embed_tokens": "embeddings", "q_proj": "w_q", "k_proj": "w_k", "v_proj": "w_v", "o_proj": "w_out"}
NAMES |= {"self_attn": "attention", "mlp": "feed_forward", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
NAMES |= {"layers": "blocks", "input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}
NAMES |= {"lm_head": "lm_head.w_out", "norm": "lm_head.norm"}


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture
def service(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_process: None
) -> Iterator[ServiceProcess]:
    write(tmp_path / "pairs.jsonl", RECORDS)
    settings = {"SCHEMES": "file,s3", "ROOTS": f"{tmp_path}:s3://{store.bucket}", "DEVICES": "cpu", "THREADS": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"EVALSVC_{name}", value)
    with ServiceProcess(tmp_path / "service") as running:
        running.put_suite("losses", {"kind": "loss", "data": str(tmp_path / "pairs.jsonl")})
        yield running


def test_the_losses_are_those_of_the_whole_file(service: ServiceProcess, store: ObjectStore, tmp_path: Path) -> None:
    theirs, olmo, titan = tmp_path / "theirs", tmp_path / "olmo" / "step1000", tmp_path / "titan" / "step-1000"
    write_ours("llama", theirs, vocab_size=112)
    whole = load_file(theirs / "model.safetensors")
    named = {name.removeprefix("model."): tensor for name, tensor in whole.items()}
    state = {".".join(NAMES.get(word, word) for word in name.split(".")): tensor for name, tensor in named.items()}
    save_distributed(
        olmo / "model_and_optim", {"model": state, "optim": {"state": {"x": {"exp_avg": torch.ones(9, 9)}}}}
    )
    (olmo / "config.json").write_text(json.dumps({"model": {"d_model": 48}}))  # in a form that is not read
    save_distributed(titan, {**whole, "train_state": {"step": torch.tensor(5)}})
    shutil.copy(theirs / "config.json", titan.parent)
    for path in olmo.rglob("*.*"):
        there = store.put(f"olmo/step1000/{path.relative_to(olmo)}", path.read_bytes()).rpartition("/step1000/")[0]

    def post(run: str, uri: object, **fields: Any) -> int:
        body = {"run": run, "step": 1, "uri": str(uri), "suites": ["losses"], "layout": dict(LAYOUT), **fields}

        def posted() -> Any:
            answer = service.ask("POST", "/v1/checkpoints", json=body)
            return None if answer.status_code == 503 else answer  # the store's client is imported within 10 s or later

        answer = wait_for(posted, "the post", 120)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["evaluations"][0]["id"])

    model = json.loads((theirs / "config.json").read_text())
    runs = {"theirs": post("theirs", theirs), "titan": post("titan", titan)}
    runs |= {"olmo": post("olmo", olmo, model=model), "copied": post("copied", titan, spool="copy")}
    runs["inner"] = post("inner", olmo / "model_and_optim", model=model)
    runs["remote"] = post("remote", f"{there}/step1000", model=model)
    ended = {name: service.wait(number, 300) for name, number in runs.items()}
    assert {name: document["state"] for name, document in ended.items()} == dict.fromkeys(runs, "succeeded"), ended
    expected = service.history("theirs")
    assert expected[("loss/image", 1)] > 0
    for name in runs:
        assert service.history(name) == pytest.approx(expected, abs=1e-6)
