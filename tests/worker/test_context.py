import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from decoder_folders import janus_config, llamagen_file, to_janus, tokenizer_alone, whole_model
from miniature_run import DECODER, pretrained
from tiny_decoders import randomise
from worker_stages import LAYOUT, MODEL, ignore, refused, run_stage, turned, virtual_of

from evalsvc.assets import pull
from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.config import Settings
from evalsvc.decoders import load_decoder
from evalsvc.decoders.llamagen import LlamaGen
from evalsvc.errors import AssetMissing, InvalidData, UnknownName
from evalsvc.families.reading import find_model_config
from evalsvc.messages import ShardRequest
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker.context import ShardContext, find_decoder
from evalsvc.worker.local import run_suite
from evalsvc.worker.models import ModelCache, ModelForm
from evalsvc.worker.shard import run_shard


def test_a_worker_computes_in_full_float32_and_without_cudnn_attention(checkpoint: CheckpointRef, suite: Suite) -> None:
    """cuDNN makes a plan for every shape and thread, which took text generation up to half a second a token."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert run_stage(checkpoint, suite).error is None
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_provenance(checkpoint: CheckpointRef, suite: Suite, weights: Path) -> None:
    found = run_stage(checkpoint, suite, "run").provenance
    assert found["checkpoint_sha256"] == hash_files(weights)
    assert (found["device"], found["dtype"], found["threads"], found["batch_tokens"]) == ("cpu", "float32", 1, 8192)
    assert (found["versions"]["torch"], found["seconds"] >= 0, bool(found["host"])) == (torch.__version__, True, True)


def test_what_is_kept_of_a_model_is_freed_before_another_is_loaded(checkpoint: CheckpointRef) -> None:
    """A kept sampler holds the model and most of a GPU's memory; the companion of a base is another model too."""
    order: list[int] = []
    models = ModelCache(before_load=lambda: order.append(len(models._loaded)))
    forms = [ModelForm(dtype, "cpu", "auto") for dtype in ("float32", "float32", "bfloat16")]
    assert [models.get(checkpoint, form).dtype for form in forms] == [torch.float32, torch.float32, torch.bfloat16]
    assert order == [0, 1], "not for the same model"


CLOZE = {"benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 4}

MINIATURE: dict[str, dict[str, Any]] = {
    "loss": {"data": str(ROOT / "heldout_pairs.jsonl"), "limit": 4},
    "completions": {"max_tokens": 4},
    "language": CLOZE,
    "forgetting": {**CLOZE, "text": str(ROOT / "heldout_text.jsonl"), "text_limit": 4},
    "text_to_image": {
        "captions": str(ROOT / "captions.jsonl"),
        "samples": 4,
        "decoder": DECODER,
        "metrics": [],
        "classifier": str(ROOT / "classifier.safetensors"),
    },
    "alignment": {"data": str(ROOT / "heldout_pairs.jsonl")},
}
"""Small tasks on the bundled run. The last one reads tables only, whatever the frequencies."""


@pytest.mark.parametrize("kind", MINIATURE)
def test_rotary_frequencies_of_the_file_are_in_protocol_and_provenance(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They move every number of the model; with open_lm's own table a series goes on as it was."""
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    plain = pretrained(1)
    plain = replace(plain, model=find_model_config(Path(plain.path)))
    own, saved = turned(plain, tmp_path / "turned.pt")
    suite = parse_suite({"tasks": [{"kind": kind, "name": "task", **MINIATURE[kind]}]}, "small")
    pairs = (plain, plain), (own, plain), (plain, own)
    results = [run_suite(suite, one, lambda *now: None, base).model_dump() for one, base in pairs]
    assert [result["errors"] for result in results] == [{}] * 3
    before, after, of_base = (
        {metric["name"]: result["protocols"][metric["protocol"]] for metric in result["metrics"]} for result in results
    )
    uses_model = kind != "alignment"
    for name, content in before.items():
        assert without_rotary(content) == without_rotary(after[name]) == without_rotary(of_base[name])
        assert not {"rotary", "base_rotary"} & content.keys()
        if "members" not in content:  # these name the protocols of others
            assert after[name].get("rotary") == ("file" if uses_model else None)
        assert of_base[name].get("base_rotary") == ("file" if "base" in content else None)
    shards = results[1]["provenance"]["task"]["shards"]
    assert any(provenance.get("rotary_inv_freq") == saved for provenance in shards)
    values = [[metric["value"] for metric in result["metrics"]] for result in results]
    assert (values[0] != values[1]) == uses_model


def without_rotary(content: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol, without what is said of rotary frequencies, and of the base and other protocols by their digests."""
    others = ("rotary", "base_rotary", "base", "less", "members")
    return {key: value for key, value in content.items() if key not in others}


def test_a_link_put_in_the_place_of_a_posted_file(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The roots were asked when it was posted; the worker must ask again of what it opens."""
    allowed, outside = tmp_path / "allowed" / "epoch_1.pt", tmp_path / "outside.pt"
    allowed.parent.mkdir()
    weights.rename(allowed)
    monkeypatch.setenv("EVALSVC_ROOTS", f"{allowed.parent}:{tmp_path / 'data.jsonl'}")
    posted = replace(checkpoint, path=str(allowed))
    assert run_stage(posted, suite, "run").error is None
    allowed.rename(outside)
    allowed.symlink_to(outside)
    refused(run_stage(posted, suite), "checkpoint_not_allowed", "is, or links, outside the allowed folders")


def test_a_link_into_the_data_folder_is_not_followed(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By default everything lies under the roots, the service's keys included."""
    data, spooled = tmp_path / "service", tmp_path / "service" / "spool" / "7" / "epoch_1.pt"
    spooled.parent.mkdir(parents=True)
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(data))
    shutil.copy2(weights, spooled)
    shutil.copy2(weights, data / "key.pem")
    assert run_stage(replace(checkpoint, path=str(spooled)), suite, "run").error is None, "its own copy is read"
    weights.unlink()
    weights.symlink_to(data / "key.pem")
    refused(run_stage(checkpoint, suite), "checkpoint_not_allowed", "or into evalsvc's data folder or keys")


@pytest.mark.parametrize(
    ("changes", "code", "fragment"),
    [
        ({"model": {**MODEL, "vocab_size": 96}, "layout": None}, "checkpoint_mismatch", "vocab_size"),
        ({"model": {**MODEL, "n_heads": 0}}, "invalid_model_config", "n_heads"),
        ({"layout": {"text": {"size": 113}}}, "invalid_layout", "text (0…112) exceeds the table of 112 rows"),
        ({"layout": {"text": {"sise": 3}}}, "invalid_layout", "did you mean 'size'"),
        ({"path": __file__, "identity": None}, "not_a_checkpoint", ""),
    ],
)
def test_what_was_posted_wrongly_names_the_checkpoint(
    checkpoint: CheckpointRef, tmp_path: Path, changes: Mapping[str, Any], code: str, fragment: str
) -> None:
    (tmp_path / "text.jsonl").write_text('{"text_ids": [1, 2, 3]}\n')
    suite = parse_suite({"tasks": [{"kind": "loss", "data": "text.jsonl"}]}, "text", tmp_path)
    error = run_suite(suite, replace(checkpoint, **changes), lambda *now: None).errors["loss"]
    assert (error.code, error.message.partition(": ")[0]) == (code, "run-a step 2")
    assert fragment in error.message


@pytest.mark.parametrize(
    ("text", "heads", "code", "fragment"),
    [
        ("graft(run-a@2, run-a@3, layers=1-4)", 4, "invalid_request", "layers=2-4, but the model has 2 layers"),
        ("avg(run-a@2, run-a@3)", 2, "checkpoint_mismatch", "run-a@3 are different models: n_heads 4 and 2"),
    ],
)
def test_what_does_not_fit_together_is_said_by_the_plan(
    virtual: CheckpointRef, suite: Suite, text: str, heads: int, code: str, fragment: str
) -> None:
    first, second = virtual.virtual.parents.items()
    parents = dict((first, (second[0], replace(second[1], model={**MODEL, "n_heads": heads}))))
    planned = run_shard(ShardRequest(suite.tasks[1], "plan", virtual_of(text, parents)), ignore, Settings.load())
    assert refused(planned, code, fragment).startswith("run-v step 7: ")


def test_data_outside_the_roots_is_not_opened(
    checkpoint: CheckpointRef, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that was kept before the roots were set, or a file that became a link since, is refused by the worker."""
    monkeypatch.setenv("EVALSVC_ROOTS", str(tmp_path))
    assert run_stage(checkpoint, suite).error is None
    (tmp_path / "data.jsonl").unlink()
    (tmp_path / "data.jsonl").symlink_to("/etc/passwd")
    tokenizer = replace(checkpoint, layout={**LAYOUT, "text": {"size": 80, "tokenizer": "/etc/passwd"}})
    for reference in (checkpoint, tokenizer):
        message = refused(run_stage(reference, suite), "invalid_data", "outside the allowed folders")
        assert "root:" not in message


def test_image_tokenizers_of_hugging_face_and_of_their_authors(
    checkpoint: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the path of a folder or file, and as an asset, which is a folder with its configuration."""
    monkeypatch.setenv("EVALSVC_ROOTS", str(tmp_path))
    monkeypatch.setenv("EVALSVC_ASSETS", str(tmp_path / "assets"))
    tokenizer = randomise(LlamaGen.from_config(janus_config()), seed=3)
    named = {tokenizer.file_name(name): tensor for name, tensor in tokenizer.state_dict().items()}
    theirs = {to_janus(name): tensor for name, tensor in named.items()}
    folder = tokenizer_alone(tmp_path / "alone", janus_config(), theirs)
    pull("janus-pro-1b", tmp_path / "assets", source=folder)
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(tokenizer.config.model_dump(mode="json")))
    file = llamagen_file(tmp_path / "vq.pt", named)
    context = ShardContext(checkpoint, Settings.load(), ignore)
    for name in (str(whole_model(tmp_path / "whole", janus_config(), theirs)), str(folder), "janus-pro-1b", str(file)):
        assert context.decoder(name).digest == tokenizer.digest
    monkeypatch.delenv("EVALSVC_ROOTS")
    context = ShardContext(checkpoint, Settings.load(devices="meta"), ignore)
    digits = context.extractor(str(ROOT / "classifier.safetensors"), "digits")
    assert digits.device == torch.device("meta"), "the classifier once stayed on the CPU while pixels were on the GPU"


def test_a_path_has_the_configuration_next_to_it_or_one_of_its_own_and_a_name_is_an_asset(tmp_path: Path) -> None:
    """Nothing outside the roots is read."""
    alone, folder = shutil.copy(DECODER, tmp_path / "alone.ckpt"), Path(DECODER).parent
    for path, given in ((DECODER, None), (str(alone), str(folder / "config.yaml"))):
        decoder = find_decoder(Settings(), path, given).load(False, "float32", "cpu")
        assert decoder.digest == load_decoder(DECODER).digest
    for path, given in ((str(alone), None), (DECODER, "/secret/config.yaml")):
        with pytest.raises(InvalidData, match="outside the allowed folders"):
            find_decoder(Settings(roots=str(folder)), path, given)
    settings = Settings(assets=str(tmp_path))
    with pytest.raises(AssetMissing, match="run: evalsvc assets pull movqgan-67M"):
        find_decoder(settings, "movqgan-67M", None)
    with pytest.raises(UnknownName, match="did you mean 'movqgan-67M'"):
        find_decoder(settings, "movqgan-67m", None)
