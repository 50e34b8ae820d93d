"""A training as a whole: what it writes, and that an interrupted one ends with the same bytes."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_families import write_ours
from tiny_trainings import checkpoint_bytes, tiny_recipe
from trainer.checkpoint_files import HuggingFaceFolders, saved_checkpoints
from trainer.training import Training, learning_rate

from evalsvc.checkpoints.opening import opened
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.torch_file import read_outline
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import Conflict, NonFinite, NotACheckpoint
from evalsvc.models import load_model
from train import claimed, train

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = Path(__file__).parents[4] / "tests" / "golden" / "open_lm" / "14_all_defaults_ema_optimizer_t2i_vocab"


def test_the_learning_rate_rises_and_follows_a_cosine(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, steps=100, warm_up=10, learning_rate=0.5, floor=0.1, checkpoint_steps=[])
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.15])
    assert max(rates) <= 0.5
    for step in (10, 50, 99):
        assert rates[step] == pytest.approx(0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2))
    constant = tiny_recipe(tmp_path, floor=1, warm_up=0, learning_rate=0.5)
    assert {learning_rate(constant, step) for step in range(6)} == {0.5}


def test_checkpoints_are_open_lms_and_open_by_themselves(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data", ema=[0.5, 0.9])
    train(recipe, tmp_path / "run")
    for epoch, step in enumerate((0, 3, 6)):
        file = tmp_path / "run" / "checkpoints" / f"epoch_{epoch}.pt"
        assert read_weights(file).format == "open_lm epoch"
        outline = read_outline(file)
        assert (outline["epoch"], outline["step"], outline["samples_seen"]) == (epoch, step, 4 * step)
    path = tmp_path / "run" / "checkpoints" / "epoch_2.pt"
    model = load_model(path)
    assert model.config.vocab_size == 35
    assert model.rotary_inv_freq_dtype == "float32"
    assert not model.saved_inv_freq, "the frequencies are open_lm's own"
    assert read_weights(path.with_name("ema_0.5_1_2.pt")).format == "open_lm average"
    with pytest.raises(NotACheckpoint, match="holds the optimizer state of epoch 2"):
        read_weights(path.with_name("optimizer_2.pt"))


def test_files_have_the_keys_of_open_lms_own(tmp_path: Path) -> None:
    """In the same order, as a file of the real open_lm has them."""
    train(tiny_recipe(tmp_path / "data", ema=[0.9]), tmp_path / "run")
    for ours, theirs in (("epoch_1.pt", "epoch_1.pt"), ("ema_0.9_1_1.pt", "ema_0.9_1_1.pt")):
        content = torch.load(tmp_path / "run" / "checkpoints" / ours, weights_only=True)
        real = torch.load(SHARED / "checkpoints" / theirs, weights_only=True)
        assert [key for key in content if key in real] == list(real), "the golden run had no data of its own to count"
        assert set(content) - set(real) <= {"samples_seen", "shard_shuffle_seed"}
        state = "av_model_sd" if "av_model_sd" in real else "state_dict"
        assert list(content[state]) == list(real[state])
    real = torch.load(SHARED / "checkpoints" / "optimizer_1.pt", weights_only=False)
    written = torch.load(tmp_path / "run" / "checkpoints" / "optimizer_1.pt", weights_only=True)
    assert list(written) == list(real)
    assert written["optimizer"].keys() == real["optimizer"].keys()


def test_averages_are_those_of_the_weights_on_the_way(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data", ema=[0.5], checkpoint_steps=range(6), steps=6)
    train(recipe, tmp_path / "run")
    weights = [load_model(tmp_path / "run" / "checkpoints" / f"epoch_{step}.pt").state_dict() for step in range(7)]
    average = load_model(tmp_path / "run" / "checkpoints" / "ema_0.5_1_6.pt").state_dict()
    for name, value in average.items():
        expected = weights[0][name].double()
        for step in range(1, 7):
            expected = 0.5 * expected + 0.5 * weights[step][name].double()
        assert torch.allclose(value.double(), expected, atol=1e-6), name


def test_all_files_are_listed_with_step_and_variant(tmp_path: Path) -> None:
    assert saved_checkpoints(tmp_path / "none") == []
    train(tiny_recipe(tmp_path / "data", ema=[0.5], checkpoint_steps=[]), tmp_path / "run")
    listed = [(saved.step, saved.variant, saved.path.name) for saved in saved_checkpoints(tmp_path / "run")]
    assert listed == [(6, "ema_0.5", "ema_0.5_1_0.pt"), (6, "raw", "epoch_0.pt")]


def test_the_log_has_every_step_and_its_parts(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "data"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        parts = line["parts"].values()
        mean = sum(part["loss"] * part["tokens"] for part in parts) / sum(part["tokens"] for part in parts)
        assert mean == pytest.approx(line["loss"], abs=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"]


class Stopped(Exception):
    pass


@contextmanager
def stopped_before(step: int) -> Iterator[None]:
    """Have a training raise Stopped in the place of this step."""
    advance = Training.advance

    def stopping(training: Training) -> None:
        if training.step == step:
            raise Stopped
        advance(training)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Training, "advance", stopping)
        yield


@pytest.mark.parametrize("stop", range(6))
def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path: Path, stop: int) -> None:
    changes = {"ema": [0.5], "caption_drop": 0.3, "replay": {"share": 0.3, "text": "text.jsonl", "length": 8}}
    recipe = tiny_recipe(tmp_path / "data", **changes)
    train(recipe, tmp_path / "whole")
    with stopped_before(stop), pytest.raises(Stopped):
        train(recipe, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / f"epoch_1.pt.{'0' * 16}.partial").write_bytes(b"half")
    train(recipe, tmp_path / "parts")
    assert checkpoint_bytes(tmp_path / "parts") == checkpoint_bytes(tmp_path / "whole")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert not (tmp_path / "parts" / "state.pt").exists()


def test_a_resumed_training_does_not_disturb_who_reads_its_checkpoints(tmp_path: Path) -> None:
    """Also not by the configuration next to them, which a resumed training writes again."""
    recipe = tiny_recipe(tmp_path / "data")
    with stopped_before(4), pytest.raises(Stopped):
        train(recipe, tmp_path / "run")
    with opened(CheckpointRef(str(tmp_path / "run" / "checkpoints" / "epoch_1.pt"))) as reference:
        train(recipe, tmp_path / "run")
        assert read_outline(Path(reference.path))["step"] == 3


def test_checkpoints_are_announced_in_order_and_again(tmp_path: Path) -> None:
    """What an interrupted call announced may not have been posted."""
    recipe = tiny_recipe(tmp_path / "data")
    announced: list[int] = []

    def announce(step: int, path: Path) -> None:
        assert read_outline(path)["step"] == step
        assert read_weights(path).tensors, "it is whole"
        announced.append(step)

    with stopped_before(4), pytest.raises(Stopped):
        train(recipe, tmp_path / "run", on_checkpoint=announce)
    assert announced == [0, 3]
    train(recipe, tmp_path / "run", on_checkpoint=announce)
    assert announced == [0, 3, 0, 3, 6]
    train(recipe, tmp_path / "run", on_checkpoint=announce)
    assert announced[5:] == [0, 3, 6], "a training that is done trains no more"


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "data"), tmp_path / "run")
    with pytest.raises(Conflict, match=r"by another recipe: batch, learning_rate differ"):
        train(tiny_recipe(tmp_path / "data", batch=5, learning_rate=0.5), tmp_path / "run")


def test_two_trainings_at_once_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data")
    with claimed(tmp_path / "run", recipe), pytest.raises(Conflict, match="another training runs"):
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run")


def test_a_training_that_diverges_says_where(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data", learning_rate=10, warm_up=0, clip=1e30, steps=400)
    train_folder = tmp_path / "run"
    training = Training(recipe, train_folder, "cpu")
    train_folder.mkdir()
    with torch.no_grad():
        training.start.model.output.weight.fill_(float("inf"))
    with pytest.raises(NonFinite, match="at step 0; lower `learning_rate`"):
        training.advance()


def test_a_hugging_face_folder_is_continued_as_folders(tmp_path: Path) -> None:
    """Tied tables, grouped heads and an average, read by the family's own names."""
    (tmp_path / "data").mkdir()
    write_ours("llama-3", tmp_path / "data" / "llama")
    layout = {"text": {"size": 96}, "image": {"offset": 96, "size": 8}, "rows": 110, "length": 24}
    (tmp_path / "data" / "wide.yaml").write_text(json.dumps(layout))
    (tmp_path / "data" / "llama" / "tokenizer.json").write_text("{}")
    recipe = tiny_recipe(
        tmp_path / "data",
        start="llama",
        model=None,
        layout="wide.yaml",
        image_rows="like-text",
        ema=[0.5],
        autocast=True,
    )
    train(recipe, tmp_path / "run")
    paths = [saved.path for saved in saved_checkpoints(tmp_path / "run")]
    assert [path.name for path in paths[-2:]] == ["step_6-ema_0.5", "step_6"]
    first, last = (load_model(HuggingFaceFolders(tmp_path / "run", recipe).path(step)) for step in (0, 6))
    assert last.config.vocab_size == 110
    assert last.config.rotary_scaling is not None
    start = load_model(tmp_path / "data" / "llama")
    assert torch.equal(first.tok_embeddings.weight[:96], start.tok_embeddings.weight)
    assert not torch.equal(first.tok_embeddings.weight, last.tok_embeddings.weight)
    assert (paths[-1] / "tokenizer.json").read_text() == "{}"
    assert load_model(paths[-2]).config == last.config


@pytest.mark.usefixtures("reference_models")
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox"])
def test_transformers_opens_the_folders(tmp_path: Path, name: str) -> None:
    """And computes the same logits."""
    from transformers import AutoModelForCausalLM

    (tmp_path / "data").mkdir()
    write_ours(name, tmp_path / "data" / "start")
    layout = {"text": {"size": 96}, "image": {"offset": 96, "size": 8}, "rows": 110, "length": 24}
    (tmp_path / "data" / "wide.yaml").write_text(json.dumps(layout))
    recipe = tiny_recipe(tmp_path / "data", start="start", model=None, layout="wide.yaml", steps=2, checkpoint_steps=[])
    train(recipe, tmp_path / "run")
    [saved] = saved_checkpoints(tmp_path / "run")
    ids = torch.arange(20).view(2, 10)
    theirs, info = AutoModelForCausalLM.from_pretrained(saved.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, load_model(saved.path)(ids), atol=1e-5)
