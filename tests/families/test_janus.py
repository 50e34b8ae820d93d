"""Janus: input rows by an aligner and a head of its own for images, in both forms of its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from decode_paths import PATHS, leave_uncompiled, stepped_logits
from loss_task import write as write_records
from refusals import refusal
from safetensors.torch import save_file
from task_runs import error, run_task
from tiny_families import SHAPE, fill, tiny_janus
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.expression import parse_expression
from evalsvc.checkpoints.posted import posted_layout
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.errors import CheckpointMismatch, InvalidLayout, InvalidModelConfig, InvalidRequest, UnsupportedModel
from evalsvc.families.reading import family_of, find_model_config, resolve_config
from evalsvc.metrics.token_loss import token_losses
from evalsvc.models import ModelConfig, StepShape, Transformer, load_model
from evalsvc.models.loading import load_virtual
from evalsvc.sampling.sampler import Prompt, SamplerSpec, generate
from evalsvc.spec.sampling import SamplingParams

TEXT, CODES, DIM = 96, 20, 48
LANGUAGE = {**{name: value for name, value in SHAPE.items() if not name.endswith("_id")}, "model_type": "llama"}
VQ = {"embed_dim": 8, "num_embeddings": CODES, "projection_dim": DIM, "image_token_embed_dim": DIM}
WHOLE: dict[str, Any] = {"model_type": "janus", "text_config": LANGUAGE, "vq_config": VQ, "vision_config": {}}
PARTS = {"gen_aligner": {"depth": 2, "input_dim": 8, "n_embed": DIM, "projector_type": "mlp_gelu"}}
PARTS |= {"gen_head": {"image_token_embed": DIM, "image_token_size": CODES, "n_embed": DIM}}
AUTHORS = {"model_type": "multi_modality", "language_config": LANGUAGE, "vision_config": {"cls": "CLIPVisionTower"}}
AUTHORS |= {f"{part}_config": {"cls": "any", "params": params} for part, params in PARTS.items()}
NAMES = (
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.", "gen_head."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"^model\.", ""),
)
"""From transformers' names to the authors'."""
Tensors = dict[str, Tensor]


def by_authors(name: str) -> str:
    return next(re.sub(theirs, own, name) for theirs, own in NAMES if re.match(theirs, name))


def write_tiny(folder: Path, seed: int = 0, fields: dict[str, Any] = WHOLE) -> Tensors:
    """Write a model with transformers' names without the package; return the tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    config = resolve_config(None, folder)
    model = Transformer(config)
    fill(model, seed)
    tensors = {}
    for own, source in family_of(config).sources(config).items():
        value = model.state_dict()[own][: source.shapes[0][0] if source.shapes else None]
        parts = value.split(list(source.rows or value.shape[:1]))
        tensors |= dict(zip(source.names, parts, strict=True))
    whole = {name if name == "lm_head.weight" else f"model.{name}": value for name, value in tensors.items()}
    whole |= {f"model.{part}.a": torch.zeros(1) for part in ("vision_model", "vqmodel", "aligner")}
    whole = {name: value.clone() for name, value in whole.items()}
    save_file(whole, folder / "model.safetensors")
    return whole


def test_both_forms_are_the_same_model(tmp_path: Path) -> None:
    """The authors have a pickle of Janus-Pro-1B, and safetensors of Janus-1.3B."""
    tensors = write_tiny(tmp_path)
    expected = load_model(tmp_path)
    assert (expected.config.vocab_size, expected.config.heads_apart) == (TEXT + CODES, True)
    (tmp_path / "config.json").write_text(json.dumps(AUTHORS))
    (tmp_path / "model.safetensors").unlink()
    torch.save({by_authors(name): value for name, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    found = load_model(tmp_path)
    assert found.config == expected.config == resolve_config(find_model_config(tmp_path), tmp_path)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_the_input_rows_of_images_are_those_of_the_aligner(tmp_path: Path) -> None:
    tensors = {name.removeprefix("model."): value for name, value in write_tiny(tmp_path).items()}
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        t = {name: value.to(dtype) for name, value in tensors.items()}
        aligner = "generation_aligner"
        first = functional.linear(
            t["generation_embeddings.weight"], t[f"{aligner}.fc1.weight"], t[f"{aligner}.fc1.bias"]
        )
        layer = f"{aligner}.hidden_layers.0"
        rows = functional.linear(functional.gelu(first), t[f"{layer}.weight"], t[f"{layer}.bias"])
        table = load_model(tmp_path, dtype=str(dtype).removeprefix("torch.")).input_table
        assert torch.equal(table[TEXT:], rows)
        assert torch.equal(table[:TEXT], t["language_model.embed_tokens.weight"])


@torch.inference_mode()
def test_every_choice_of_rows_has_the_logits_of_its_head(tmp_path: Path) -> None:
    tensors = {name.removeprefix("model."): value for name, value in write_tiny(tmp_path).items()}
    model = load_model(tmp_path)
    hidden = torch.randn(7, DIM, generator=torch.Generator().manual_seed(3))
    head = "generation_head"
    inner = functional.gelu(
        functional.linear(hidden, tensors[f"{head}.proj_out.weight"], tensors[f"{head}.proj_out.bias"])
    )
    last = f"{head}.vision_head"
    image = functional.linear(inner, tensors[f"{last}.weight"], tensors[f"{last}.bias"])
    expected = torch.cat((functional.linear(hidden, tensors["lm_head.weight"]), image), dim=1)
    torch.testing.assert_close(model.head(hidden), expected)
    for rows in (slice(0, TEXT), slice(TEXT, None), slice(10, TEXT + 3), slice(TEXT + 2, TEXT + 9), slice(4, 9)):
        torch.testing.assert_close(model.head(hidden, rows), expected[:, rows])
    mixed = torch.randperm(TEXT + CODES, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model.head(hidden, mixed), expected[:, mixed])
    for path in ("plain", "packed"):
        for ids in (range(TEXT, TEXT + CODES), (TEXT + 5, TEXT, TEXT + 19)):
            model.packed = None
            step = model.decoding(StepShape(7, ids, 4, path))  # type: ignore[arg-type]
            torch.testing.assert_close(step.head(hidden), expected[:, list(ids)])
    step = model.decoding(StepShape(7, range(TEXT, TEXT + CODES), 4, "plain", weights="int8"))
    assert float((step.head(hidden) - image).abs().max()) < 0.05 * float(image.abs().max())
    for wrong in (range(TEXT - 1, TEXT + 5), (3, TEXT)):
        assert "a head of its own for the 20 rows from 96 on" in refusal(
            InvalidRequest, model.decoding, StepShape(7, wrong, 4, "plain")
        )


def test_an_average_is_the_model_of_averaged_parameters(tmp_path: Path) -> None:
    """And not of averaged rows: the aligner is no linear function of its parameters."""
    one, two = (write_tiny(tmp_path / name, seed) for seed, name in enumerate("ab"))
    mean = {name: (value + two[name]) / 2 for name, value in one.items()}
    save_file(mean, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(WHOLE))
    config = resolve_config(None, tmp_path)
    parents = {name: tmp_path / name for name in "ab"}
    found = load_virtual(parse_expression("avg(a, b)"), parents, config)
    torch.testing.assert_close(found.input_table, load_model(tmp_path).input_table)
    graft = load_virtual(parse_expression("graft(a, b, parts=head)"), parents, config)
    second = load_model(tmp_path / "b")
    assert graft.image_head is not None
    assert second.image_head is not None
    assert torch.equal(graft.image_head.bias, second.image_head.bias)
    assert torch.equal(graft.input_table, load_model(tmp_path / "a").input_table)


def test_a_head_that_the_file_leaves_out_is_the_table(tmp_path: Path) -> None:
    """transformers says tied by default, and keeps a head that differs; the authors never leave it out."""
    tensors = write_tiny(tmp_path)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert torch.equal(model.output_table[:TEXT], tensors["model.language_model.embed_tokens.weight"])
    save_file({by_authors(name): value for name, value in tensors.items()}, tmp_path / "model.safetensors")
    assert "1 missing: language_model.lm_head.weight" in refusal(CheckpointMismatch, load_model, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("generation_embeddings.weight", (CODES, 9), "generation_embeddings.weight [20, 9] instead of [20, 8]"),
        ("generation_aligner.fc1.weight", (DIM, 1), "fc1.weight [48, 1] instead of [48, 8]"),
        ("generation_aligner.hidden_layers.1.weight", (DIM, DIM), "unexpected: generation_aligner.hidden_layers.1"),
        ("generation_head.vision_head.bias", (CODES + 1,), "vision_head.bias [21] instead of [20]"),
        ("generation_head.vision_head.weight", (TEXT, DIM), "vision_head.weight [96, 48] instead of [20, 48]"),
        ("language_model.embed_tokens.weight", (TEXT + CODES, DIM), "vocab_size 96 is smaller than its 116 rows"),
    ],
)
def test_tensors_of_other_shapes_are_refused_before_they_are_joined(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    tensors = write_tiny(tmp_path) | {f"model.{name}": torch.zeros(shape)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert message in refusal(CheckpointMismatch, load_model, tmp_path)


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """The configuration of the authors, or of transformers, with other fields in a part."""
    whole = WHOLE if part in WHOLE else AUTHORS
    inner: dict[str, Any] = whole[part]
    if "params" in inner:
        return {**whole, part: {**inner, "params": {**inner["params"], **fields}}}
    return {**whole, part: {**inner, **fields}}


@pytest.mark.parametrize(
    ("fields", "refused", "message"),
    [
        (changed("vq_config", num_embeddings=10**9), InvalidModelConfig, "num_embeddings: input should be less than"),
        (changed("vq_config", num_embeddings=True), InvalidModelConfig, "num_embeddings: input should be a valid int"),
        (changed("vq_config", num_hidden_layers=10**6), InvalidModelConfig, "num_hidden_layers: input should be less"),
        (changed("vq_config", hidden_act="relu"), UnsupportedModel, "the aligner and the head of images are not"),
        (changed("vq_config", projection_dim=64), UnsupportedModel, "as wide as the language model (48)"),
        (changed("text_config", model_type="hunter2"), UnsupportedModel, "the language model is no llama"),
        (changed("text_config", auto_map={"AutoModel": "a.B"}), UnsupportedModel, "has code of its own"),
        (changed("text_config", image_tables={"rows": 1}, hidden_size=0), InvalidModelConfig, "hidden_size: input"),
        (
            changed("text_config", vocab_size=2**26),
            InvalidModelConfig,
            "vocab_size: input should be less than or equal",
        ),
        ({**WHOLE, "vq_config": None}, InvalidModelConfig, "has no object vq_config"),
        ({**WHOLE, "quantization_config": {"bits": 4}}, UnsupportedModel, "the weights are quantised"),
        (
            changed("gen_aligner_config", depth=0),
            InvalidModelConfig,
            "gen_aligner_config.params.depth: input should be",
        ),
        (
            changed("gen_aligner_config", input_dim=None),
            InvalidModelConfig,
            "gen_aligner_config.params.input_dim is mis",
        ),
        (
            changed("gen_aligner_config", projector_type="identity"),
            UnsupportedModel,
            "the aligner and the head of image",
        ),
        (changed("gen_head_config", image_token_embed=64), UnsupportedModel, "the aligner and the head of images"),
        ({**AUTHORS, "gen_head_config": {"params": ["hunter2"]}}, InvalidModelConfig, "has no object params"),
        (
            {name: value for name, value in AUTHORS.items() if name != "gen_head_config"}
            | {"vision_gen_dec_config": {}},
            InvalidModelConfig,
            "has no object gen_head_config",
        ),
    ],
)
def test_hostile_configurations(fields: dict[str, Any], refused: type[Exception], message: str, tmp_path: Path) -> None:
    """JanusFlow has the same model_type, and no head of codes."""
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = refusal(refused, find_model_config, tmp_path)
    assert message in found
    assert "hunter2" not in found


def test_tables_that_a_request_describes(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    fields = find_model_config(tmp_path) or {}
    for wrong in (
        {"weight_tying": True},
        {"image_tables": {"rows": TEXT + CODES, "width": 8, "depth": 2}},
        {"image_tables": {"rows": CODES, "width": 8, "depth": 17}},
    ):
        assert "image_tables" in refusal(InvalidModelConfig, resolve_config, fields | wrong, tmp_path)
    assert ModelConfig.model_validate(fields).image_tables is not None
    bare = {name: value for name, value in fields.items() if name != "image_tables"}
    assert "has no image_tables; give the config.json" in refusal(InvalidModelConfig, load_model, tmp_path, bare)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (None, "the layout has no image rows, and the model has tables of its own for 96…115; give an image block"),
        ({"text": {"size": 96}}, "the layout has no image rows"),
        ({"text": {"size": 90}, "image": {"offset": 90, "size": 20}}, "has the image rows 90…109, and the model has"),
        ({"text": {"size": 96}, "image": {"offset": 96, "size": 19}}, "give an image block of offset 96 and size 20"),
    ],
)
def test_a_layout_of_other_image_rows_is_refused(layout: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    """A softmax over rows of two heads would be a number without meaning."""
    write_tiny(tmp_path)
    data = write_records(tmp_path / "pairs.jsonl", [{"text_ids": [1, 2, 3]}])
    checkpoint = CheckpointRef(str(tmp_path), layout=layout, label="step 1")
    assert message in error(run_task(checkpoint, kind="loss", name="loss", data=str(data)))
    if layout is not None:  # also when the checkpoint is posted
        assert message in refusal(InvalidLayout, posted_layout, layout, find_model_config(tmp_path), Settings())


@pytest.mark.usefixtures("reference_models", "one_thread")
@torch.inference_mode()
def test_logits_codes_and_losses_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes by greedy choice and guidance against pads of the prompt's length, on every path of decoding."""
    leave_uncompiled(monkeypatch)
    theirs = tiny_janus(TEXT, CODES)
    theirs.save_pretrained(tmp_path)
    theirs = theirs.double()
    core, prompt = theirs.model, [1, 70, 12, 33, 95]
    without = [1, 2, 2, 2, 95]

    def logits(ids: list[int], codes: list[int]) -> Tensor:  # [T, CODES]
        images = core.generation_aligner(core.generation_embeddings(torch.tensor([codes], dtype=torch.int64)))
        rows = torch.cat((core.language_model.embed_tokens(torch.tensor([ids])), images), dim=1)
        out: Tensor = core.generation_head(core.language_model(inputs_embeds=rows).last_hidden_state)[0].double()
        return out

    codes: list[int] = []
    for _ in range(12):
        conditional, other = (logits(ids, codes)[-1] for ids in (prompt, without))
        codes.append(int((other + 5 * (conditional - other)).argmax()))
    images = range(TEXT, TEXT + CODES)
    sequence = torch.tensor([[*prompt, *(TEXT + code for code in codes)]] * 2)
    expected = logits(prompt, codes)
    assert expected.std() > 0.5
    for dtype, tolerance in (("float64", 1e-5), ("float32", 1e-4)):
        ours = load_model(tmp_path, dtype=dtype)
        assert float((ours.logits(sequence)[0, :, TEXT:].double() - expected).abs().max()) < tolerance
        text = theirs(input_ids=torch.tensor([prompt])).logits[0]
        assert float((ours.logits(torch.tensor([prompt]))[0, :, :TEXT].double() - text).abs().max()) < tolerance
        for path in PATHS:
            stepped = stepped_logits(ours, path, sequence, len(prompt), codes=images)
            assert float((stepped[1].double() - expected[len(prompt) :]).abs().max()) < tolerance, path
        spec = SamplerSpec(images, 12, SamplingParams(temperature=0, guidance_scale=5.0), 2)
        [batch] = generate(ours, [Prompt("a", tuple(prompt), unconditional=tuple(without))], spec)
        assert batch.codes.tolist() == [codes]
        found = token_losses(
            ours.hidden(sequence[:1, :-1])[0], sequence[0, 1:], ours.head, [range(TEXT)], images, 7, True
        )
        image = functional.cross_entropy(expected[len(prompt) - 1 : -1], torch.tensor(codes), reduction="none")
        words = functional.cross_entropy(text[:-1].double(), torch.tensor(prompt[1:]), reduction="none")
        torch.testing.assert_close(found.nll.double(), torch.cat((words, image)), rtol=0, atol=tolerance)
