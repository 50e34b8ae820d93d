"""Posting LoRA adapters: which base they get, what is kept of them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, refused

from evalsvc.checkpoints.expression import File
from evalsvc.store.lookup import find_checkpoint
from evalsvc.store.queue.attempts import checkpoint_reference

MODEL: dict[str, Any] = {"hidden_dim": 8, "n_layers": 1, "n_heads": 2, "seq_len": 16, "vocab_size": 100}
MODEL |= {"post_embed_norm": False, "weight_tying": False}


def write_base(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def write_adapter(folder: Path, base: Path | str, content: bytes = b"factors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").write_bytes(content)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "run" / "checkpoint-25", base)


def posted(app: App, uri: Path | str, **fields: Any) -> dict[str, Any]:
    response = app.post(uri, **fields)
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()["checkpoint"]
    return document


def test_the_recorded_base_becomes_step_0(app: App, base: Path, adapter: Path, tmp_path: Path) -> None:
    """By the folder alone, from an empty service. All steps share the base, and a post again is the same."""
    first = posted(app, adapter, suites=["loss"], sha256="A" * 64)
    assert (first["step"], first["variant"], first["sha256"], first["model"]["vocab_size"]) == (
        25,
        "raw",
        "a" * 64,
        100,
    )
    assert (first["uri"], first["in_use"]) == (f"run-a@0 + lora({adapter})", True)
    assert [parent["name"] for parent in first["parents"]] == ["run-a@0"]
    again = app.post(adapter, suites=["loss"], sha256="A" * 64)
    assert (again.status_code, again.json()["checkpoint"]["id"]) == (200, first["id"])
    second = posted(app, write_adapter(tmp_path / "run" / "checkpoint-50", base), step=50)
    assert second["parents"] == first["parents"]
    start = app.http.get(f"/v1/checkpoints/{first['parents'][0]['checkpoint']}").json()
    assert (start["step"], start["uri"], start["evaluations"], start["in_use"]) == (0, str(base), [], True)
    write_adapter(adapter, base, b"other factors")
    refused(app.post(adapter), 409, "conflict", "under the same uri")
    assert posted(app, adapter, replace=True)["id"] != first["id"]


def test_the_base_is_named_if_it_is_another_checkpoint(app: App, base: Path, adapter: Path, tmp_path: Path) -> None:
    posted(app, base, run="text", step=7)
    assert posted(app, f"text@7 + lora({adapter})")["uri"] == f"text@7 + lora({adapter})"
    other = write_adapter(tmp_path / "run" / "checkpoint-50", write_base(tmp_path / "other"))
    posted(app, base, step=0)
    refused(app.post(other, step=50), 409, "conflict", "at step 0", "post another variant")
    assert posted(app, f"run-a@0 + lora({other})", step=50)["uri"] == f"run-a@0 + lora({other})"
    assert posted(app, f"{tmp_path / 'other'} + lora({other})", run="b", step=5)["uri"] == f"b@0 + lora({other})"


def test_without_a_folder_of_the_base_the_runs_base_is_taken(app: App, base: Path, tmp_path: Path) -> None:
    """A name of the hub, a folder outside the roots, one that is gone, a relative one, and an adapter of an adapter."""
    adapters = tmp_path / "adapters"
    recorded = ["meta-llama/Llama-3-8B", "/etc", str(tmp_path / "gone"), "base", str(adapters / "0"), ""]
    folders = [write_adapter(adapters / str(number), name) for number, name in enumerate(recorded)]
    words = "is a LoRA adapter that names no folder of its base that the service may read, and run 'run-a' has no base"
    for folder in folders:
        detail = refused(app.post(folder), 422, "invalid_request", "has no base; post the base as step 0 of the run: ")
        assert "exist" not in detail
    refused(app.post(folders[0]), 422, "invalid_request", words)
    posted(app, base, step=0)
    for step, folder in enumerate(folders, 1):
        assert posted(app, folder, step=step)["uri"] == f"run-a@0 + lora({folder})"
    posted(app, base, run="text", step=3)
    assert app.http.put("/v1/runs/run-b/base", json={"run": "text", "step": 3}).status_code in (200, 404)
    assert posted(app, f"base + lora({folders[0]})", step=9)["parents"][0]["name"] == "run-a@0"


def test_refused(app: App, base: Path, adapter: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "adapter_model.safetensors").write_bytes(b"factors")
    cases: list[tuple[Any, dict[str, Any], str, str]] = [
        (alone, {}, "not_a_checkpoint", "adapter_model.safetensors without adapter_config.json"),
        (adapter / "adapter_model.safetensors", {}, "not_a_checkpoint", "give its folder on a disk, alone or with the"),
        (f"text@0 + lora({base})", {}, "not_a_checkpoint", "is no folder of a LoRA adapter on a disk"),
        (f"text@0 + lora({adapter})", {}, "unknown_name", "no run is named 'text'"),
        (f"run-a@8 + lora({adapter})", {}, "invalid_request", "run-a@8 is computed from other checkpoints; add"),
        (f"models/llama + lora({adapter})", {}, "checkpoint_not_allowed", "is a relative path"),
        (f"{adapter} + lora({adapter})", {}, "not_a_checkpoint", "is of a LoRA adapter"),
        (f"{tmp_path}/none + lora({adapter})", {}, "checkpoint_not_found", "none: "),
        (f"avg(run-a@0, run-a@0 + lora({adapter}))", {}, "invalid_request", "post each adapter as a checkpoint"),
        (adapter, {"model": MODEL | {"n_heads": 1}}, "invalid_request", "model differs from that of run-a@0"),
        (f"run-a@0 + lora({adapter})", {"step": None}, "invalid_request", "run or step is missing"),
        ("run-a@0 + lora(/etc)", {}, "checkpoint_not_allowed", "outside the allowed folders"),
    ]  # fmt: skip
    posted(app, base, step=0)
    posted(app, adapter, step=8)
    for uri, fields, code, words in cases:
        status = 403 if code == "checkpoint_not_allowed" else 422
        refused(app.post(uri, **fields), 404 if code == "unknown_name" else status, code, words)
    (adapter / "adapter_config.json").write_text("[1")
    refused(app.post(adapter), 422, "invalid_model_config", "adapter_config.json is not JSON")
    (adapter / "adapter_config.json").unlink()
    (adapter / "adapter_config.json").symlink_to("/etc/hostname")
    refused(app.post(adapter), 403, "checkpoint_not_allowed", "outside the allowed folders")


def reference_of(app: App, checkpoint: dict[str, Any]) -> Any:
    with app.store.reading() as session:
        return checkpoint_reference(find_checkpoint(session, checkpoint["id"]), Path("/data"))


def test_a_worker_gets_the_base_and_the_adapter(app: App, base: Path, adapter: Path, tmp_path: Path) -> None:
    """Each with the identity of its files; the adapter from its copy, as the trainer may delete the folder."""
    first = posted(app, adapter, spool="link", sha256="a" * 64)
    assert (first["spool_state"], first["in_use"]) == ("ready", False)
    found = reference_of(app, first)
    name = str(File("run-a@25"))
    assert (found.path, found.sha256, found.identity, found.model) == (first["uri"], None, None, None)
    assert list(found.virtual.parents) == ["run-a@0", name]
    own = found.virtual.parents[name]
    assert (own.path, own.sha256) == (f"/data/spool/{first['id']}/checkpoint-25", "a" * 64)
    assert own.identity.size == sum(file.stat().st_size for file in adapter.iterdir())
    assert list(found.virtual.models()) == ["run-a@0"]
    posted(app, write_adapter(tmp_path / "run" / "checkpoint-50", base), step=50)
    average = posted(app, "avg(run-a@25, run-a@50)", step=1, run="soup")
    assert [parent["name"] for parent in average["parents"]] == ["run-a@0", "run-a@25", "run-a@50"]
    found = reference_of(app, average)
    assert sorted(found.virtual.parents) == [str(File("run-a@25")), str(File("run-a@50")), "run-a@0"]


def test_its_values_are_measured_and_it_follows_its_run(app: App, base: Path, adapter: Path) -> None:
    """An adapter is a trained checkpoint: its points are in the curve of its run, and no virtual ones."""
    document = posted(app, adapter, suites=["loss"])
    posted(app, base, run="other", step=0)
    app.coordinator.work()
    [series, *_] = app.http.get("/v1/runs/run-a/metrics?points=10").json()["series"]
    assert (series["x"], series["virtual"]) == ([25], [False])
    words = "variant 'raw' of run 'run-a' has trained checkpoints"
    refused(app.post("avg(other@0)", step=30, variant="raw"), 422, "invalid_request", words)
    assert app.http.patch("/v1/runs/run-a", json={"name": "new"}).status_code == 200
    renamed = app.http.get(f"/v1/checkpoints/{document['id']}").json()
    assert renamed["uri"] == f"new@0 + lora({adapter})"
    with app.store.reading() as session:
        assert find_checkpoint(session, document["id"]).path == str(adapter)
    start = document["parents"][0]["checkpoint"]
    refused(app.http.delete(f"/v1/checkpoints/{start}?confirm=new@0"), 409, "conflict")
