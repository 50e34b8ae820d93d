"""Recipes of trainings: what a file may say, and what it is told when it is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_trainings import tiny_recipe
from trainer.recipe import Recipe, read_recipe

from evalsvc.errors import InvalidRequest

LEAST = {"name": "run", "model": "open_lm_11m", "data": "pairs.jsonl", "layout": "l.yaml", "steps": 5, "batch": 2}


def read(tmp_path: Path, content: Any) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_recipe(path)


def test_paths_start_from_the_file(tmp_path: Path) -> None:
    recipe = read(tmp_path, {**LEAST, "learning_rate": 0.1, "replay": {"share": 0.5, "text": "more/text.jsonl"}})
    assert recipe.data == tmp_path / "pairs.jsonl"
    assert recipe.replay is not None
    assert recipe.replay.text == tmp_path / "more" / "text.jsonl"
    assert recipe.model == "open_lm_11m", "a registered name is no path"


def test_the_last_step_is_always_kept(tmp_path: Path) -> None:
    assert read(tmp_path, {**LEAST, "learning_rate": 1, "checkpoint_steps": [3, 0]}).kept == (0, 3, 5)


def test_a_recipe_is_read_from_what_it_writes(tmp_path: Path) -> None:
    """A folder's recipe is compared with the one that is given, and both must be plain values."""
    recipe = tiny_recipe(tmp_path, ema=[0.9, 0.99], replay={"share": 0.1, "text": "text.jsonl"}, image_rows="like-text")
    assert read(tmp_path, recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lerning_rate": 0.1}, "'lerning_rate'"),
        ({"learning_rate": -1}, "learning_rate: input should be greater than 0, found -1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"batch": 0}, "batch: input should be greater than or equal to 1"),
        ({"tuned": "5"}, "tuned: input should be 'all', 'tables'"),
        ({"ema": [1.0]}, "ema.0: input should be less than 1"),
        ({"checkpoint_steps": [6]}, "checkpoint_steps has 6, beyond the last step 5"),
        ({"data": None}, "give `data`, or `replay` with the share 1"),
        ({"layout": None}, "`data` needs a `layout`"),
        ({"model": None}, "`start: random` needs a `model`"),
        ({"name": "../run"}, "name: string should match pattern"),
        ({"replay": {"share": 2, "text": "t"}}, "replay.share: input should be less than or equal to 1"),
        ({"replay": {"share": 0.5, "text": "t", "tokens": 3}}, "replay.tokens"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(tmp_path, {**LEAST, "learning_rate": 0.1, **change})
    assert message in raised.value.message
    assert "recipe.yaml" in raised.value.message


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequest, match=r"the recipe .* does not map names to values; write lines such as `steps:"
    ):
        read(tmp_path, "- 1\n")
