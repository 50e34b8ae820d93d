import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from evalsvc.checkpoints.expression import digest_of
from evalsvc.checkpoints.expression_parser import parse_expression
from evalsvc.checkpoints.reference import CheckpointRef, Virtual, hash_files, identify
from evalsvc.config import Settings
from evalsvc.errors import Cancelled
from evalsvc.messages import ShardRequest, ShardResult, Stage
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.model_config import config_beside
from evalsvc.spec.suite import Suite, TaskSpec, parse_suite
from evalsvc.tasks.task import Context, Plan, Task, TaskResult, Work
from evalsvc.worker import shard as runner
from evalsvc.worker.shard import ModelCache, RunnerContext, run_shard, run_suite

MODEL = {
    "hidden_dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "seq_len": 64,
    "vocab_size": 112,
    "post_embed_norm": False,
    "weight_tying": False,
}
LAYOUT = {"text": {"size": 80}, "image": {"offset": 96, "size": 16}}


@pytest.fixture(autouse=True)
def _worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process of its own, as it were: one thread, no model loaded."""
    before = torch.get_num_threads()
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DEVICE", "cpu")
    monkeypatch.setattr(runner, "_models", ModelCache())
    yield
    torch.set_num_threads(before)


@pytest.fixture
def weights(open_lm_case: Path, tmp_path: Path) -> Path:
    path = tmp_path / "epoch_1.pt"
    path.write_bytes((open_lm_case / "checkpoints" / "epoch_1.pt").read_bytes())
    return path


@pytest.fixture
def checkpoint(weights: Path) -> CheckpointRef:
    return CheckpointRef(str(weights), identify(weights), model=MODEL, layout=LAYOUT, label="run-a step 2")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    records = [{"text_ids": [1, 2, 3], "image_codes": [4, 5]}, {"text_ids": [7, 8]}, {"text_ids": [9, 9, 9]}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tasks = [
        {"kind": "loss", "name": "pairs", "data": "data.jsonl", "shards": 2},
        {"kind": "loss", "name": "missing", "data": "none.jsonl"},
        {"kind": "loss", "name": "few", "data": "data.jsonl", "limit": 2},
    ]
    return parse_suite({"tasks": tasks}, "small", tmp_path)


def ignore(done: int) -> None:
    pass


def shard(checkpoint: CheckpointRef, suite: Suite, stage: Stage = "plan") -> ShardResult:
    """The stage of the suite's first task, after those before it."""
    task = suite.tasks[0]
    if stage == "plan":
        return run_shard(ShardRequest(task, "plan", checkpoint), ignore)
    plan = shard(replace(checkpoint, identity=None), suite)
    return run_shard(ShardRequest(task, stage, checkpoint, plan.output["shards"][:1]), ignore)


def test_a_suite_is_evaluated_without_a_service(checkpoint: CheckpointRef, suite: Suite, weights: Path) -> None:
    progress: list[tuple[str, int, int, str]] = []
    result = run_suite(suite, checkpoint, lambda *now: progress.append(now))
    json.dumps({**result, "artifacts": None}, allow_nan=False)
    assert [artifact["name"] for artifact in result["artifacts"]["pairs"]][:1] == ["loss_profile.json"]
    assert list(result["errors"]) == ["missing"], "a failed task must not take the others with it"
    assert result["errors"]["missing"]["code"] == "invalid_data"
    assert "none.jsonl does not exist" in result["errors"]["missing"]["message"]
    names = {metric["name"] for metric in result["metrics"]}
    assert {"pairs/text", "pairs/image_perplexity", "few/image_mass"} <= names
    assert {metric["protocol"] for metric in result["metrics"]} == set(result["protocols"])
    assert len(result["protocols"]) == 4, "of the losses and of the entropies that they are held against"
    assert [len(result["items"][task]) for task in ("pairs", "few")] == [3, 2]
    assert result["checkpoint"] == {"path": str(weights), "label": "run-a step 2", "sha256": hash_files(weights)}
    assert result["suite"]["digest"] == suite.digest
    assert len(result["provenance"]["pairs"]["shards"]) == 2
    assert result["provenance"]["pairs"]["notes"]["sequences"] == 3
    assert [now for now in progress if now[0] == "pairs"][-1] == ("pairs", 3, 3, "sequences")
    assert sorted(now[1] for now in progress if now[0] == "pairs") == [now[1] for now in progress if now[0] == "pairs"]


def test_the_model_is_loaded_once_for_all_shards(
    checkpoint: CheckpointRef, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading takes longer than a shard; the digest that the first shard finds must not load it again."""
    loads = count_loads(monkeypatch)
    first = shard(checkpoint, suite, "run")
    assert first.error is None
    known = replace(checkpoint, sha256=first.provenance["checkpoint_sha256"])
    assert shard(known, suite, "run").error is None
    assert len(loads) == 1
    other = replace(suite.tasks[0], parameters={**suite.tasks[0].parameters, "dtype": "bfloat16"})
    run_suite(Suite("s", "", (other,)), checkpoint, lambda *now: None)
    assert len(loads) == 2


def test_a_plan_loads_no_model_and_a_merge_needs_no_checkpoint(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    plan = shard(checkpoint, suite)
    assert plan.error is None
    assert loads == []
    payloads = plan.output["shards"]
    outputs = [
        run_shard(ShardRequest(suite.tasks[0], "run", checkpoint, [payload]), ignore).output for payload in payloads
    ]
    weights.unlink()
    monkeypatch.setattr(runner, "_models", ModelCache())
    merged = run_shard(ShardRequest(suite.tasks[0], "merge", checkpoint, payloads, outputs), ignore)
    assert merged.error is None
    assert set(merged.output) == {"metrics", "protocols", "items", "notes", "artifacts", "warnings"}


def test_a_worker_computes_in_full_float32_and_without_cudnn_attention(checkpoint: CheckpointRef, suite: Suite) -> None:
    """cuDNN makes a plan for every shape and thread, which took text generation up to half a second a token."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert shard(checkpoint, suite).error is None
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    loads: list[int] = []
    load = runner.load_model
    monkeypatch.setattr(runner, "load_model", lambda *given, **named: loads.append(1) or load(*given, **named))
    return loads


def test_provenance(checkpoint: CheckpointRef, suite: Suite, weights: Path) -> None:
    found = shard(checkpoint, suite, "run").provenance
    assert found["checkpoint_sha256"] == hash_files(weights)
    assert (found["device"], found["dtype"], found["threads"], found["batch_tokens"]) == ("cpu", "float32", 1, 8192)
    assert found["versions"]["torch"] == torch.__version__
    assert found["seconds"] >= 0
    assert found["host"]


MINIATURE: dict[str, dict[str, Any]] = {
    "loss": {"data": str(ROOT / "heldout_pairs.jsonl"), "limit": 4},
    "completions": {"max_tokens": 4},
    "language": {"benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 4},
    "forgetting": {
        "benchmarks": ["cloze"],
        "include_path": [str(ROOT)],
        "limit": 4,
        "text": str(ROOT / "heldout_text.jsonl"),
        "text_limit": 4,
    },
    "text_to_image": {
        "captions": str(ROOT / "captions.jsonl"),
        "samples": 4,
        "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
        "metrics": [],
        "classifier": str(ROOT / "classifier.safetensors"),
    },
    "alignment": {"data": str(ROOT / "heldout_pairs.jsonl")},
}
"""Small tasks on the bundled run. The last one reads tables only, whatever the frequencies."""


def turned(checkpoint: CheckpointRef, path: Path) -> tuple[CheckpointRef, list[float]]:
    """The checkpoint with doubled rotary frequencies in its file, and these."""
    tensors = dict(torch.load(checkpoint.path, weights_only=True)["state_dict"])
    tensors |= {name: 2 * tensor for name, tensor in tensors.items() if "inv_freq" in name}
    torch.save(tensors, path)
    return replace(checkpoint, path=str(path), label="turned"), tensors[
        "layers.0.attention.pos_embed.inv_freq"
    ].tolist()


@pytest.mark.parametrize("kind", MINIATURE)
def test_rotary_frequencies_of_the_file_are_in_protocol_and_provenance(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They move every number of the model; with open_lm's own table a series goes on as it was."""
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    epoch = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_1.pt"
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
    plain = CheckpointRef(str(epoch), model=config_beside(epoch), layout=layout, label="plain")
    own, saved = turned(plain, tmp_path / "turned.pt")
    suite = parse_suite({"tasks": [{"kind": kind, "name": "task", **MINIATURE[kind]}]}, "small")
    results = [run_suite(suite, one, ignored, base) for one, base in ((plain, plain), (own, plain), (plain, own))]
    before, after, of_base = (contents(result) for result in results)
    uses_model = kind != "alignment"
    for name, content in before.items():
        assert without_rotary(content) == without_rotary(after[name]) == without_rotary(of_base[name])
        assert not {"rotary", "base_rotary"} & content.keys()
        if "members" not in content:  # these name the protocols of others
            assert after[name].get("rotary") == ("file" if uses_model else None)
        assert of_base[name].get("base_rotary") == ("file" if "base" in content else None)
    shards = results[1]["provenance"]["task"]["shards"]
    assert any(provenance.get("rotary_inv_freq") == saved for provenance in shards)
    assert (values(results[0]) != values(results[1])) == uses_model


def ignored(*progress: Any) -> None:
    pass


def without_rotary(content: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol, without what is said of rotary frequencies, and of the base and other protocols by their digests."""
    others = ("rotary", "base_rotary", "base", "less", "members")
    return {key: value for key, value in content.items() if key not in others}


def contents(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    assert result["errors"] == {}
    return {metric["name"]: result["protocols"][metric["protocol"]] for metric in result["metrics"]}


def values(result: Mapping[str, Any]) -> list[Any]:
    return [metric["value"] for metric in result["metrics"]]


def test_a_virtual_checkpoint_whose_parents_turn_differently_fails_in_its_plan(
    checkpoint: CheckpointRef, suite: Suite, tmp_path: Path
) -> None:
    other, _ = turned(replace(checkpoint, identity=None), tmp_path / "turned.pt")
    planned = shard(virtual_of("avg(run-a@2, run-a@3)", {"run-a@2": checkpoint, "run-a@3": other}), suite)
    assert planned.error is not None
    assert planned.error.code == "checkpoint_mismatch"
    assert planned.error.message == (
        "run-v step 7: run-a@2 and run-a@3 turn by different rotary frequencies: open_lm's table and those saved as "
        "inv_freq; only checkpoints of one model can be combined"
    )


@pytest.mark.parametrize("stage", ["plan", "run"])
@pytest.mark.parametrize(
    ("harm", "code", "fragment"),
    [
        (lambda path: path.unlink(), "checkpoint_gone", "was deleted before it was evaluated; post it again"),
        (lambda path: path.write_bytes(b"x" * 7), "checkpoint_changed", "has 7 bytes"),
        (lambda path: os.utime(path, (1, 1)), "checkpoint_changed", "mtime 1000000000, was posted with"),
    ],
)
def test_a_checkpoint_that_is_not_the_posted_one(
    checkpoint: CheckpointRef,
    suite: Suite,
    weights: Path,
    stage: Stage,
    harm: Callable[[Path], None],
    code: str,
    fragment: str,
) -> None:
    requests = {"plan": ShardRequest(suite.tasks[0], "plan", checkpoint)}
    payload = shard(checkpoint, suite).output["shards"][0]
    requests["run"] = ShardRequest(suite.tasks[0], "run", checkpoint, [payload])
    harm(weights)
    error = run_shard(requests[stage], ignore).error
    assert error is not None
    assert error.code == code
    assert fragment in error.message
    assert error.message.startswith("run-a step 2: ")


def test_a_checkpoint_replaced_while_it_is_read(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half old and half new fails in any way or in none; that it was replaced must be said."""
    load = runner.load_model
    original = weights.read_bytes()

    def replace_then_load(path: Path, *given: Any, **named: Any) -> Any:
        weights.write_bytes(b"something else")
        return load(path, *given, **named)

    monkeypatch.setattr(runner, "load_model", replace_then_load)
    error = shard(checkpoint, suite, "run").error
    assert error is not None
    assert error.code == "checkpoint_changed"

    def load_then_replace(path: Path, *given: Any, **named: Any) -> Any:
        model = load(path, *given, **named)
        os.utime(path, (1, 1))
        return model

    weights.write_bytes(original)
    monkeypatch.setattr(runner, "load_model", load_then_replace)
    error = shard(replace(checkpoint, identity=identify(weights)), suite, "run").error
    assert error is not None
    assert error.code == "checkpoint_changed"


def test_a_link_put_in_the_place_of_a_posted_file(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The roots were asked when it was posted; the worker must ask again of what it opens."""
    allowed, outside = tmp_path / "allowed" / "epoch_1.pt", tmp_path / "outside.pt"
    allowed.parent.mkdir()
    weights.rename(allowed)
    monkeypatch.setenv("EVALSVC_ROOTS", f"{allowed.parent}:{tmp_path / 'data.jsonl'}")
    posted = replace(checkpoint, path=str(allowed))
    assert shard(posted, suite, "run").error is None
    allowed.rename(outside)
    allowed.symlink_to(outside)
    error = shard(posted, suite).error
    assert error is not None
    assert error.code == "checkpoint_not_allowed"
    assert "lies, or leads by a link, outside the allowed folders" in error.message


def test_a_link_into_the_data_folder_is_not_followed(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By default everything lies under the roots, the service's keys included."""
    data, spooled = tmp_path / "service", tmp_path / "service" / "spool" / "7" / "epoch_1.pt"
    spooled.parent.mkdir(parents=True)
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(data))
    shutil.copy2(weights, spooled)
    shutil.copy2(weights, data / "key.pem")
    assert shard(replace(checkpoint, path=str(spooled)), suite, "run").error is None, "its own copy is read"
    weights.unlink()
    weights.symlink_to(data / "key.pem")
    error = shard(checkpoint, suite).error
    assert error is not None
    assert error.code == "checkpoint_not_allowed"
    assert "leads into the data folder of evalsvc" in error.message


def test_hash_and_weights_are_of_one_file(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same size and time that takes the name between hashing and loading, and gives it back."""
    load, digest = runner.load_model, hash_files(weights)

    def load_meanwhile(path: Path, *given: Any, **named: Any) -> Any:
        weights.parent.rename(weights.parent.with_name("kept"))
        weights.parent.mkdir()
        weights.write_bytes(b"another file")
        model = load(path, *given, **named)
        weights.unlink()
        weights.parent.rmdir()
        weights.parent.with_name("kept").rename(weights.parent)
        return model

    monkeypatch.setattr(runner, "load_model", load_meanwhile)
    result = shard(replace(checkpoint, model={**MODEL, "precision": "fp32"}), suite, "run")
    assert result.error is None
    assert result.provenance["checkpoint_sha256"] == digest


def test_a_checkpoint_without_identity_that_goes_away_while_it_is_read(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: Path) -> str:
        path.unlink()
        return hash_files(path)

    monkeypatch.setattr(runner, "hash_files", vanish)
    error = shard(replace(checkpoint, identity=None), suite, "run").error
    assert error is not None
    assert error.code in ("checkpoint_gone", "checkpoint_not_found")
    assert error.message.startswith("run-a step 2: ")


def test_another_digest_than_the_posted_one(checkpoint: CheckpointRef, suite: Suite) -> None:
    wrong = replace(checkpoint, sha256="0" * 64)
    error = shard(wrong, suite, "run").error
    assert error is not None
    assert error.code == "checkpoint_changed"
    assert f"expected {'0' * 64}" in error.message
    assert shard(checkpoint, suite, "run").error is None
    error = shard(wrong, suite, "run").error
    assert error is not None
    assert error.code == "checkpoint_changed", "a model that is loaded already must not hide it"


@pytest.mark.parametrize(
    ("changes", "code", "fragment"),
    [
        ({"model": {**MODEL, "vocab_size": 96}, "layout": None}, "checkpoint_mismatch", "vocab_size"),
        ({"model": {**MODEL, "n_heads": 0}}, "invalid_model_config", "n_heads"),
        ({"layout": {"text": {"size": 113}}}, "invalid_layout", "text (0…112) lies beyond the table of 112 rows"),
        ({"layout": {"text": {"sise": 3}}}, "invalid_layout", "did you mean 'size'"),
    ],
)
def test_what_was_posted_wrongly_names_the_checkpoint(
    checkpoint: CheckpointRef, tmp_path: Path, changes: Mapping[str, Any], code: str, fragment: str
) -> None:
    (tmp_path / "text.jsonl").write_text('{"text_ids": [1, 2, 3]}\n')
    suite = parse_suite({"tasks": [{"kind": "loss", "data": "text.jsonl"}]}, "text", tmp_path)
    result = run_suite(suite, replace(checkpoint, **changes), lambda *now: None)
    error = result["errors"]["loss"]
    assert error["code"] == code
    assert fragment in error["message"]
    assert error["message"].startswith("run-a step 2: ")


@pytest.fixture
def virtual(checkpoint: CheckpointRef, tmp_path: Path) -> CheckpointRef:
    """A quarter of the way from the checkpoint to another one, with nothing known of either file but its stat."""
    tensors = torch.load(checkpoint.path, weights_only=True)["state_dict"]
    torch.manual_seed(0)
    moved = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in tensors.items()}
    other = {name: tensors[name] if "inv_freq" in name else tensor for name, tensor in moved.items()}
    torch.save(other, tmp_path / "other.pt")
    second = replace(checkpoint, path=str(tmp_path / "other.pt"), identity=identify(tmp_path / "other.pt"))
    parents = {"run-a@2": checkpoint, "run-a@3": replace(second, label="run-a step 3")}
    return virtual_of("lerp(run-a@2, run-a@3, 0.25)", parents)


def virtual_of(text: str, parents: Mapping[str, CheckpointRef]) -> CheckpointRef:
    return CheckpointRef(text, layout=LAYOUT, label="run-v step 7", virtual=Virtual(parse_expression(text), parents))


def test_a_virtual_checkpoint_has_the_numbers_of_a_file_with_its_tensors(
    virtual: CheckpointRef, checkpoint: CheckpointRef, suite: Suite, tmp_path: Path
) -> None:
    assert virtual.virtual is not None
    parents = [torch.load(parent.path, weights_only=True) for parent in virtual.virtual.parents.values()]
    first, second = (content.get("state_dict", content) for content in parents)
    torch.save({name: 0.75 * first[name] + 0.25 * second[name] for name in first}, tmp_path / "plain.pt")
    found, expected = (
        run_suite(suite, reference, lambda *now: None)
        for reference in (virtual, CheckpointRef(str(tmp_path / "plain.pt"), model=MODEL, layout=LAYOUT))
    )
    assert len(found["metrics"]) > 10
    for metric, plain in zip(found["metrics"], expected["metrics"], strict=True):
        assert metric["value"] == pytest.approx(plain["value"], rel=1e-6)
        assert metric["protocol"] == plain["protocol"], "how the weights came about is not how they were measured"
    digests = found["provenance"]["pairs"]["shards"][0]["parents_sha256"]
    assert digests == {name: hash_files(Path(parent.path)) for name, parent in virtual.virtual.parents.items()}
    assert found["checkpoint"]["sha256"] == digest_of(virtual.virtual.expression, digests)


@pytest.mark.parametrize("stage", ["plan", "run"])
@pytest.mark.parametrize(
    ("harm", "code", "fragment"),
    [
        (lambda path: path.unlink(), "checkpoint_gone", "was deleted before it was evaluated"),
        (lambda path: path.write_bytes(b"x" * 7), "checkpoint_changed", "has 7 bytes"),
    ],
)
def test_a_parent_that_is_not_the_posted_one_is_named(
    virtual: CheckpointRef, suite: Suite, stage: Stage, harm: Callable[[Path], None], code: str, fragment: str
) -> None:
    payload = shard(virtual, suite).output["shards"][0]
    assert virtual.virtual is not None
    harm(Path(virtual.virtual.parents["run-a@3"].path))
    error = run_shard(ShardRequest(suite.tasks[0], stage, virtual, [payload]), ignore).error
    assert error is not None
    assert error.code == code
    assert error.message.startswith("run-v step 7: run-a step 3: ")
    assert fragment in error.message


def test_a_parent_replaced_while_the_weights_are_computed(
    virtual: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the tensors from one file and half from another is a model that never was."""
    load = runner.load_virtual

    def replace_then_load(*given: Any, **named: Any) -> Any:
        weights.write_bytes(b"something else")
        return load(*given, **named)

    monkeypatch.setattr(runner, "load_virtual", replace_then_load)
    error = shard(replace(virtual), suite, "run").error
    assert error is not None
    assert error.code == "checkpoint_changed"
    assert error.message.startswith("run-v step 7: run-a step 2: ")


def test_a_parent_with_another_digest_than_was_found_before(virtual: CheckpointRef, suite: Suite) -> None:
    assert virtual.virtual is not None
    parents = dict(virtual.virtual.parents)
    parents["run-a@3"] = replace(parents["run-a@3"], sha256="0" * 64)
    for _ in range(2):
        error = shard(virtual_of(virtual.path, parents), suite, "run").error
        assert error is not None
        assert error.code == "checkpoint_changed"
        assert f"run-a step 3: {parents['run-a@3'].path} has sha256" in error.message
        assert shard(virtual, suite, "run").error is None, "a model that is loaded already must not hide it"


@pytest.mark.parametrize(
    ("text", "changes", "code", "fragment"),
    [
        ("graft(run-a@2, run-a@3, layers=1-4)", {}, "invalid_request", "layers=2-4, and the model has 2 layers"),
        (
            "avg(run-a@2, run-a@3)",
            {"model": {**MODEL, "n_heads": 2}},
            "checkpoint_mismatch",
            "run-a@2 and run-a@3 are different models: n_heads 4 and 2",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_by_the_plan(
    virtual: CheckpointRef, suite: Suite, text: str, changes: Mapping[str, Any], code: str, fragment: str
) -> None:
    assert virtual.virtual is not None
    parents = dict(virtual.virtual.parents)
    parents["run-a@3"] = replace(parents["run-a@3"], **changes)
    error = run_shard(ShardRequest(suite.tasks[1], "plan", virtual_of(text, parents)), ignore).error
    assert error is not None
    assert error.code == code
    assert error.message.startswith("run-v step 7: ")
    assert fragment in error.message


def test_a_virtual_base_is_loaded_beside_the_checkpoint(
    virtual: CheckpointRef, checkpoint: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    context = RunnerContext(checkpoint, Settings.load(), ignore, virtual)
    assert context.base is not None
    found = {context.digest(), context.base.digest()}
    for _ in range(2):
        for each in (context, context.base):
            each.model(dtype="float32", rotary_inv_freq_dtype="auto")
    assert len(loads) == 1
    assert {context.digest(), context.base.digest()} == found, "known before it is loaded, and the same afterwards"
    assert len(found) == 2


def test_a_file_that_is_no_checkpoint_fails_before_the_data(suite: Suite, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not weights")
    missing = suite.tasks[1]
    error = run_shard(ShardRequest(missing, "plan", CheckpointRef(str(path), label="run-a step 2")), ignore).error
    assert error is not None
    assert error.code == "not_a_checkpoint"
    assert error.message.startswith("run-a step 2: ")


def test_data_of_the_datasets_folder(
    checkpoint: CheckpointRef, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_DATASETS", str(tmp_path))
    named = parse_suite({"tasks": [{"kind": "loss", "data": "datasets:data.jsonl"}]}, "named")
    assert shard(checkpoint, named).error is None


def test_data_outside_the_roots_is_not_opened(
    checkpoint: CheckpointRef, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that was kept before the roots were set, or a file that became a link since, is refused by the worker."""
    monkeypatch.setenv("EVALSVC_ROOTS", str(tmp_path))
    assert shard(checkpoint, suite).error is None
    (tmp_path / "data.jsonl").unlink()
    (tmp_path / "data.jsonl").symlink_to("/etc/passwd")
    tokenizer = replace(checkpoint, layout={**LAYOUT, "text": {"size": 80, "tokenizer": "/etc/passwd"}})
    for error in (shard(checkpoint, suite).error, shard(tokenizer, suite).error):
        assert error is not None
        assert error.code == "invalid_data"
        assert "outside the folders that suites may read" in error.message
        assert "root:" not in error.message


def test_a_wrong_setting_is_a_result_too(
    checkpoint: CheckpointRef, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_THREADS", "many")
    error = shard(checkpoint, suite).error
    assert error is not None
    assert error.code == "invalid_request"
    assert "EVALSVC_THREADS is 'many'; it must be a whole number" in error.message


class Panic(BaseException):
    """As libraries in Rust raise it, of a class that cannot be imported."""


class Faulty(Task):
    """A task that raises what it is told to."""

    kind: ClassVar[str] = "faulty"


class FaultyWork(Work[Faulty]):
    error: ClassVar[BaseException]
    items: ClassVar[list[dict[str, Any]]] = []

    def plan(self, context: Context) -> Plan:
        raise self.error

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        context.dataset(7)  # type: ignore[arg-type]
        return {}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        return TaskResult([], self.items)


@pytest.fixture
def faulty(checkpoint: CheckpointRef, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ShardResult]:
    def run(error: BaseException | None, stage: Stage = "plan") -> ShardResult:
        if error is not None:
            monkeypatch.setattr(FaultyWork, "error", error, raising=False)
        monkeypatch.setattr(runner, "build_task", lambda spec: Faulty(name="faulty"))
        monkeypatch.setattr(runner, "work_of", FaultyWork)
        return run_shard(ShardRequest(TaskSpec("faulty", "faulty", {}), stage, checkpoint, [{}]), ignore)

    return run


def test_a_tokenizer_that_makes_its_library_panic(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """A panic is no Exception: it went through every handler and ended the worker, shard after shard."""
    content = json.loads((ROOT / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    task = {"kind": "loss", "data": "data.jsonl", "tokenizer": "tokenizer.json"}
    planned = shard(checkpoint, parse_suite({"tasks": [task]}, "panics", tmp_path))
    assert planned.error is not None
    assert planned.error.code == "invalid_data"
    assert planned.error.message == (
        f"the tokenizer {tmp_path}/tokenizer.json is not a tokenizer.json that works; give the tokenizer that the "
        "model was trained with"
    )


@pytest.mark.parametrize(
    ("error", "code", "fragment"),
    [
        (Cancelled("stopped by you"), "cancelled", "stopped by you"),
        (MemoryError(), "out_of_memory", "lower EVALSVC_BATCH_TOKENS"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "out_of_memory", "(CUDA out of memory. Tried to)"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), "out_of_memory", "device with more"),
        (Panic("index out of bounds"), "internal_error", "Panic: index out of bounds"),
        (
            RuntimeError("shape '[2]' is invalid"),
            "internal_error",
            "RuntimeError: shape '[2]' is invalid at evalsvc/worker/shard.py:",
        ),
    ],
)
def test_every_exception_becomes_a_result(
    faulty: Callable[..., ShardResult], error: BaseException, code: str, fragment: str
) -> None:
    result = faulty(error)
    assert result.output is None
    assert result.error is not None
    assert result.error.code == code
    assert fragment in result.error.message
    assert result.provenance["host"]


def test_a_bug_names_the_innermost_line_and_leaves_its_trace_in_the_log(
    faulty: Callable[..., ShardResult], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        error = faulty(None, "run").error
    assert error is not None
    assert error.code == "internal_error"
    assert error.message.startswith(
        "AttributeError: 'int' object has no attribute 'startswith' at evalsvc/spec/paths.py:"
    )
    assert "Traceback" in caplog.text
    assert "context.dataset(7)" in caplog.text


def test_items_are_what_every_json_and_database_can_hold(
    faulty: Callable[..., ShardResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN made the result file something that other parsers refuse, and PostgreSQL refused the whole task."""
    monkeypatch.setattr(FaultyWork, "items", [{"index": 0, "nll": math.nan, "ids": (1, 2), "text": "a\0b"}])
    assert faulty(None, "merge").output["items"] == [{"index": 0, "nll": "NaN", "ids": [1, 2], "text": "a\ufffdb"}]
    monkeypatch.setattr(FaultyWork, "items", [{"index": 0, "image": b"png"}])
    error = faulty(None, "merge").error
    assert error is not None
    assert "bytes b'png' is not JSON-able" in error.message


def test_the_interrupt_key_gets_through(faulty: Callable[..., ShardResult]) -> None:
    with pytest.raises(KeyboardInterrupt):
        faulty(KeyboardInterrupt())


def test_networks_of_the_image_path_share_a_device(checkpoint: CheckpointRef) -> None:
    """The classifier once stayed on the CPU while pixels were on the GPU."""
    context = RunnerContext(checkpoint, Settings.load(device="meta"), ignore)
    assert context.classifier(str(ROOT / "classifier.safetensors")).device == torch.device("meta")
