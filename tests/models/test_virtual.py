"""Models computed from several checkpoints, against plain arithmetic on their tensors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SHAPE
from tiny_families import write_ours
from torch import Tensor

from evalsvc.checkpoints.expression import leaves, parse_expression
from evalsvc.errors import CheckpointMismatch, InvalidRequest, NonFinite
from evalsvc.families.reading import resolve_config
from evalsvc.miniature import ROOT
from evalsvc.models import Transformer, load_model
from evalsvc.models.loading import INV_FREQ, agreed_config, load_virtual
from evalsvc.models.rotation import inv_freq_table
from evalsvc.spec.model_config import ModelConfig

CONFIG = SHAPE | {"hidden_dim": 16, "n_layers": 3, "n_heads": 2, "seq_len": 8, "vocab_size": 20}


def write(folder: Path, seed: int, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig.model_validate({**CONFIG, **changes}))
    tensors = {name: torch.randn(tensor.shape, dtype=dtype) for name, tensor in model.state_dict().items()}
    if changes.get("weight_tying"):
        tensors["output.weight"] = tensors["tok_embeddings.weight"].clone()
    save_file(tensors, folder / f"{seed}.safetensors")
    return folder / f"{seed}.safetensors"


@pytest.fixture
def parents(tmp_path: Path) -> dict[str, Path]:
    return {f"r@{seed}": write(tmp_path, seed) for seed in range(1, 5)}


def load(text: str, parents: dict[str, Path], dtype: str = "float32", **changes: object) -> Transformer:
    expression = parse_expression(text)
    chosen = {str(leaf): parents[str(leaf)] for leaf in leaves(expression)}
    return load_virtual(expression, chosen, ModelConfig.model_validate({**CONFIG, **changes}), dtype=dtype)


def plain(path: Path, **changes: object) -> dict[str, Tensor]:
    config = ModelConfig.model_validate({**CONFIG, **changes})
    return {name: tensor.double() for name, tensor in load_model(path, config, dtype="float64").state_dict().items()}


def test_the_average_of_two_is_the_mean_of_the_tensors_to_the_last_bit() -> None:
    """On the bundled run, whose weights are bfloat16: in that dtype the mean would have lost half of its digits."""
    folder = ROOT / "runs" / "pretrained" / "checkpoints"
    parents = {"p@0": folder / "epoch_0.pt", "p@3000": folder / "epoch_5.pt"}
    config = resolve_config(None, folder / "epoch_0.pt")
    model = load_virtual(parse_expression("avg(p@0, p@3000)"), parents, config)
    first, last = (torch.load(path, weights_only=True)["state_dict"] for path in parents.values())
    found = model.state_dict()
    assert set(found) <= set(first)
    assert {tensor.dtype for tensor in first.values()} >= {torch.bfloat16}
    for name, tensor in found.items():
        assert torch.equal(tensor, ((first[name].double() + last[name].double()) / 2).float()), name


@pytest.mark.parametrize("name", ["llama-3", "gpt_neox"])
def test_folders_of_another_family_are_combined(name: str, tmp_path: Path) -> None:
    parents = {f"r@{seed}": tmp_path / str(seed) for seed in (1, 2)}
    one, two = (write_ours(name, path, seed) for seed, path in enumerate(parents.values(), 1))
    expression = parse_expression("graft(avg(r@1, r@2), r@2, layers=1)")
    model = load_virtual(expression, parents, one.config)
    for key, tensor in model.state_dict().items():
        first, second = one.state_dict()[key], two.state_dict()[key]
        expected = second if key.startswith("layers.1.") else ((first.double() + second.double()) / 2).float()
        assert torch.equal(tensor, expected), key
    other = write_ours(name, tmp_path / "3", rope_parameters={"rope_type": "default", "rope_theta": 300.0})
    with pytest.raises(CheckpointMismatch, match="are different models: rotary_"):
        agreed_config({"r@1": one.config, "r@3": other.config})


def test_functions_inside_one_another_equal_plain_arithmetic(parents: dict[str, Path]) -> None:
    """An average of many parents loses no digits."""
    text = "graft(lerp(avg(r@1, r@2, r@2), r@3, 0.3), avg(r@1, r@4), layers=1, parts=head)"
    one, two, three, four = (plain(path) for path in parents.values())
    for name, tensor in load(text, parents).state_dict().items():
        expected = 0.7 * (one[name] + 2 * two[name]) / 3 + 0.3 * three[name]
        if name.startswith("layers.1.") or name == "output.weight":
            expected = (one[name] + four[name]) / 2
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=5e-7)
    parents |= {f"r@{seed}": write(parents["r@1"].parent, seed) for seed in range(5, 41)}
    every = [plain(path) for path in parents.values()]
    for name, tensor in load(f"avg({', '.join(parents)})", parents).state_dict().items():
        mean = sum(tensors[name] / len(parents) for tensors in every)
        torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_ends_are_the_parents_themselves(parents: dict[str, Path], dtype: str) -> None:
    for text, parent in (("lerp(r@1, r@2, 0)", 1), ("lerp(r@1, r@2, 1)", 2), ("avg(r@3)", 3), ("avg(r@3, r@3)", 3)):
        expected = load_model(parents[f"r@{parent}"], ModelConfig.model_validate(CONFIG), dtype=dtype)
        found = load(text, parents, dtype).state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())


def test_tied_tables_stay_tied(tmp_path: Path) -> None:
    parents = {f"r@{seed}": write(tmp_path, seed, weight_tying=True) for seed in (1, 2)}
    model = load("lerp(r@1, r@2, 0.25)", parents, weight_tying=True)
    assert model.output.weight is model.tok_embeddings.weight
    one, two = (plain(path, weight_tying=True) for path in parents.values())
    name = "tok_embeddings.weight"
    torch.testing.assert_close(model.output.weight.double(), 0.75 * one[name] + 0.25 * two[name], rtol=0, atol=2e-7)
    with pytest.raises(InvalidRequest, match="one table for both"):
        load("graft(r@1, r@2, parts=head)", parents, weight_tying=True)


def test_a_parent_that_diverged_or_has_other_shapes_is_named(tmp_path: Path, parents: dict[str, Path]) -> None:
    tensors = load_file(parents["r@2"])
    tensors["layers.1.ffn_norm.weight"][3] = float("nan")
    save_file(tensors, parents["r@2"])
    with pytest.raises(NonFinite, match=r"2\.safetensors has NaN or infinity in layers\.1\.ffn_norm\.weight; .*leave"):
        load("avg(r@1, r@2)", parents)
    load("lerp(r@1, r@2, 0)", parents)
    load("graft(r@1, r@2, layers=0)", parents)
    parents |= {"r@8": write(tmp_path, 8, n_layers=2)}
    with pytest.raises(CheckpointMismatch, match=r"8\.safetensors .* does not match .* missing: layers\.2"):
        load("avg(r@1, r@8)", parents)


def save_frequencies(path: Path, factor: float) -> None:
    saved = factor * inv_freq_table(CONFIG["hidden_dim"] // CONFIG["n_heads"])
    buffers = {f"layers.{layer}{INV_FREQ}": saved.clone() for layer in range(CONFIG["n_layers"])}
    save_file({**load_file(path), **buffers}, path)


def test_parents_with_rotary_frequencies_of_their_own(parents: dict[str, Path]) -> None:
    """Ignored, they would make every virtual checkpoint of the run silently wrong."""
    for name in ("r@1", "r@2"):
        save_frequencies(parents[name], 3)
    model = load("avg(r@1, r@2)", parents)
    own = load_model(parents["r@1"], ModelConfig.model_validate(CONFIG))
    assert model.saved_inv_freq == own.saved_inv_freq != ()
    assert torch.equal(model.positions.inv_freq, own.positions.inv_freq)
    save_frequencies(parents["r@2"], 1)
    words = "r@1 and r@{} have different rotary frequencies: those saved as inv_freq and open_lm's table; only"
    for other in (2, 3):
        with pytest.raises(CheckpointMismatch, match=words.format(other)):
            load(f"avg(r@1, r@{other})", parents)
    save_frequencies(parents["r@4"], 4)
    with pytest.raises(CheckpointMismatch, match="those saved as inv_freq and those saved as inv_freq"):
        load("graft(r@1, r@4, layers=0)", parents)
    load("avg(r@2, r@3)", parents)
    load("lerp(r@1, r@2, 0)", parents)  # a parent that counts for nothing says nothing


def test_configurations_that_differ_are_named_with_their_fields() -> None:
    """How a run was trained matters only for its rotary frequencies."""
    ours = ModelConfig.model_validate(CONFIG)
    assert agreed_config({"a@1": ours, "b@2": ours.model_copy(update={"precision": "fp32"})}) == ours
    for changes, words in (
        ({"vocab_size": 24, "qk_norm": True, "precision": "amp_bf16"}, "vocab_size 20 and 24, qk_norm False and True"),
        ({"precision": "fsdp_bf16"}, "rotary_inv_freq_dtype 'float32' and 'bfloat16'"),
    ):
        with pytest.raises(CheckpointMismatch, match=f"^a@1 and b@2 are different models: {words}"):
            agreed_config({"a@1": ours, "a@2": ours, "b@2": ours.model_copy(update=changes)})


MEASURE = """
import sys
from pathlib import Path
from evalsvc.checkpoints.expression import parse_expression
from evalsvc.spec.model_config import ModelConfig
from evalsvc.models.loading import load_virtual

def peak():  # of this program: getrusage would begin with that of the one that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

folder, count, config = Path(sys.argv[1]), int(sys.argv[2]), ModelConfig.model_validate_json(sys.argv[3])
names = [f"r@{index}" for index in range(count)]
text = f"avg({', '.join(names)})"
load_virtual(parse_expression("avg(r@0)"), {"r@0": folder / "small.pt"}, config.model_copy(update={"n_layers": 1}))
before = peak()
load_virtual(parse_expression(text), dict.fromkeys(names, folder / "large.pt"), config)
print(peak() - before)
"""


@pytest.mark.usefixtures("child_process")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_is_that_of_the_model_and_one_parent_however_many_there_are(tmp_path: Path) -> None:
    """Twenty checkpoints of a 1b model are 80 GB. The file is of the format that cannot be mapped."""
    shape = {**CONFIG, "hidden_dim": 512, "n_layers": 4, "vocab_size": 64}
    sizes = {}
    for name, layers in (("small", 1), ("large", 4)):
        config = ModelConfig.model_validate({**shape, "n_layers": layers})
        tensors = {key: torch.zeros(tensor.shape) for key, tensor in Transformer(config).state_dict().items()}
        torch.save(tensors, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=False)
        sizes[name] = sum(tensor.nbytes for tensor in tensors.values())
    arguments = [str(tmp_path), "6", ModelConfig.model_validate(shape).model_dump_json()]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    grown = 1024 * int(done.stdout)
    assert sizes["large"] < grown < 2.1 * sizes["large"], f"{grown / sizes['large']:.2f} times the weights"
