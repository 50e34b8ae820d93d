"""open_lm models under classes of transformers: held to golden logits of the real open_lm, and to our own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import MODELS, write_ours

from evalsvc.errors import UnsupportedModel
from evalsvc.models import Transformer, load_model
from evalsvc.spec.model_config import ModelConfig
from evalsvc.verify.hugging_face import write_hugging_face

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"

pytestmark = pytest.mark.usefixtures("reference_models", "one_thread")

WRITABLE = {
    "01_rotary_default_ln_swiglu": "StableLmForCausalLM",
    "03_head_rotary_default_ln_swiglu": "StableLmForCausalLM",
    "05_llama_rotary_rms_swiglu": "LlamaForCausalLM",
    "07_none_lp_ln_gelu": "GPTNeoXForCausalLM",
    "11_rotary_gain_only_ln_postembed_tied_swiglu_torch": "StableLmForCausalLM",
}


@pytest.mark.parametrize(("case", "kind"), WRITABLE.items())
def test_logits_are_those_of_open_lm(case: str, kind: str) -> None:
    """Golden logits were computed by open_lm, so this compares the two programs without ours in between."""
    model = write_hugging_face(load_model(GOLDEN / case / "checkpoints" / "epoch_1.pt"))
    expected = load_file(GOLDEN / case / "expected.safetensors")
    assert type(model).__name__ == kind
    with torch.inference_mode():
        found = model(expected["input_ids"]).logits
    assert float((found - expected["logits_full"]).abs().max()) < 1e-5


def random_model(rotary_inv_freq_dtype: str = "float32", **fields: Any) -> Transformer:
    """A model with random weights that leave no parameter without effect."""
    shape = {"hidden_dim": 48, "n_layers": 2, "n_heads": 4, "seq_len": 64, "vocab_size": 40}
    fields = {"post_embed_norm": False, "weight_tying": False} | shape | fields
    model = Transformer(ModelConfig(**fields), rotary_inv_freq_dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[1] ** 0.5 if parameter.dim() == 2 else 1 + 0.2 * noise)
    return model.requires_grad_(False).eval()


def difference(ours: Transformer, theirs: Any, length: int = 50) -> float:
    ids = torch.randint(ours.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return float((ours(ids) - theirs(ids).logits).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_another_family_goes_to_its_own_class(name: str, tmp_path: Path) -> None:
    ours = write_ours(name, tmp_path)
    theirs = write_hugging_face(ours)
    assert type(theirs).__name__ == f"{MODELS[name][1]}ForCausalLM"
    assert difference(ours, theirs) < 1e-5
    chosen = [40, 3, 17, 95]
    some = write_hugging_face(ours, chosen)
    ids = torch.tensor([[0, 1, 2, 3, 0]])
    expected = ours(torch.tensor(chosen)[ids])[..., chosen]
    assert float((some(ids).logits - expected).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {"model_norm": "rms_norm", "ffn_type": "gemma_geglu", "positional_embedding_type": "llama_rotary"},
        {"model_norm": "rms_norm", "post_embed_norm": True, "weight_tying": True},
        {"model_norm": "default_layer_norm", "ffn_type": "gelu", "post_embed_norm": True},
        {"model_norm": "no_wb_layer_norm", "positional_embedding_type": "llama_rotary", "norm_eps": 1e-3},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_other_combinations_are_ours(fields: dict[str, Any]) -> None:
    ours = random_model(**fields)
    assert difference(ours, write_hugging_face(ours)) < 2e-5


def test_frequencies_are_those_of_the_training() -> None:
    """Rounded to bfloat16 they turn otherwise, far above rounding; so do those that a file saves."""
    rounded, exact = random_model("bfloat16"), random_model()
    assert difference(rounded, write_hugging_face(rounded)) < 2e-5
    assert difference(rounded, write_hugging_face(exact)) > 1e-3
    saved = random_model()
    saved.use_frequencies(torch.linspace(0.1, 1, 6))
    assert difference(saved, write_hugging_face(saved)) < 2e-5


def test_rows_may_be_left_out_and_turned_around() -> None:
    ours, rows = random_model(), [30, 31, 32, 5, 4]
    chosen = write_hugging_face(ours, rows)
    with torch.inference_mode():
        found = chosen(torch.tensor([[0, 3, 4, 2]])).logits
        wanted = ours(torch.tensor([[30, 5, 4, 32]]))[..., rows]
    assert float((found - wanted).abs().max()) < 2e-5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"qk_norm": True}, "normalises queries and keys over all heads together"),
        ({"n_heads": 5, "hidden_dim": 52}, "5 heads do not divide hidden_dim 52"),
        ({"model_norm": "rms_norm", "ffn_type": "gelu"}, "has rms_norm together with a feed-forward layer gelu"),
        ({"ffn_type": "gemma_geglu"}, "has default_layer_norm together with a feed-forward layer gemma_geglu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_class_computes_is_refused_with_the_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        write_hugging_face(random_model(**fields))
