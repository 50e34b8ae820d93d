"""The engine open_lm: the real package where it is installed, on the golden cases and as a language model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature_run import pretrained
from safetensors.torch import load_file, save_file
from small_models import small_config, small_model

from evalsvc.errors import CheckpointMismatch, InvalidData, MissingPackage, UnsupportedModel
from evalsvc.families.reading import resolve_config
from evalsvc.models import LanguageModel, load_model
from evalsvc.models.open_lm_model import OpenLmModel, load_open_lm
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.scoring import Request, score
from evalsvc.spec.layout import text_only

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())

COMBINATIONS: dict[str, dict[str, Any]] = {
    "tied + qk_norm": {"weight_tying": True, "qk_norm": True, "model_norm": "lp_layer_norm"},
    "head_rotary + gelu": {"positional_embedding_type": "head_rotary", "ffn_type": "gelu", "model_norm": "rms_norm"},
    "heads narrower than the model": {"hidden_dim": 26, "n_heads": 4, "qk_norm": True},
}
COMBINATIONS["llama_rotary + gemma_geglu"] = {"positional_embedding_type": "llama_rotary", "ffn_type": "gemma_geglu"}
COMBINATIONS["llama_rotary + gemma_geglu"] |= {"post_embed_norm": True}
"""Combinations of switches that no golden case has."""

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(case: str) -> Path:
    return GOLDEN / case / "checkpoints" / "epoch_1.pt"


def load(case: str, rotary_inv_freq_dtype: str = "auto") -> OpenLmModel:
    file = checkpoint(case)
    return load_open_lm(file, resolve_config(None, file), rotary_inv_freq_dtype=rotary_inv_freq_dtype)


@pytest.mark.usefixtures("real_open_lm")
class TestRealOpenLm:
    @pytest.mark.parametrize("case", CASES)
    def test_it_is_what_made_the_golden_data(self, case: str) -> None:
        """The package's numbers and not ours: names, ties, twins of `gelu` and all switches are handed over right."""
        expected = load_file(GOLDEN / case / "expected.safetensors")
        logits = load(case).logits(expected["input_ids"])
        assert float((logits - expected["logits_full"]).abs().max()) < 1e-5

    @pytest.mark.parametrize("case", CASES)
    def test_codes_and_scores_are_ours(self, case: str) -> None:
        """Prompts of several lengths are padded, and continued from open_lm's cache; scored rows share beginnings."""
        theirs, ours = load(case), load_model(checkpoint(case))
        rows = theirs.config.vocab_size
        prompts = [Prompt(str(row), tuple(range(1 + row, 4 + 2 * row))) for row in range(3)]
        spec = SamplerSpec(
            range(2, rows), 4, SamplingParams(seed=3, guidance_scale=2.0), 3, (1, 2), bucket=4, row_end=(0, 2)
        )

        def drawn(model: LanguageModel) -> list[list[int]]:
            return [row for samples in generate(model, prompts, spec) for row in samples.codes.tolist()]

        assert theirs.only_path == "dynamic"
        assert drawn(theirs) == drawn(ours)
        requests = [Request((1, 2, 3), (row, 4)) for row in range(5)] + [Request((6,), (1, 2, 3))]
        pairs = zip(*(score(model, text_only(rows), requests, 8) for model in (theirs, ours)), strict=True)
        assert all(abs(first.logprob - second.logprob) < 1e-5 for first, second in pairs)

    @pytest.mark.parametrize("changes", COMBINATIONS.values(), ids=COMBINATIONS)
    def test_combinations(self, changes: dict[str, Any], tmp_path: Path) -> None:
        """With DDP's prefix and the settings that are on the command line only, as a real run saves them."""
        config, file = small_config(**changes), tmp_path / "epoch_3.pt"
        state = {f"module.{name}": tensor for name, tensor in small_model(**changes).state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, file)
        flags = ("model_norm", "qk_norm", "positional_embedding_type", "ffn_type")
        fields = config.model_dump()
        params = ["model: mine", *(f"{flag}: {fields[flag]}" for flag in flags)]
        (tmp_path / "params.txt").write_text("\n".join(params))
        shape = {key: value for key, value in fields.items() if key not in (*flags, "norm_eps", "precision")}
        (tmp_path / "mine.json").write_text(json.dumps(shape))
        ours = load_model(file)
        assert ours.config == config
        ids = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(1))
        expected = load_open_lm(file, config).logits(ids)
        cache = ours.new_cache(2, 12)
        stepped = torch.cat([ours(ids[:, slot : slot + 1], cache=cache) for slot in range(12)], 1)
        for logits in (ours(ids), stepped):
            assert float((logits - expected).abs().max()) < 1e-5

    def test_rounded_frequencies_are_those_of_training(self) -> None:
        """A model that was trained in bfloat16 turns otherwise, and both sides do."""
        ids = load_file(GOLDEN / CASES[0] / "expected.safetensors")["input_ids"][:1]
        exact, rounded = (load(CASES[0], dtype).logits(ids) for dtype in ("float32", "bfloat16"))
        assert float((exact - rounded).abs().max()) > 1e-3
        ours = load_model(checkpoint(CASES[0]), rotary_inv_freq_dtype="bfloat16").logits(ids)
        assert float((ours - rounded).abs().max()) < 1e-5

    def test_tensors_of_another_model_and_a_position_beyond_the_table(self, tmp_path: Path) -> None:
        file = checkpoint(CASES[0])
        tensors = torch.load(file, weights_only=True)["state_dict"]
        tensors["surplus.weight"] = tensors.pop("norm.weight")
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointMismatch, match=r"missing: norm\.weight; .*unexpected: surplus\.weight"):
            load_open_lm(tmp_path / "other.safetensors", resolve_config(None, file))
        model = load("05_llama_rotary_rms_swiglu")
        model.require_positions(2 * model.config.seq_len - 1)
        with pytest.raises(InvalidData, match="positions of open_lm's llama_rotary"):
            model.require_positions(2 * model.config.seq_len)


def test_without_open_lm_the_message_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that is broken is named, such as xformers for another PyTorch."""
    file = Path(pretrained(0).path)
    with pytest.raises(UnsupportedModel, match="choose the engine transformers"):
        load_open_lm(file, resolve_config(None, file).model_copy(update={"family": "llama"}))
    with monkeypatch.context() as patch:
        for name in ("open_lm", "open_lm.attention"):
            patch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPackage, match="open_lm is not installed; run: pip install --no-deps xformers"):
            load(CASES[0])
    (tmp_path / "open_lm").mkdir()
    (tmp_path / "open_lm" / "__init__.py").write_text("")
    (tmp_path / "open_lm" / "attention.py").write_text("raise ImportError('undefined symbol')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_lm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackage, match="open_lm cannot be imported: it fails: undefined symbol; run: pip"):
        load(CASES[0])
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_lm"]:
        del sys.modules[name]
