"""The trainings that the findings need."""

from __future__ import annotations

from itertools import product
from typing import Any

import paper
from study.runs import PARTS, distinct, image_only_runs, main_runs, variation_runs
from study.scales import MINIATURE, QUICK


def test_runs_that_findings_share_are_trained_once(material: Any) -> None:
    runs = distinct(run for finding in paper.FINDINGS for run in finding.runs(QUICK, material))
    names = [run.name for run in runs]
    assert len(names) == len(set(names))
    by_name = {run.name: run for run in runs}
    assert by_name["pretrained-0"].suites(0, "raw") == ["losses", "language", "floor", "alignment"]
    assert by_name["pretrained-0"].suites(QUICK.main.steps, "raw") == ["losses", "language", "images"]
    assert by_name["pretrained-0"].suites(0, "ema_0.5") == ["losses"]
    aligned = [f"aligned-{seed}" for seed in QUICK.seeds]
    assert [by_name[name].recipe.image_rows for name in aligned] == [*map(material.aligned_rows, QUICK.seeds)]
    assert by_name["aligned-0"].suites(0, "raw") == ["losses", "alignment"]


def test_both_starts_of_a_seed_see_the_same_batches(material: Any) -> None:
    recipes = {run.name: run.recipe for run in main_runs(MINIATURE, material)}
    assert len(recipes) == 6
    for seed in MINIATURE.seeds:
        pretrained, random = recipes[f"pretrained-{seed}"], recipes[f"random-{seed}"]
        assert pretrained.batch_seed == random.batch_seed == seed
        changed = {name for name, value in pretrained.to_json().items() if random.to_json()[name] != value}
        assert changed == {"name", "start", "model"}


def test_a_part_tuned_alone_differs_from_the_whole_by_that_part(material: Any) -> None:
    recipes = {run.name: run.recipe for run in image_only_runs(MINIATURE, material)}
    assert len(recipes) == 3 * (2 + len(PARTS))
    for seed, part in product(MINIATURE.seeds, PARTS):
        whole, tuned = recipes[f"images-pretrained-{seed}"], recipes[f"images-{part}-{seed}"]
        changed = {name for name, value in whole.to_json().items() if tuned.to_json()[name] != value}
        assert changed == {"name", "tuned"}


def test_every_setting_has_a_pair_of_each_seed(material: Any) -> None:
    recipes = {run.name: run.recipe for run in variation_runs(MINIATURE, material)}
    assert len(recipes) == 5 * 3 * 2
    for seed in MINIATURE.seeds:
        assert recipes[f"batch-2-pretrained-{seed}"].batch_seed == seed
        assert recipes[f"batch-2-random-{seed}"].batch == 64
