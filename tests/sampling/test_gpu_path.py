"""The path of a GPU on torch's `meta` device, where mixed devices and waiting for the device raise."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evalsvc.families.reading import resolve_config
from evalsvc.models import LanguageModel, Transformer, decoding
from evalsvc.models.language_model import CacheKind
from evalsvc.models.layer import GATED, Activation, Kernels
from evalsvc.models.transformers_loading import TransformersModel
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate, sampler
from evalsvc.sampling.sampler import FINITE_CHECK_STEPS, bucket_on
from evalsvc.spec.model_config import ModelConfig

LAYERS, CODES, ROWS = 2, 128, 600

CREATING = ("empty", "new_empty", "_to_copy.out", "detach", "alias", "lift_fresh", "_reshape_alias", "_unsafe_view")
VIEWS = (
    "view",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "expand",
    "transpose",
    "permute",
    "t",
    "split",
    "as_strided",
)
NO_LAUNCH = {*CREATING, *VIEWS, "chunk", "narrow", "unbind", "split_with_sizes"}


class Launches(TorchDispatchMode):
    """Counts operators that start a kernel, while `counting`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.counting = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self.counting and name not in NO_LAUNCH:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Transfers by `tolist`, which is the check of logits; all other transfers raise."""
    made: list[str] = []
    actual = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        if tensor.device.type != "meta":
            return actual(tensor)
        made.append("tolist")
        return [FINITE_CHECK_STEPS * 2] * len(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    # Asked of real devices by real products.
    monkeypatch.setattr("evalsvc.models.packing.multiplies_int8", lambda device: True)
    return made


def launches(params: SamplingParams, dtype: torch.dtype, changes: dict[str, Any], length: int = 6, **spec: Any) -> int:
    """Draw a batch on the GPU's path, and return the number of launches of one step."""
    shape = {"hidden_dim": 64, "n_layers": LAYERS, "n_heads": 4, "seq_len": 512, "vocab_size": ROWS}
    config = ModelConfig.model_validate({**shape, "post_embed_norm": False, "weight_tying": False, **changes})
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to("meta").requires_grad_(False).eval()  # with the frequencies, which are made on the CPU
    return launches_of(model, params, length, **{"path": "graph", **spec})


def launches_of(model: LanguageModel, params: SamplingParams, length: int = 6, **spec: Any) -> int:
    unconditional = (0,) if params.guided else None
    fields: dict[str, Any] = {"bucket": bucket_on(torch.device("cuda")), **spec}
    image_ids = fields.pop("image_ids", range(ROWS - CODES, ROWS))
    specification = SamplerSpec(image_ids, length, params, 8, unconditional, **fields)
    prompts = [Prompt(str(index), tuple(range(1, 30 - index % 5))) for index in range(8)]
    counted, drawn = Launches(), 0

    def on_step(_: int) -> None:
        nonlocal drawn
        drawn += 1
        counted.counting = drawn == 5

    with counted:
        [samples] = generate(model, prompts, specification, on_step)
    assert samples.codes.shape == (8, length)
    return sum(counted.counts.values())


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention with rotation, norms, gates and the draw by the kernels of Triton, each of which counts as one
    launch."""

    def attend_one(queries: Tensor, *rest: Any) -> Tensor:
        return torch.zeros(queries.shape, dtype=rest[2].dtype, device=queries.device)

    def add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
        if isinstance(norm, nn.Identity):
            return x, x
        x = x.contiguous()
        return (x if delta is None else torch.empty_like(x)), torch.zeros_like(x)

    def draw(logits: Tensor, params: SamplingParams, keys: Tensor, position: int) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(keys), torch.empty(len(keys), dtype=torch.bool, device=keys.device)

    monkeypatch.setattr(decoding, "attention_kind", lambda model, shape: decoding.LIVE)
    monkeypatch.setattr(decoding, "attention_kernel", lambda: attend_one)

    def gate(activation: Activation) -> Activation:
        gated = activation in GATED.values()
        return (lambda inner: inner.new_zeros(len(inner), inner.shape[1] // 2)) if gated else activation

    monkeypatch.setattr(decoding, "step_kernels", lambda: Kernels(add_norm, None, gate))
    monkeypatch.setattr(sampler, "noise_kind", lambda *shape: sampler.KERNEL)
    monkeypatch.setattr(sampler, "drawing_kernel", lambda: draw)


FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "open_lm": ({}, 105),
    "rms_norm": ({"model_norm": "rms_norm"}, 145),
    "per_head_norm": ({"n_kv_heads": 2, "qk_norm": True, "qk_norm_per_head": True, "model_norm": "rms_norm"}, 187),
    "shared_keys": ({"n_kv_heads": 1, "norm_place": "after", "model_norm": "rms_norm", "ffn_type": "gated"}, 149),
    "llama_rotary": ({"positional_embedding_type": "llama_rotary", "attention_window": 256}, 110),
    "head_rotary": ({"positional_embedding_type": "head_rotary"}, 107),
    "no_positions": ({"positional_embedding_type": "none", "ffn_type": "gemma_geglu"}, 82),
    "janus": ({"image_tables": {"rows": CODES, "width": 8, "depth": 2}, "model_norm": "rms_norm"}, 148),
    "neox": ({"parallel_residual": True, "rotary_dims": 8, "attention_bias": True, "output_bias": True}, 107),
}
"""Changes of the configuration, and the most launches of a step of two layers with guidance. Without the `lp_` norms:
`meta` has no autocast."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_family_waits_for_nothing_and_launches_few_kernels(family: str, waits: list[str]) -> None:
    """With guidance. Only the check of logits waits, once."""
    changes, most = FAMILIES[family]
    found = launches(SamplingParams(guidance_scale=3.0), torch.bfloat16, changes)
    assert (waits, found <= most) == (["tolist"], True), found


WITH_KERNELS = {"per_head_norm": 59, "janus": 51, "llama_rotary": 46, "head_rotary": 51, "no_positions": 40}
"""The most launches of the same step by the kernels, where they are not 49: in each layer four products, two norms,
attention with the rotation, and the activation."""


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_take_the_place_of_launches(family: str, waits: list[str]) -> None:
    found = launches(SamplingParams(top_k=100, guidance_scale=3.0), torch.bfloat16, FAMILIES[family][0])
    assert (waits, found <= WITH_KERNELS.get(family, 49)) == (["tolist"], True), found


CASES: list[tuple[SamplingParams, torch.dtype, dict[str, Any], int]] = [
    (SamplingParams(), torch.float16, {}, 102),
    (SamplingParams(), torch.float32, {"cache_dtype": "bfloat16"}, 102),
    (SamplingParams(), torch.bfloat16, {"cache_dtype": "float8"}, 118),
    (SamplingParams(top_k=100, guidance_scale=7.5), torch.bfloat16, {}, 108),
    (SamplingParams(top_p=0.9), torch.bfloat16, {}, 117),
    (SamplingParams(temperature=0.0), torch.bfloat16, {}, 77),
    (SamplingParams(), torch.bfloat16, {"weights": "int8"}, 228),
    (SamplingParams(), torch.bfloat16, {"image_ids": tuple(range(599, 471, -1))}, 102),
]


@pytest.mark.parametrize(("params", "dtype", "changes", "most"), CASES, ids=str)
def test_every_draw_and_format_waits_for_nothing(
    params: SamplingParams, dtype: torch.dtype, changes: dict[str, Any], most: int, waits: list[str]
) -> None:
    found = launches(params, dtype, {}, **changes)
    assert (waits, found <= most) == (["tolist"], True), found


def test_logits_are_checked_every_64_codes(waits: list[str]) -> None:
    launches(SamplingParams(), torch.bfloat16, {}, length=FINITE_CHECK_STEPS + 1)
    assert waits == ["tolist"] * 2


CATALOG = {"qwen3": 187, "olmo2": 196, "olmo2-biases": 192, "gemma": 162, "chameleon": 159, "chameleon-swin": 163}
CATALOG |= {"gpt_neox": 105, "gpt_neox-serial": 105, "llama-biases": 145}
MOST_OF_OTHERS = 149
"""Most launches of a step of two layers with guidance, of families that others' configurations describe."""


@pytest.mark.parametrize("name", tiny_families.MODELS)
def test_families_of_folders_wait_for_nothing(name: str, waits: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_families.describe(name, vocab_size=ROWS)))
    changes = resolve_config(None, tmp_path).model_dump()
    found = launches(SamplingParams(guidance_scale=3.0, top_k=100, top_p=0.9), torch.bfloat16, changes)
    assert (waits, found <= CATALOG.get(name, MOST_OF_OTHERS) + 21) == (["tolist"], True), found


LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
OTHERS: dict[str, tuple[CacheKind, dict[str, Any]]] = {
    "bloom": ("dynamic", {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4}),
    "gemma3_text": ("static", {**LLAMA, "head_dim": 8, "sliding_window": 100}),
    "gpt2": ("static", {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}),
    "mixtral": ("static", {**LLAMA, "num_local_experts": 4}),
    "phi": ("static", {**LLAMA, "num_key_value_heads": 4}),
}


@pytest.mark.usefixtures("reference_models")
@pytest.mark.parametrize("kind", OTHERS)
def test_a_step_of_a_package_waits_for_nothing(kind: str, waits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The package asks whether prompts have padding while it reads them, and never again."""
    from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

    def fast_all(mask: Tensor) -> bool:
        waits.append("padding")
        return False

    monkeypatch.setattr(masking_utils, "fast_all", fast_all)
    cache, fields = OTHERS[kind]
    tokens = {"vocab_size": ROWS, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    implementation = "eager" if kind == "bloom" else "sdpa"
    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        module = build(AutoConfig.for_model(kind, **tokens, **fields), attn_implementation=implementation)
    module = module.to("meta", torch.bfloat16).requires_grad_(False).eval()
    shape = {"hidden_dim": 32, "n_layers": LAYERS, "n_heads": 4, "seq_len": 128, "vocab_size": ROWS}
    config = ModelConfig.model_validate({**shape, "post_embed_norm": False, "weight_tying": False})
    launches_of(TransformersModel(config, module, cache), SamplingParams(guidance_scale=3.0))
    reading = waits.index("tolist")
    assert reading <= 4, waits
    assert waits[reading:] == ["tolist"], "after the last step"
    assert waits.count("padding") == reading
