"""Where the loss is: against each target's loss computed alone, over any shards, and as what an evaluation leaves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_task import LAYOUT, RECORDS, context_of, evaluate, loss_of, loss_profile, slow_targets, values, write
from miniature_run import pretrained

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.data.tokens import read_tokens
from evalsvc.errors import InternalError, InvalidData, OutOfMemory
from evalsvc.metrics.entropy import UnigramLoss
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.token_loss import TokenLosses
from evalsvc.miniature import ROOT
from evalsvc.models import Transformer
from evalsvc.models.loading import load_model
from evalsvc.spec.layout import parse_layout
from evalsvc.tasks.loss import teacher_forcing
from evalsvc.tasks.loss.profile import MAX_CELLS, Profile, add_up, find_grid, profile_artifact, require_identity
from evalsvc.tasks.loss.teacher_forcing import ModelEvidence, ProfileSums
from evalsvc.tasks.sequence_groups import group_of_each
from evalsvc.web.panels.loss_map import LossProfile

GRIDDED: list[dict[str, Any]] = [
    {"text_ids": [5, 6, 7, 79], "image_codes": [0, 15, 3, 3, 8, 9]},
    {"text_ids": [1, 2]},
    {"image_codes": [4, 5, 6, 7, 7, 7]},
    {"text_ids": [*range(20, 40)], "image_codes": [1, 1, 2, 2, 3, 3]},
    {"text_ids": [index * 7 % 80 for index in range(300)], "image_codes": [9, 8, 7, 6, 5, 4]},
]

GROUPED = [
    *GRIDDED,
    {"text_ids": [9, 8], "image_codes": [0, 15, 3, 3, 8, 9]},
    {"text_ids": [1, 2]},
    {"text_ids": [5, 6, 7], "image_codes": [1, 1, 2, 2, 3, 3]},
    {"text_ids": [4] * 40, "image_codes": [0, 15, 3, 3, 8, 9]},
]
"""Three captions of the first image and two of another, far from each other, and one text twice."""


def slow_profile(
    checkpoint: CheckpointRef, records: list[dict[str, Any]], columns: int | None, layout: Any = LAYOUT
) -> dict[str, dict[int, dict[str, Any]]]:
    """The definition: by group and bin the sums of each sequence over its targets, and their ratio."""
    model = load_model(checkpoint.path)
    sums: dict[tuple[str, int], dict[int, list[float]]] = {}
    for owner, record in enumerate(records):
        for kind, place, nll, within, _ in slow_targets(model, record, False, layout):
            bins = [(f"{kind}_position", place if place < 128 else 128 << (place // 128).bit_length() - 1)]
            if kind == "image" and columns is not None:
                bins = [("image_row", place // columns), ("image_column", place % columns), ("image_cell", place)]
            for key in bins if kind != "special" else ():
                total = sums.setdefault(key, {}).setdefault(owner, [0.0, 0.0, 0.0])
                total[:] = map(sum, zip(total, (1, nll, within), strict=True))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for (group, start), owners in sums.items():
        count, nll_sum, within_sum = zip(*owners.values(), strict=True)
        of_images = group_of_each(str(record.get("image_codes") or record.get("text_ids")) for record in records)
        groups = [owner if of_images is None else of_images[owner] for owner in owners]
        loss, inside = ratio_of_sums(nll_sum, count, groups), ratio_of_sums(within_sum, count, groups)
        row = {"sequences": len(owners), "independent": len(set(groups)), "tokens": sum(count)}
        errors = {"loss_stderr": loss.stderr, "within_stderr": inside.stderr}
        found.setdefault(group, {})[start] = row | {"loss": loss.value, "within": inside.value} | errors
    return found


def check_rows(found: dict[str, Any], expected: dict[str, dict[int, dict[str, Any]]]) -> None:
    for group, bins in expected.items():
        assert found[group]["start"] == sorted(bins)
        names = [name for name in found[group] if name not in ("start", "stop")]
        for start, *numbers in zip(found[group]["start"], *(found[group][name] for name in names), strict=True):
            # An error is None where there is one sequence.
            sides = numbers, [bins[start][name] for name in names]
            row, right = ([-1 if number is None else number for number in side] for side in sides)
            assert row == pytest.approx(right, rel=2e-5, abs=1e-6), (group, start)


@pytest.mark.parametrize(("batch_tokens", "shards"), [(8192, None), (1, 1), (70, 3), (8192, 5)])
@pytest.mark.parametrize(
    ("records", "columns"), [(GRIDDED, 3), (GRIDDED, None), (RECORDS, None), (GROUPED, 3), (GROUPED, None)]
)
def test_equals_the_definition(
    checkpoint: CheckpointRef, tmp_path: Path, records: Any, columns: int | None, batch_tokens: int, shards: int | None
) -> None:
    """Neither batch nor shard moves a bin, single or wide, and a sequence of two tokens in one is one sequence.

    Nor do they part the sequences of a group, whose losses are added up before they are squared.
    """
    task = loss_of(write(tmp_path / "data.jsonl", records), shards=shards, image_columns=columns)
    found = loss_profile(evaluate(task, checkpoint, batch_tokens))
    expected = slow_profile(checkpoint, records, columns)
    assert {name for name in found if "_" in name} == set(expected)
    assert found["grid"] == ([2, 3] if columns else None)
    check_rows(found, expected)
    if records is not RECORDS:
        assert (found["text_position"]["start"][-2:], found["text_position"]["stop"][-2:]) == ([128, 256], [256, 512])


def test_an_image_that_begins_a_sequence_lacks_its_first_code(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    layout = {"text": {"size": 80}, "image": {"offset": 96, "size": 16}, "template": ["IMAGE", "TEXT"]}
    records = [{"text_ids": [5, 6], "image_codes": [1, 2, 3, 4]}, {"text_ids": [7], "image_codes": [4, 3, 2, 1]}]
    reference = CheckpointRef(checkpoint.path, layout=layout)
    found = loss_profile(evaluate(loss_of(write(tmp_path / "d.jsonl", records)), reference))
    assert (found["image_cell"]["start"], found["image_row"]["tokens"]) == ([1, 2, 3], [2, 4])
    check_rows(found, slow_profile(reference, records, 2, layout))


LAYOUT_OF_SUMS = parse_layout({"text": {"size": 80}, "image": {"offset": 96, "size": 16}}).resolve(112)

Made = list[tuple[list[int], torch.Tensor]]


def made_up() -> Made:
    """Ids and losses of 40 sequences with 4 x 4 codes, without a model."""
    generator, made = torch.Generator().manual_seed(0), []
    for index in range(40):
        ids = LAYOUT_OF_SUMS.sequence([7] * (1 + index % 5), [3] * 16).ids
        made.append((ids, torch.rand(len(ids) - 1, generator=generator) * 9))
    return made


def add(sums: ProfileSums, ids: list[int], losses: torch.Tensor, *row: int) -> None:
    mask = torch.ones(1, len(losses), dtype=torch.bool)
    sums.add(torch.tensor([ids]), mask, TokenLosses(losses, losses / 2, losses), row)


def profile_of(made: Made, grid: tuple[int, int]) -> Profile:
    sums = ProfileSums(LAYOUT_OF_SUMS, grid)
    for ids, losses in made:
        add(sums, ids, losses)
    return add_up([sums.columns()])


@pytest.mark.parametrize(("tokens", "most"), [(1, 4096), (60, 4096), (1 << 18, 2), (1 << 18, 4096)])
def test_groups_are_whole_however_few_are_held(tokens: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of all groups at a time would not fit in memory; those of a part are added up when it is complete."""
    monkeypatch.setattr(teacher_forcing, "SPAN_TOKENS", tokens)
    monkeypatch.setattr(teacher_forcing, "SPAN_GROUPS", most)
    made, spans = made_up(), []
    groups = [index - index % 5 if index > 9 else index for index in range(40)]
    sums = ProfileSums(LAYOUT_OF_SUMS, (4, 4), groups)
    for start, stop in sums.spans([len(ids) for ids, _ in made]):
        spans.append((start, stop))
        for index in reversed(range(start, stop)):
            add(sums, *made[index], index)
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert (len(spans) > 3) == (min(tokens, most) < 100)
    by_cell: list[dict[int, float]] = [{} for _ in range(16)]
    for group, (_, losses) in zip(groups, made, strict=True):
        for cell, loss in enumerate(losses[-16:].tolist()):
            by_cell[cell][group] = by_cell[cell].get(group, 0.0) + loss
    for one, totals in zip(add_up([sums.columns()])["image_cell"], by_cell, strict=True):
        expected = ratio_of_sums(list(totals.values()), [groups.count(group) for group in totals])
        assert (one.loss.value, one.loss.stderr) == pytest.approx((expected.value, expected.stderr), rel=1e-6)
        assert (one.loss.n, one.loss.groups, one.tokens) == (40, 16, 40)


def test_a_profile_that_does_not_add_up_is_a_bug() -> None:
    made = made_up()
    profile = profile_of(made, (4, 4))
    total = math.fsum(float(losses[-16:].double().sum()) for _, losses in made)
    sums = {"nll_image": [total], "within_image": [total / 2], "n_image": [640]}
    images = {group: bins for group, bins in profile.items() if group.startswith("image")}
    require_identity(images, sums)
    for name, wrong in (("nll_image", total * (1 + 1e-8)), ("within_image", total), ("n_image", 639)):
        with pytest.raises(InternalError, match=r"by image_row adds up to .* this is a bug in evalsvc"):
            require_identity(images, sums | {name: [wrong]})


@pytest.mark.parametrize(
    ("counts", "columns", "grid", "reason"),
    [
        ({64}, None, (8, 8), None),
        ({1}, None, (1, 1), None),
        ({12}, 3, (4, 3), None),
        ({12}, None, None, "images have 12 codes, which is not a square number; set image_columns"),
        ({16, 64}, None, None, "images have 16 to 64 codes"),
        ({16, 64}, 4, None, "images have 16 to 64 codes"),
        ({2 * MAX_CELLS}, 128, None, "images have 32,768 codes, but a grid has at most 16,384"),
        (set(), None, None, None),
    ],
)
def test_the_grid(counts: set[int], columns: int | None, grid: tuple[int, int] | None, reason: str | None) -> None:
    assert find_grid(counts, columns, "data.jsonl") == (grid, reason)
    with pytest.raises(InvalidData, match=r"pairs\.jsonl has an image of 10 codes, which is not a multiple of"):
        find_grid({8, 10}, 4, "pairs.jsonl")


def test_bins_of_a_profile_as_metrics(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """What is left out of a name's order would stand between 1 and 2; another grid is another series."""
    path = write(tmp_path / "data.jsonl", GRIDDED)
    bare, plain = (evaluate(loss_of(path, profile=profile), checkpoint) for profile in (False, True))
    assert (bare.metrics, bare.items, bare.notes, bare.artifacts) == (plain.metrics, plain.items, plain.notes, [])
    groups = ("text_position", "image_row")
    result = evaluate(loss_of(path, image_columns=3, profile_metrics=groups), checkpoint)
    found, profile = values(result), loss_profile(result)
    series, before = ({name: value.protocol.id for name, value in values(one).items()} for one in (result, plain))
    assert series.items() >= before.items(), "the other series go on"
    bins = [f"text_position_{place:03}" for place in range(128)]
    wide = ["text_position_128_255", "text_position_256_511"]
    assert set(series) - set(before) == {*bins, *wide, "image_row_0", "image_row_1"}
    for name, group, index in (("image_row_1", "image_row", 1), ("text_position_128_255", "text_position", 128)):
        numbers = [profile[group][key][index] for key in ("loss", "loss_stderr", "sequences")]
        assert [found[name].value, found[name].stderr, found[name].n] == numbers
    assert found["image_row_0"].protocol.content == {**found["image"].protocol.content, "grid": [2, 3]}
    assert found["text_position_000"].protocol == found["text"].protocol


def test_the_largest_artifact_is_bounded_and_the_papers_is_small() -> None:
    """One per evaluation is kept; it must grow neither with the sequences nor without end with an image."""
    for side, most in ((32, 150_000), (128, 2_000_000)):
        ids = LAYOUT_OF_SUMS.sequence([7] * 5_000, [3] * side * side).ids
        losses = torch.rand(2, len(ids) - 1, generator=torch.Generator().manual_seed(0))
        artifact = profile_artifact(profile_of([(ids, row) for row in losses], (side, side)), (side, side), {}, {})
        assert len(artifact.content) < most
        assert len(json.loads(artifact.content)["text_position"]["start"]) == 127 + 6, "of 4,999 positions"


def test_a_profile_has_one_digest_in_whatever_order_the_database_keeps_keys() -> None:
    """PostgreSQL sorts the keys of JSON by their length, and the same evaluation left another file than on SQLite."""
    loss = UnigramLoss(1.0, None, 2, None, 9, 3, 0.0)
    ids, unigrams = {"text": 3, "image": 5}, {"text": {"unigram": loss, "by_place": loss}, "image": {}}
    others = {"image": 5, "text": 3}, {"image": {}, "text": {"by_place": loss, "unigram": loss}}
    assert profile_artifact({}, None, ids, unigrams).content == profile_artifact({}, None, *others).content


def test_a_map_is_drawn_from_the_profile() -> None:
    profile = profile_of([(LAYOUT_OF_SUMS.sequence([7], [3] * 6).ids, torch.arange(1.0, 7.0))], (2, 3))
    artifact = profile_artifact(profile, (2, 3), {}, {})
    cells = LossProfile.model_validate_json(artifact.content).losses
    assert cells == {(row, column): 1.0 + 3 * row + column for row in range(2) for column in range(3)}


PRETRAINED = parse_layout(str(ROOT / "runs/layout.yaml")).resolve(583)
RECORDS_READ = read_tokens(ROOT / "heldout_pairs.jsonl").records[:5]
SEQUENCES = [PRETRAINED.sequence(record.text_ids, record.image_codes).ids for record in RECORDS_READ]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(pretrained(5).path)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_masses_are_those_of_the_plain_logits(model: Transformer, batch_tokens: int) -> None:
    prefixes = [sequence[: 3 + 7 * index] for index, sequence in enumerate(SEQUENCES)]
    groups = [range(512), [577], [579, 582], []]
    found = ModelEvidence(context_of(pretrained(5), batch_tokens), model).next_log_masses(prefixes, groups)
    for prefix, row in zip(prefixes, found, strict=True):
        probabilities = model(torch.tensor([prefix]))[0, -1].double().softmax(-1)
        expected = [float(probabilities[list(group)].sum().log()) for group in groups]
        assert row == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("error", "told", "words"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "lower EVALSVC_BATCH_TOKENS"),
        (ValueError("broken"), ValueError, "broken"),
    ],
)
def test_memory_that_ran_out_is_told(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception], words: str
) -> None:
    """Whoever asks for a layout on a small card shall read what to do, and no traceback."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(model, "hidden", fail)
    evidence = ModelEvidence(context_of(pretrained(5)), model)
    with pytest.raises(told, match=words):
        evidence.sums(PRETRAINED, SEQUENCES)
    with pytest.raises(told, match=words):
        evidence.next_log_masses([[1]], [[1]])
