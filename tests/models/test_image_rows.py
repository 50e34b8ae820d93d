"""Image rows as a file, and as what a model begins with."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evalsvc.errors import CheckpointMismatch, NotACheckpoint
from evalsvc.models.image_rows import ImageRows, put_image_rows, read_image_rows

ROWS = torch.tensor([9, 7, 8])


def image_rows(table: str = "tok_embeddings.weight", table_rows: int = 12) -> ImageRows:
    values = torch.arange(12, dtype=torch.float32).view(3, 4) / 7
    return ImageRows(
        values,
        ROWS,
        torch.tensor([True, False, True]),
        table,
        table_rows,
        {"temperature": "0.07", "norm": "é", "layout": "a"},
    )


def write(path: Path, rows: ImageRows) -> Path:
    path.write_bytes(rows.to_bytes())
    return path


def state_dict(prefix: str = "", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("tok_embeddings.weight", "norm.weight", "output.weight")
    return {prefix + name: torch.randn(12, 4, generator=generator).to(dtype) for name in names}


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    found = read_image_rows(write(tmp_path / "rows.safetensors", image_rows()))
    expected = image_rows()
    assert (found.table, found.table_rows, dict(found.about)) == (expected.table, 12, expected.about)
    for one, other in ((found.values, expected.values), (found.rows, ROWS), (found.trained, expected.trained)):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


def test_the_same_rows_are_the_same_file() -> None:
    """safetensors writes its metadata in an order of chance, and artifacts are known by their content."""
    assert len({image_rows().to_bytes() for _ in range(20)}) == 1


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_named_rows_of_the_table_change(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    """A code's row is where the layout's map puts it, and wrappers put names before the table's."""
    state, before = state_dict(prefix, dtype), state_dict(prefix, dtype)
    put_image_rows(state, write(tmp_path / "rows.safetensors", image_rows()))
    table, old = (content.pop(f"{prefix}tok_embeddings.weight") for content in (state, before))
    assert table[ROWS].tolist() == image_rows().values.to(dtype).tolist()
    others = [row for row in range(12) if row not in ROWS.tolist()]
    assert table[others].tolist() == old[others].tolist()
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("embedding", "head"),
    [("model.embed_tokens.weight", "lm_head.weight"), ("gpt_neox.embed_in.weight", "embed_out.weight")],
)
def test_other_families_have_other_names(tmp_path: Path, embedding: str, head: str) -> None:
    names = {"tok_embeddings.weight": embedding, "output.weight": head, "norm.weight": "model.norm.weight"}
    for table, name in ((table, names[table]) for table in ("tok_embeddings.weight", "output.weight")):
        state = {names[key]: tensor for key, tensor in state_dict().items()}
        put_image_rows(state, write(tmp_path / "rows.safetensors", image_rows(table)))
        assert state.pop(name)[ROWS].tolist() == image_rows().values.tolist()
        before = {names[key]: tensor for key, tensor in state_dict().items()}
        assert all(torch.equal(state[key], before[key]) for key in state)


def test_the_output_table_is_another_one(tmp_path: Path) -> None:
    state, before = state_dict(), state_dict()
    put_image_rows(state, write(tmp_path / "rows.safetensors", image_rows("output.weight")))
    assert state["output.weight"][ROWS].tolist() == image_rows().values.tolist()
    assert torch.equal(state["tok_embeddings.weight"], before["tok_embeddings.weight"])


@pytest.mark.parametrize("shared", [True, False])
def test_tied_tables_stay_equal(tmp_path: Path, shared: bool) -> None:
    """open_lm saves a tied table twice; with one of them changed the checkpoint would no longer open."""
    state = state_dict()
    table = state["tok_embeddings.weight"]
    state["output.weight"] = table if shared else table.clone()
    put_image_rows(state, write(tmp_path / "rows.safetensors", image_rows()))
    assert torch.equal(state["output.weight"], state["tok_embeddings.weight"])
    assert state["output.weight"][ROWS].tolist() == image_rows().values.tolist()


@pytest.mark.parametrize(
    ("rows", "state", "message"),
    [
        (image_rows(table_rows=13), state_dict(), r"tok_embeddings.weight is \[12, 4\], .* is for a table \[13, 4\]"),
        (image_rows(), {"tok_embeddings.weight": torch.zeros(12, 5)}, "widen the model with the layout"),
        (image_rows(), {"norm.weight": torch.zeros(4)}, "the state dict has no tok_embeddings.weight"),
    ],
)
def test_a_model_that_they_do_not_fit_is_refused(
    tmp_path: Path, rows: ImageRows, state: Mapping[str, Tensor], message: str
) -> None:
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(CheckpointMismatch, match=message):
        put_image_rows(state, write(tmp_path / "rows.safetensors", rows))
    assert all(torch.equal(state[name], before[name]) for name in before)


GOOD = {"values": torch.zeros(3, 4), "rows": ROWS, "trained": torch.ones(3, dtype=torch.uint8)}
ABOUT = {"table": "tok_embeddings.weight", "table_rows": "12"}


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({"tok_embeddings.weight": torch.zeros(3, 4)}, {}),
        (GOOD, {}),
        (GOOD, {**ABOUT, "table": "norm.weight"}),
        (GOOD, {**ABOUT, "table_rows": "many"}),
        ({**GOOD, "rows": torch.tensor([1, 2])}, ABOUT),
        ({**GOOD, "values": torch.zeros(3)}, ABOUT),
        ({**GOOD, "rows": torch.tensor([1, 2, 12])}, ABOUT),
        ({**GOOD, "rows": torch.tensor([-1, 2, 3])}, ABOUT),
        ({**GOOD, "values": torch.full((3, 4), torch.nan)}, ABOUT),
    ],
)
def test_what_is_no_such_file_says_what_it_is(
    tmp_path: Path, tensors: dict[str, Tensor], about: dict[str, str]
) -> None:
    save_file(tensors, tmp_path / "rows.safetensors", about)
    with pytest.raises(CheckpointMismatch, match=r"holds .*image rows are values \[K, D\]"):
        read_image_rows(tmp_path / "rows.safetensors")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.safetensors").write_bytes(image_rows().to_bytes()[:-5])
    with pytest.raises(NotACheckpoint, match="is cut off"):
        read_image_rows(tmp_path / "rows.safetensors")
