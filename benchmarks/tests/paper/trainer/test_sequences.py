"""The batches of a training: what they hold, and that their order depends on the seed alone."""

import gzip
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainings import CODES, IMAGES, ROWS, TEXT_ROWS, pairs, replay, tiny_recipe, write_lines
from trainer.recipe import Recipe
from trainer.sequences import IGNORED, Batch, Batches, open_batches, write_pool

from evalsvc.errors import InvalidData
from evalsvc.spec.layout import VocabularyLayout, parse_layout


def layout_of(recipe: Recipe) -> VocabularyLayout:
    return parse_layout(str(recipe.layout)).resolve(ROWS)


def opened(recipe: Recipe) -> Batches:
    return open_batches(recipe, layout_of(recipe))


def sequences(batch: Batch) -> list[list[int]]:
    """Return the rows of a batch as whole sequences."""
    return [
        [int(ids[0]), *(int(target) for target in targets if target != IGNORED)]
        for ids, targets in zip(batch.ids, batch.targets, strict=True)
    ]


def expected(recipe: Recipe, caption: bool = True) -> list[list[int]]:
    layout = layout_of(recipe)
    return [layout.sequence(pair["text_ids"] if caption else None, pair["image_codes"]).ids for pair in pairs()]


def drawn(recipe: Recipe, steps: int) -> list[list[int]]:
    batches = opened(recipe)
    return [sequence for step in range(steps) for sequence in sequences(batches.draw(step))]


def test_every_image_comes_once_in_each_round(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    rounds = drawn(recipe, 6)
    assert sorted(rounds[:IMAGES]) == sorted(rounds[IMAGES:]) == sorted(expected(recipe))
    assert rounds[:IMAGES] != rounds[IMAGES:], "in another order"


def test_the_order_depends_on_its_seed_alone(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, seed=1, order_seed=7)
    assert drawn(recipe, 4) == drawn(replace(recipe, seed=2), 4)
    assert drawn(recipe, 4) != drawn(replace(recipe, order_seed=8), 4)


def test_padding_predicts_nothing(tmp_path: Path) -> None:
    batch = opened(tiny_recipe(tmp_path, batch=12)).draw(0)
    lengths = (batch.targets != IGNORED).sum(1)
    assert len(set(lengths.tolist())) > 1
    assert batch.ids.shape[1] == int(lengths.max()), "as wide as the longest"
    assert torch.equal(
        batch.ids[:, 1:][batch.targets[:, 1:] != IGNORED], batch.targets[:, :-1][batch.targets[:, 1:] != IGNORED]
    )


def test_an_order_continues_where_its_state_was_taken(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(tmp_path, caption_drop=0.3), replay=replay(tmp_path, 0.3))
    batches = opened(recipe)
    for step in range(3):
        batches.draw(step)
    state = batches.state()
    rest = [sequences(batches.draw(step)) for step in range(3, 9)]
    resumed = opened(recipe)
    resumed.load(state)
    assert [sequences(resumed.draw(step)) for step in range(3, 9)] == rest


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5])
def test_the_share_of_plain_text_is_exact(tmp_path: Path, share: float) -> None:
    """Over any number of steps to less than one sequence, and never more than one apart between steps."""
    recipe = replace(tiny_recipe(tmp_path, batch=7), replay=replay(tmp_path, share))
    batches = opened(recipe)
    counts = []
    for step in range(60):
        batch = batches.draw(step)
        counts.append(batch.replay_rows.stop - batch.replay_rows.start)
        assert abs(sum(counts) - Fraction(repr(share)) * 7 * (step + 1)) < 1
        assert {int(row) for row in batch.targets[batch.replay_rows].flatten()} <= {*range(TEXT_ROWS), IGNORED}
    assert max(counts) - min(counts) <= 1


def test_text_windows_are_pieces_of_the_text(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, data=None, replay={"share": 1, "text": "text.jsonl", "length": 8})
    stream = [
        token for line in (tmp_path / "text.jsonl").read_text().splitlines() for token in json.loads(line)["text_ids"]
    ]
    pieces = {tuple(stream[start : start + 9]) for start in range(len(stream) - 8)}
    windows = drawn(recipe, 20)
    assert {tuple(window) for window in windows} <= pieces
    assert len({tuple(window) for window in windows}) > 40


def test_the_text_does_not_change_the_order_of_the_images(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(tmp_path), replay=replay(tmp_path, 0.5))
    longer = replace(recipe, replay=replace(replay(tmp_path, 0.5), length=12))

    def images(recipe: Recipe) -> list[list[int]]:
        batches = opened(recipe)
        return [sequence for step in range(5) for sequence in sequences(batches.draw(step))[:2]]

    assert images(recipe) == images(longer)


def test_images_without_captions(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, image_only=True)
    assert sorted(drawn(recipe, 3)) == sorted(expected(recipe, caption=False))


def test_captions_are_dropped_at_their_share(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, caption_drop=0.3)
    bare = {tuple(sequence) for sequence in expected(recipe, caption=False)}
    share = sum(tuple(sequence) in bare for sequence in drawn(recipe, 500)) / 2000
    assert share == pytest.approx(0.3, abs=0.04)


def test_a_pool_draws_variants_and_captions(tmp_path: Path) -> None:
    """All are drawn about equally often, and none belongs to another image."""
    codes = torch.arange(2 * 3 * 4).view(2, 3, 4) % CODES
    captions = [[[image, 1], [image, 2, 3]] for image in range(3)]
    write_pool(tmp_path / "pool.safetensors", codes, captions)
    recipe = tiny_recipe(tmp_path, data="pool.safetensors")
    layout = layout_of(recipe)
    possible = {
        tuple(layout.sequence(caption, grid[image].tolist()).ids)
        for image in range(3)
        for caption in captions[image]
        for grid in codes
    }
    counts = Counter(tuple(sequence) for sequence in drawn(recipe, 300))
    assert set(counts) == possible
    assert min(counts.values()) > 60


# shards


def write_shards(folder: Path, recipe: Recipe, sizes: tuple[int, ...], length: int = 24) -> None:
    """Write the pairs as `prepare_data.py` does, padded, with the pad written as open_lm's negative id."""
    folder.mkdir()
    rows = iter(expected(recipe))
    manifest = []
    for number, size in enumerate(sizes, 1):
        with tarfile.open(folder / f"{number:08}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for place in range(size):
                sequence = next(rows)
                content = gzip.compress(json.dumps(sequence + [-1] * (length - len(sequence))).encode(), mtime=0)
                member = tarfile.TarInfo(f"{number}-{place}.json.gz")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        manifest.append(json.dumps({"shard": f"{number:08}", "num_sequences": size}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(manifest))


def test_shards_hold_the_same_sequences_as_the_pairs(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    write_shards(tmp_path / "shards", recipe, (5, 5, 2))
    sharded = replace(recipe, data=tmp_path / "shards")
    rounds = drawn(sharded, 6)
    assert sorted(rounds[:IMAGES]) == sorted(rounds[IMAGES:]) == sorted(expected(recipe))
    bare = replace(sharded, image_only=True)
    assert sorted(drawn(bare, 3)) == sorted(expected(recipe, caption=False))


def test_a_shard_is_read_through_before_the_next(tmp_path: Path) -> None:
    """A training over terabytes holds one shard, and two where a batch goes over the edge."""
    recipe = tiny_recipe(tmp_path, batch=2)
    write_shards(tmp_path / "shards", recipe, (4, 4, 4))
    shard_of = {tuple(sequence): place // 4 for place, sequence in enumerate(expected(recipe))}
    order = [shard_of[tuple(sequence)] for sequence in drawn(replace(recipe, data=tmp_path / "shards"), 6)]
    assert sorted(order[::4]) == [0, 1, 2]
    assert order == [shard for shard in order[::4] for _ in range(4)]


def test_shards_that_were_prepared_with_another_layout_are_refused(tmp_path: Path) -> None:
    """Ids of a layout with the same rows in another order would be read as other tokens."""
    recipe = tiny_recipe(tmp_path)
    write_shards(tmp_path / "shards", recipe, (12,))
    sharded = replace(recipe, data=tmp_path / "shards")
    datasheet = tmp_path / "shards" / "prepare.json"
    datasheet.write_text(json.dumps({"settings": {"layout": layout_of(recipe).digest}}))
    opened(sharded)
    datasheet.write_text(json.dumps({"settings": {"layout": "0" * 64}}))
    with pytest.raises(InvalidData, match="was prepared with the layout 000000000000, the recipe's layout is"):
        opened(sharded)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prepare.json", "[]", "is no datasheet"),
        ("manifest.jsonl", "", "lists no shards"),
        ("manifest.jsonl", "[]", "is no manifest"),
        ("manifest.jsonl", '{"shard": "../00000001", "num_sequences": 12}', "lists no shards, or wrong ones"),
        ("manifest.jsonl", '{"shard": "00000001", "num_sequences": 11}', "has 12 sequences, manifest.jsonl says 11"),
        ("manifest.jsonl", '{"shard": "00000009", "num_sequences": 12}', "cannot be read"),
        ("00000001.tar", "no tar" * 1000, "is no tar file, or is cut off"),
    ],
)
def test_a_broken_folder_of_shards_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    recipe = tiny_recipe(tmp_path)
    write_shards(tmp_path / "shards", recipe, (12,))
    (tmp_path / "shards" / name).write_text(content)
    with pytest.raises(InvalidData, match=message):
        drawn(replace(recipe, data=tmp_path / "shards"), 1)


def test_sequences_of_another_layout_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    write_shards(tmp_path / "shards", recipe, (12,))
    small = VocabularyLayout.model_validate({"rows": 30, "text": {"size": 20}, "image": {"offset": 20, "size": 8}})
    with pytest.raises(InvalidData, match="is no list of rows of a table of 30 rows"):
        open_batches(replace(recipe, data=tmp_path / "shards"), small).draw(0)


def write_member(path: Path, member: tarfile.TarInfo, content: bytes) -> None:
    member.size = len(content)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(content))


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        (link("1.json.gz", "/etc/passwd", tarfile.SYMTYPE), b"", "shards have files named KEY.json.gz only"),
        (link("1.json.gz", "2.json.gz", tarfile.LNKTYPE), b"", "shards have files named KEY.json.gz only"),
        (tarfile.TarInfo("1.txt"), b"[1]", "shards have files named KEY.json.gz only"),
        (tarfile.TarInfo("1.json.gz"), b"[1, 2]", "cannot be read"),
        (tarfile.TarInfo("1.json.gz"), gzip.compress(b"[1, 2]")[:-9], "cannot be read"),
        (tarfile.TarInfo("1.json.gz"), b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 50, "cannot be read"),
        (tarfile.TarInfo("1.json.gz"), gzip.compress(b"[" + b"1," * 3_000_000 + b"1]"), "is no list of rows"),
        (tarfile.TarInfo("1.json.gz"), gzip.compress(b"[" * 100_000), "is no list of rows"),
        (tarfile.TarInfo("1.json.gz"), gzip.compress(b"[1, true]"), "is no list of rows"),
        (tarfile.TarInfo("1.json.gz"), gzip.compress(b"[1, 35]"), "is no list of rows"),
    ],
    # Names of their own: a gzip file has its time, and every process of a run must collect the same names.
    ids=["symlink", "hard-link", "text", "no-gzip", "cut", "corrupt", "long", "deep", "bool", "row"],
)
def test_a_hostile_shard_is_refused(tmp_path: Path, member: tarfile.TarInfo, content: bytes, message: str) -> None:
    """Nothing in a shard leads out of it, takes much memory, or ends in a traceback."""
    recipe = tiny_recipe(tmp_path, data="shards")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.jsonl").write_text('{"shard": "00000001", "num_sequences": 1}\n')
    write_member(tmp_path / "shards" / "00000001.tar", member, content)
    with pytest.raises(InvalidData, match=message):
        drawn(recipe, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_ids": [TEXT_ROWS], "image_codes": [0]}, "pairs.jsonl, record 1 .*text id"),
        ({"text_ids": [0], "image_codes": [CODES]}, "pairs.jsonl, record 1 .*image code"),
    ],
)
def test_a_record_that_does_not_fit_the_layout_is_named(tmp_path: Path, change: Any, message: str) -> None:
    recipe = tiny_recipe(tmp_path)
    write_lines(tmp_path / "pairs.jsonl", [change])
    with pytest.raises(InvalidData, match=message):
        drawn(recipe, 1)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, replay={"share": 0.5, "text": "text.jsonl", "length": 500})
    with pytest.raises(InvalidData, match="has 120 tokens, a window needs 501"):
        opened(recipe)


def test_a_pool_of_other_shapes_is_refused(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.safetensors", torch.zeros(2, 3, 4, dtype=torch.int64), [[[1]], [[2]]])
    with pytest.raises(InvalidData, match="give as many captions as images"):
        opened(tiny_recipe(tmp_path, data="pool.safetensors"))
