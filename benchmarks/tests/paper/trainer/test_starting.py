"""The model before the first step."""

import json
from pathlib import Path

import pytest
import torch
from tiny_families import ROWS as LLAMA_ROWS
from tiny_families import write_ours
from tiny_trainings import CODES, ROWS, TEXT_ROWS, tiny_recipe
from trainer.aligned_rows import write_rows
from trainer.starting import build, starting_model

from evalsvc.errors import CheckpointMismatch, InvalidRequest
from evalsvc.models import load_model
from evalsvc.spec.model_config import ModelConfig
from train import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """A model of the text rows alone, trained for two steps."""
    text = {"share": 1, "text": "text.jsonl", "length": 8}
    train(
        tiny_recipe(tmp_path / "data", data=None, layout=None, replay=text, steps=2, checkpoint_steps=[]),
        tmp_path / "text",
    )
    return tmp_path / "text" / "checkpoints" / "epoch_0.pt"


def test_a_text_model_is_widened_by_the_layout(tmp_path: Path, text_model: Path) -> None:
    """The text rows keep their values; the new ones are those of a random start with the same seed."""
    narrow = load_model(text_model).state_dict()
    recipe = tiny_recipe(tmp_path / "data", start=str(text_model), seed=3)
    wide = starting_model(recipe).model.state_dict()
    random = starting_model(tiny_recipe(tmp_path / "data", seed=3)).model.state_dict()
    for table in ("tok_embeddings.weight", "output.weight"):
        assert wide[table].shape == (ROWS, 16)
        assert torch.equal(wide[table][:TEXT_ROWS], narrow[table])
        assert torch.equal(wide[table][TEXT_ROWS:], random[table][TEXT_ROWS:])
    assert all(torch.equal(wide[name], narrow[name]) for name in wide if wide[name].shape == narrow[name].shape)


def test_new_rows_can_be_like_the_text(tmp_path: Path, text_model: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data", start=str(text_model), image_rows="like-text")
    first, second = (starting_model(recipe).model.state_dict()["output.weight"] for _ in range(2))
    assert torch.equal(first, second)
    text, new = first[:TEXT_ROWS], first[TEXT_ROWS:]
    assert not torch.equal(new, starting_model(tiny_recipe(tmp_path / "data")).model.output.weight[TEXT_ROWS:])
    assert float((new.mean(0) - text.mean(0)).abs().max()) < 4 * float(text.std(0).max()) / len(new) ** 0.5


def test_new_rows_can_be_aligned_ones(tmp_path: Path) -> None:
    """Those of the file; the special tokens' rows stay random."""
    values = torch.arange(CODES * 16.0).view(CODES, 16)
    rows = torch.arange(TEXT_ROWS, TEXT_ROWS + CODES)
    write_rows(tmp_path / "rows.safetensors", values, rows.tolist())
    plain = starting_model(tiny_recipe(tmp_path)).model
    model = starting_model(tiny_recipe(tmp_path, image_rows="rows.safetensors")).model
    table, before = model.tok_embeddings.weight, plain.tok_embeddings.weight
    assert torch.equal(table[rows], values)
    others = [row for row in range(ROWS) if row not in rows.tolist()]
    assert torch.equal(table[others], before[others])
    assert torch.equal(model.output.weight, plain.output.weight)


def test_a_start_with_all_rows_keeps_their_places(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data")
    train(recipe, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "epoch_2.pt"
    again = starting_model(tiny_recipe(tmp_path / "data", start=str(last), model=None, seed=9)).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in load_model(last).state_dict().items())


def test_a_layout_without_room_for_the_start_is_refused(tmp_path: Path) -> None:
    write_ours("llama", tmp_path / "llama")
    with pytest.raises(CheckpointMismatch, match=f"the start has {LLAMA_ROWS} rows, and the layout a table of {ROWS}"):
        starting_model(tiny_recipe(tmp_path, start="llama", model=None))


def test_a_twin_has_the_shape_of_a_folder_and_random_values(tmp_path: Path) -> None:
    write_ours("llama-3", tmp_path / "llama")
    twin = starting_model(tiny_recipe(tmp_path, model="llama"))
    assert twin.model.config.family == "llama"
    assert twin.model.config.vocab_size == ROWS
    assert twin.model.output.weight is twin.model.tok_embeddings.weight, "the tables are tied"
    assert twin.source == tmp_path / "llama"


def test_a_folder_of_another_family_needs_its_config(tmp_path: Path) -> None:
    write_ours("llama", tmp_path / "llama")
    (tmp_path / "llama" / "config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(InvalidRequest, match=r"has no config\.json to write into them"):
        starting_model(tiny_recipe(tmp_path, model="elsewhere.json"))


def test_initial_values_are_those_of_open_lm() -> None:
    """Deviation 1 / sqrt(inputs), by layer where a matrix writes into the residual stream, and cut off at three."""
    shape = json.loads('{"hidden_dim": 256, "n_layers": 2, "n_heads": 4, "seq_len": 8, "vocab_size": 300}')
    config = ModelConfig.model_validate({**shape, "post_embed_norm": False, "weight_tying": False})
    state = build(config, 0).state_dict()
    for name, depth in (
        ("layers.0.attention.in_proj", 1),
        ("layers.0.attention.out_proj", 2),
        ("layers.1.feed_forward.w3", 4),
    ):
        weight = state[f"{name}.weight"]
        std = (weight.shape[1] * depth) ** -0.5
        assert float(weight.std()) == pytest.approx(0.9866 * std, rel=0.02), "of a normal cut off at three"
        assert float(weight.abs().max()) <= 3 * std
    assert state["layers.0.attention_norm.weight"].eq(1).all()
    assert state["layers.0.attention_norm.bias"].eq(0).all()


def test_the_global_seed_has_no_part(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    torch.manual_seed(0)
    first = starting_model(recipe).model.state_dict()
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    second = starting_model(recipe).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state), "nor is it drawn from"
