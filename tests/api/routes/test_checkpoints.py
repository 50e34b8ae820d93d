"""Posting checkpoints: what is kept, what is refused, and how fast."""

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, refused

from evalsvc.checkpoints.copies import spool_path
from evalsvc.errors import INSPECT

MODEL: dict[str, Any] = {"hidden_dim": 8, "n_layers": 1, "n_heads": 2, "seq_len": 16, "vocab_size": 100}
MODEL |= {"post_embed_norm": False, "weight_tying": False}


def test_post_answers_with_checkpoint_and_evaluations(app: App, weights: Path) -> None:
    response = app.post(weights, suites=["loss"], tokens_seen=1000, tags={"lr": "3e-4"}, priority=2)
    assert response.status_code == 201
    document = response.json()
    assert document["evaluations"] == [{"id": 1, "suite": "loss", "state": "queued"}]
    checkpoint = document["checkpoint"]
    assert checkpoint == app.http.get(f"/v1/checkpoints/{checkpoint['id']}").json()
    expected = {"run": "run-a", "step": 25, "variant": "raw", "uri": str(weights), "tokens_seen": 1000}
    assert expected.items() <= checkpoint.items()
    assert checkpoint["tags"] == {"lr": "3e-4"}
    assert app.coordinator.woken == 1


def test_the_same_post_twice(app: App, weights: Path) -> None:
    """What was kept in the database and what is parsed anew must compare equal."""
    layout = {"text": {"size": 60}, "image": {"offset": 60, "size": 20}, "special": {"pad": 90}}
    fields: dict[str, Any] = {"suites": ["loss", "loss"], "model": MODEL, "layout": layout}
    first, again = (app.post(weights, **fields) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = {**MODEL, "n_heads": 1}
    refused(app.post(weights, **fields | {"model": other}), 409, "conflict", "with another model")
    replaced = app.post(weights, **fields | {"model": other}, replace=True)
    assert (replaced.status_code, replaced.json()["checkpoint"]["id"]) == (201, 2)


def test_a_post_that_evaluates_nothing_says_so(app: App, weights: Path) -> None:
    """A training without `suites` got 201 for every checkpoint, and no checkpoint was ever evaluated."""
    for _ in ("new", "again"):
        answer = app.post(weights, step=25).json()
        assert answer["note"] == (
            "run 'run-a' has no plan, so nothing is evaluated; give suites=[\"NAME\"], or set a plan: "
            "PUT /v1/runs/run-a/plan"
        )
    plan = {"suites": [{"suite": "loss", "every": 10}]}
    assert app.http.put("/v1/runs/run-a/plan", json=plan).status_code == 200
    due = app.post(weights, step=30).json()
    assert ([item["suite"] for item in due["evaluations"]], due["note"]) == (["loss"], None)
    planned = app.post(weights, step=35).json()
    assert planned["note"] == "the plan of run 'run-a' has no suite for step 35, so nothing is evaluated"
    empty = app.post(weights, step=40, suites=[]).json()
    assert (empty["evaluations"], empty["note"]) == ([], "suites is empty, so nothing is evaluated")


def test_eight_gigabytes_are_not_read(app: App, tmp_path: Path) -> None:
    """A request looks at a checkpoint by stat only."""
    large = tmp_path / "large.pt"
    large.touch()
    os.truncate(large, 8 << 30)
    app.post(large, step=1)  # what is imported or compiled at the first request is not what this measures
    begun = time.perf_counter()
    assert app.post(large, suites=["loss"]).status_code == 201
    assert time.perf_counter() - begun < 1, "to read them takes longer on any disk"


def test_what_lies_beside_the_weights_is_bounded(app: App, weights: Path) -> None:
    """A post beside a thousand JSON files took 25 s, each of them opened and parsed.

    A stray link in a folder that several may write to stopped every post from there, and later hid that limit.
    """
    for name, target in {"a": "/etc/passwd", "b": "/nowhere", "c": "c.json", "d": "/proc/version"}.items():
        weights.with_name(f"{name}.json").symlink_to(target)
    weights.with_name("model.json").write_text(json.dumps(MODEL))
    assert MODEL.items() <= app.post(weights, step=1).json()["checkpoint"]["model"].items()
    for number in range(1000):
        weights.with_name(f"stats_{number}.json").write_text('{"loss": [0.5]}')
    words = ("holds more than 100 JSON files", "set `model` to")
    refused(app.post(weights), 422, "invalid_model_config", *words)
    assert app.post(weights, model=MODEL).status_code == 201
    (weights.parent / "params.txt").write_text("model: /somewhere/zzz.json\n")
    weights.with_name("zzz.json").write_text(json.dumps(MODEL))
    assert MODEL.items() <= app.post(weights, step=2).json()["checkpoint"]["model"].items(), "what is named is read"


def test_bad_field(app: App, weights: Path) -> None:
    for fields, words in [
        ({"step": -1}, "step: input should be greater than or equal to 0, found -1"),
        ({"step": "25"}, "step: input should be a valid integer, found '25'"),
        ({"step": None}, "step: input should be a valid integer, found None"),
        ({"step": 2**63}, "step: input should be less than or equal to 9007199254740991"),
        ({"stepp": 3}, "no field is named 'stepp'; did you mean 'step'?"),
        ({"run": "a b"}, "run: 'a b' is not a name; use letters, digits"),
        ({"run": "a" * 129}, "at most 128"),
        ({"tags": {"a": {"b": "c"}}}, "tags.a: input should be a valid string"),
        ({"spool": "lnk"}, "spool: input should be 'none', 'link' or 'copy', found 'lnk'"),
        ({"sha256": "abc"}, "sha256: string should match pattern"),
        ({"uri": "/" + "a" * 4096}, "uri: string should have at most 4096 characters"),
        ({"uri": "/weights\0.pt"}, "has a NUL or an unpaired surrogate"),
        ({"tags": {"a": "\ud800"}}, "has a NUL or an unpaired surrogate"),
        ({"model": {"norm_eps": float("nan")}}, "the number nan is not allowed"),
        ({"priority": 10**9}, "priority: input should be less than or equal to 1000000"),
    ]:
        body = json.dumps({"run": "run-a", "step": 25, "uri": str(weights)} | fields)
        response = app.http.post("/v1/checkpoints", content=body, headers={"Content-Type": "application/json"})
        refused(response, 422, "invalid_request", words)
    assert app.http.get("/v1/runs").json()["runs"] == []


def test_bad_uri(app: App, tmp_path: Path) -> None:
    """The service's own files are no checkpoints, under whatever root they lie; here the data folder is in one."""
    words = "post the checkpoint when the file is complete"
    refused(app.post(tmp_path / "missing.pt"), 422, "checkpoint_not_found", words)
    (tmp_path / "two").mkdir()
    for name in ("epoch_1.pt", "epoch_2.pt"):
        (tmp_path / "two" / name).touch()
    refused(app.post(tmp_path / "two"), 422, "not_a_checkpoint", f"epoch_2.pt: post one of these files; {INSPECT}")
    words = f"outside the allowed folders ({tmp_path}), or into evalsvc's data folder or keys; move the file"
    (tmp_path / "link.pt").symlink_to(tmp_path / "data" / "evalsvc.db")
    for private in ("/etc/passwd", *(tmp_path / name for name in ("data/evalsvc.db", "data", "link.pt"))):
        refused(app.post(private), 403, "checkpoint_not_allowed", words)
    refused(app.post("s3://bucket/epoch_1.pt"), 403, "checkpoint_not_allowed", "EVALSVC_SCHEMES; allowed here: file")
    assert app.http.get("/v1/runs").json()["runs"] == []


def test_what_a_post_names_is_read_below_the_roots_only(app: App, weights: Path, tmp_path: Path) -> None:
    """Of what lies elsewhere, not even whether it exists is told. The data folder lies below a root here."""
    private = tmp_path / "data" / "secret.json"
    private.write_text('{"n_layers": "hunter2"}')
    words = "is, or links, outside the allowed folders"
    for fields in [
        {"model": "/etc/passwd"},
        {"layout": "/nowhere/layout.yaml"},
        {"layout": {"text": {"size": 60}, "image": {"map": "/nowhere/map.json"}}},
        {"model": str(private)},
        {"layout": str(private)},
    ]:
        answer = app.post(weights, **fields)
        assert "hunter2" not in refused(answer, 403, "checkpoint_not_allowed", words)
    layout = {"text": {"size": 60, "tokenizer": "/etc/shadow"}}
    refused(app.post(weights, layout=layout), 422, "invalid_data", "outside the allowed folders")


def test_a_model_by_name_and_by_path(app: App, weights: Path, tmp_path: Path) -> None:
    assert app.post(weights, model="open_lm_160m").json()["checkpoint"]["model"]["hidden_dim"] == 768
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "mine.json"
    file.write_text(json.dumps(MODEL))
    assert app.post(weights, step=26, model=str(file)).json()["checkpoint"]["model"] == MODEL


def test_a_model_that_transformers_computes(app: App, tmp_path: Path) -> None:
    """The configuration is stored with the checkpoint, or left in its folder where the model is given by name."""
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 80}
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "model.safetensors").write_text("{}")
    (folder / "config.json").write_text(json.dumps(config))
    stored = app.post(folder).json()["checkpoint"]["model"]
    assert (stored["family"], json.loads(stored["transformers_config"])) == ("transformers", config)
    assert app.post(folder, step=2, model=stored).json()["checkpoint"]["model"] == stored
    named = app.post(folder, step=3, model="transformers").json()["checkpoint"]["model"]
    assert named == {"family": "transformers"}
    hostile = json.dumps({**config, "auto_map": {"AutoModel": "modeling.Model"}})
    refused(app.post(folder, step=4, model={**stored, "transformers_config": hostile}), 422, "unsupported_model")
    (folder / "config.json").write_text(hostile)
    refused(app.post(folder, step=4), 422, "unsupported_model", "code of its own")


def test_a_layout_is_checked_against_the_models_table_and_kept_inline(app: App, weights: Path, tmp_path: Path) -> None:
    layout = app.post(weights, layout={"text": {"size": 100}}, model=MODEL).json()["checkpoint"]["layout"]
    assert layout["text"]["size"] == 100
    layout = {"text": {"offset": 0, "size": 60}, "image": {"offset": 60, "size": 50}}
    refused(app.post(weights, layout=layout, model=MODEL), 422, "invalid_layout", "100")
    # A file lies below the roots; what it names was read wherever that lay, and its values were quoted.
    outside = Path(tempfile.mkdtemp(dir=tmp_path.parent)) / "secret.json"
    outside.write_text('["hunter2"]')
    file = tmp_path / "layouts" / "layout.yaml"
    file.parent.mkdir()
    file.with_name("link.json").symlink_to(outside)
    for named in (str(outside), "link.json"):
        file.write_text(f"{{text: {{size: 9}}, image: {{offset: 9, size: 2, map: {named}}}}}")
        answer = app.post(weights, layout=str(file))
        refused(answer, 403, "checkpoint_not_allowed", "outside the allowed folders")
        assert "hunter2" not in answer.text


def test_a_link_keeps_the_weights_when_the_trainer_deletes_them(app: App, weights: Path) -> None:
    left_to_the_coordinator = app.post(weights, step=1, suites=["loss"], spool="copy").json()["checkpoint"]
    assert (left_to_the_coordinator["spool_state"], left_to_the_coordinator["in_use"]) == ("copying", True)
    copy = spool_path(app.settings.data_path, 2, str(weights))
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"of a post that was rolled back")
    document = app.post(weights, suites=["loss"], spool="link").json()["checkpoint"]
    assert (document["id"], document["spool_state"], document["in_use"]) == (2, "ready", False)
    weights.unlink()
    assert copy.read_bytes() == b"weights"


class TestVirtual:
    """Expressions over checkpoints; what they mean is tested in the store."""

    @pytest.fixture(autouse=True)
    def _parents(self, app: App, weights: Path) -> None:
        for step in (0, 10, 20):
            assert app.post(weights, step=step, tokens_seen=step * 100, model=MODEL).status_code == 201

    def post(self, app: App, uri: str, **fields: Any) -> Any:
        return app.http.post("/v1/checkpoints", json={"uri": uri, **fields})

    def test_defaults_are_those_of_the_first_parent(self, app: App, weights: Path) -> None:
        app.post(weights, run="text", step=99, model=MODEL)
        response = self.post(app, " avg( run-a@20,run-a@10..20/10, text@99 )", suites=["loss"])
        assert response.status_code == 201
        found = response.json()["checkpoint"]
        assert found["uri"] == "avg(run-a@10, run-a@20, run-a@20, text@99)"
        assert (found["run"], found["step"], found["tokens_seen"]) == ("run-a", 20, 2000)
        assert re.fullmatch("avg-[0-9a-f]{10}", found["variant"])
        assert [parent["name"] for parent in found["parents"]] == ["run-a@10", "run-a@20", "text@99"]
        assert (found["model"], found["in_use"], found["spool_state"]) == (MODEL, False, None)
        again = self.post(app, "avg(text@99,run-a@20,run-a@10,run-a@20)", suites=["loss"])
        assert (again.status_code, again.json()) == (200, response.json())
        other = self.post(app, "avg(run-a@10, run-a@20)", tokens_seen=0).json()["checkpoint"]
        assert (other["variant"] != found["variant"], other["tokens_seen"]) == (True, 0)

    def test_its_values_never_land_among_those_of_trained_checkpoints(self, app: App, weights: Path) -> None:
        words = ("variant 'raw' of run 'run-a' has trained checkpoints", "leave variant out")
        refused(self.post(app, "avg(run-a@0..20)", step=15, variant="raw"), 422, "invalid_request", *words)
        assert self.post(app, "avg(run-a@0..20)", step=15, variant="swa").status_code == 201
        app.post(weights, run="other", step=1, model=MODEL)
        for run, variant in (("other", r"avg-\w{10}"), ("of-virtual-ones", "raw")):
            found = self.post(app, "avg(run-a@0..20)", run=run, step=1).json()["checkpoint"]
            assert re.fullmatch(variant, found["variant"])

    def test_refused(self, app: App, weights: Path) -> None:
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({"uri": "avg(run-a@0"}, "invalid_request", "in 'avg(run-a@0' at character 12: expected a comma or"),
            ({"model": MODEL}, "invalid_request", "model cannot be set for a virtual checkpoint"),
            ({"sha256": "0" * 64}, "invalid_request", "sha256 cannot be set for a virtual checkpoint"),
            ({"spool": "link"}, "invalid_request", "spool is 'link' for a virtual checkpoint"),
            ({"uri": "graft(run-a@0, run-a@10, layers=1)"}, "invalid_request", "layers=1, but the model has 1 layers"),
            ({"layout": {"text": {"size": 101}}}, "invalid_layout", "exceeds the table of 100 rows"),
        ]
        for fields, code, words in cases:
            refused(self.post(app, **{"uri": "avg(run-a@0, run-a@10)", **fields}), 422, code, words)
        assert len(app.http.get("/v1/runs/run-a").json()["checkpoints"]) == 3
        weights.write_bytes(b"other weights")
        refused(self.post(app, "avg(run-a@0)"), 409, "checkpoint_changed", "run 'run-a' step 0: ")

    def test_parents_of_other_models_and_layouts(self, app: App, weights: Path) -> None:
        app.post(weights, run="wide", step=0, model={**MODEL, "vocab_size": 120, "n_heads": 1})
        response = self.post(app, "avg(run-a@0, wide@0)")
        words = "run-a@0 and wide@0 are different models: n_heads 2 and 1, vocab_size 100 and 120"
        refused(response, 422, "checkpoint_mismatch", words)
        for run, size in (("one", 60), ("two", 70)):
            app.post(weights, run=run, step=0, model=MODEL, layout={"text": {"size": size}})
        for uri, first in (("avg(one@0, two@0)", "one@0"), ("avg(run-a@0, two@0)", "run-a@0")):
            words = f"the layout of two@0 differs from the layout of {first} in"
            refused(self.post(app, uri), 422, "invalid_layout", words)
        given = {"layout": {"text": {"size": 60}}}
        refused(self.post(app, "avg(run-a@0, two@0)", **given), 422, "invalid_layout", "from the given layout")
        found = self.post(app, "avg(run-a@0, one@0)", **given).json()["checkpoint"]
        assert found["layout"]["text"]["size"] == 60
        assert self.post(app, "avg(one@0)").json()["checkpoint"]["layout"] == found["layout"]
