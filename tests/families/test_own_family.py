"""The family of docs/how-to/models.md, installed as a package of its own."""

import json
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
from doc_blocks import DOCS, find_block
from loss_task import LAYOUT, RECORDS
from loss_task import write as write_records
from safetensors.torch import save_file
from task_runs import metrics, run_task
from torch.nn import functional

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import InvalidModelConfig
from evalsvc.families.reading import find_model_config
from evalsvc.models import load_model
from evalsvc.spec import catalog

PAGE = DOCS / "how-to" / "models.md"
CONFIG = {"model_type": "acme", "width": 32, "depth": 2, "heads": 4, "shared_heads": 2, "rows": 112, "context": 64}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package with its entry points in the catalog; tests/spec/test_catalog.py has the catalog find them."""
    points = tomllib.loads(find_block(PAGE, "toml", "evalsvc.families"))["project"]["entry-points"]["evalsvc.families"]
    [(name, target)] = points.items()
    module = types.ModuleType(target.partition(":")[0])
    exec(find_block(PAGE, "python", "class AcmeFamily"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(catalog.COMPONENTS["families"], name, target)


def write_model(folder: Path) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"wte": (112, 32), "unembed": (112, 32), "last_norm": (32,)}
    for layer in range(2):
        parts = {"query": (32, 32), "key": (16, 32), "value": (16, 32), "mix": (32, 32)}
        parts |= {"up": (128, 32), "down": (32, 128), "norm_1": (32,), "norm_2": (32,)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in parts.items()}
    tensors = {f"{name}.weight": 0.2 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return tensors


def logits_of(tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The example's own code, for a reader: one sequence, no cache."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.rms_norm(x, (32,), tensors[f"{name}.weight"], 1e-5)

    def turned(x: torch.Tensor) -> torch.Tensor:  # [T, H, 8]
        angles = torch.arange(len(ids))[:, None] * 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
        first, second = x.chunk(2, dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    x = tensors["wte.weight"][ids]
    for layer in range(2):
        names = ("query", "key", "value", "mix", "up", "down")
        block = {name: tensors[f"blocks.{layer}.{name}.weight"] for name in names}
        inner = norm(x, f"blocks.{layer}.norm_1")
        queries, keys, values = ((inner @ block[name].T).unflatten(1, (-1, 8)) for name in ("query", "key", "value"))
        keys, values = (part.repeat_interleave(2, dim=1) for part in (turned(keys), values))
        mixed = functional.scaled_dot_product_attention(
            turned(queries).transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), is_causal=True
        )
        x = x + mixed.transpose(0, 1).flatten(1) @ block["mix"].T
        x = x + functional.gelu(norm(x, f"blocks.{layer}.norm_2") @ block["up"].T) @ block["down"].T
    return norm(x, "last_norm") @ tensors["unembed.weight"].T


@pytest.mark.usefixtures("one_thread")
def test_a_family_of_ones_own_is_evaluated_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    tensors = write_model(tmp_path / "model")
    ids = torch.arange(20) * 5 % 112
    torch.testing.assert_close(load_model(tmp_path / "model")(ids[None])[0], logits_of(tensors, ids))
    data = write_records(tmp_path / "pairs.jsonl", RECORDS)
    checkpoint = CheckpointRef(str(tmp_path / "model"), layout=dict(LAYOUT), label="step 1")
    result = run_task(checkpoint, kind="loss", name="loss", data=str(data))
    assert metrics(result)["loss/text"]["value"] > 0
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "depth": 10**9}))
    with pytest.raises(InvalidModelConfig, match="is not an Acme configuration: depth"):
        find_model_config(tmp_path)
