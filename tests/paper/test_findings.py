"""The paper's findings: gaps and their intervals, verdicts, figures, the page, and the independent check."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def material(tmp_path: Path) -> Any:
    from material import miniature_material

    return miniature_material(tmp_path, whole=False)


def difference(values: list[float], reach: float = 0.05) -> Any:
    """Return the curve of differences of one seed, with intervals of the same width."""
    from evalsvc.spec.documents.comparisons import DifferenceCurve

    count = len(values)
    return DifferenceCurve(
        metric="pairs/image",
        task="pairs",
        unit="nats/token",
        direction="lower",
        protocol="0" * 16,
        differs={},
        step_level=0.95,
        simultaneous_level=0.95,
        x=[0, 10, 100][:count],
        a=[2.0] * count,
        a_stderr=[0.1] * count,
        b=[2.0 + value for value in values],
        b_stderr=[0.1] * count,
        difference=list(values),
        stderr=[reach / 2] * count,
        low=[value - reach for value in values],
        high=[value + reach for value in values],
        verdict=["indistinguishable"] * count,
        basis=["paired"] * count,
        n=[300] * count,
        groups=[None] * count,
        n_only_a=[0] * count,
        n_only_b=[0] * count,
        first_indistinguishable=None,
        indistinguishable_from=None,
        first_apart=None,
        apart_from=None,
        sign_changes=[],
    )


def test_an_interval_between_seeds_is_students() -> None:
    """t of 2 degrees of freedom is 4.3027 for 95 %; mean 2, deviation 1, n = 3."""
    from measured import over_seeds

    estimate = over_seeds([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.deviation == 1.0
    assert estimate.high == pytest.approx(2 + 4.3027 / 3**0.5, rel=1e-4)
    assert estimate.low == pytest.approx(2 - 4.3027 / 3**0.5, rel=1e-4)


def test_one_seed_has_no_interval_between_seeds() -> None:
    from measured import over_seeds

    estimate = over_seeds([1.5])
    assert (estimate.value, estimate.low, estimate.deviation) == (1.5, None, None)


def test_a_gap_rests_on_the_spread_between_seeds() -> None:
    """At step 100 each seed's items exclude zero, and the seeds contradict each other: nothing is shown."""
    from gaps import GapCurve

    gap = GapCurve("pairs/image", [difference([-3.0, -0.5, 0.1]), difference([-3.1, -0.4, -0.1])])
    assert [estimate.covers_zero for estimate in gap.estimates] == [False, True, True]
    assert gap.closed_from() == 10
    assert gap.item_errors == [0.025] * 3
    assert "from step 10 on" in gap.sentence()


def test_a_gap_of_one_seed_has_the_interval_of_its_items() -> None:
    from fig_3 import verdict
    from gaps import GapCurve

    gap = GapCurve("pairs/image", [difference([-3.0, 0.02, -0.2])])
    assert gap.last.low == pytest.approx(-0.25)
    assert gap.closed_from() is None, "zero is left again after step 10"
    assert verdict(gap) == "in part"
    assert verdict(GapCurve("pairs/image", [difference([-1.0, -1.0, -0.9])])) == "no"
    assert verdict(GapCurve("pairs/image", [difference([-1.0, -1.0, 0.01])])) == "yes"
    assert verdict(GapCurve("pairs/image", [difference([-0.2, -1.0, 0.01])])) == "in part", "as wide as the first gap"


def accuracies(chance: float, *shares: float, n: int = 300) -> Any:
    """Return the curve of an accuracy at the steps 0, 10, 20, …, each of `n` questions."""
    from measured import Estimate, plain_curve

    rows = [(10 * place, Estimate(share, None, None)) for place, share in enumerate(shares)]
    curve = plain_curve("pretrained", "cloze/acc", "fraction", rows)
    points = [replace(point, n=n, stderr=(point.value * (1 - point.value) / (n - 1)) ** 0.5) for point in curve.points]
    return replace(curve, baseline=chance, points=points)


def test_forgetting_begins_where_chance_stays_in_the_interval() -> None:
    from table_1 import forgotten_from

    assert forgotten_from(accuracies(0.25, 0.8, 0.28, 0.26)) == 10
    assert forgotten_from(accuracies(0.25, 0.8, 0.24, 0.5, 0.26)) == 30, "a step above chance in between"
    assert forgotten_from(accuracies(0.1, 0.8, 0.3, 0.26)) is None


def test_a_benchmark_that_was_never_known_shows_no_forgetting() -> None:
    from table_1 import agrees

    assert agrees([0, 20]) == "yes"
    assert agrees([0, 20, None]) == "in part"
    assert agrees([0, None]) == "no"
    assert agrees([0, 0]) == "not measured"


def test_a_share_of_right_answers_stays_below_one() -> None:
    from measured import of_share

    share = of_share(accuracies(0.25, 0.96, n=24).points[0])
    assert share.value == 0.96
    assert share.low is not None
    assert share.high is not None
    assert share.low < 0.96 < share.high < 1


def test_a_wide_interval_of_a_fid_is_no_agreement() -> None:
    from fid import agrees
    from measured import Estimate

    assert agrees(Estimate(0.01, -0.02, 0.04), 0.1) == "yes"
    assert agrees(Estimate(0.01, -0.09, 0.11), 0.1) == "in part"
    assert agrees(Estimate(0.03, 0.01, 0.05), 0.1) == "no"


def test_runs_that_findings_share_are_trained_once(material: Any) -> None:
    import paper
    from runs import distinct
    from scales import QUICK

    runs = distinct(run for finding in paper.FINDINGS for run in finding.runs(QUICK, material))
    names = [run.name for run in runs]
    assert len(names) == len(set(names))
    by_name = {run.name: run for run in runs}
    assert by_name["pretrained-0"].suites(0, "raw") == ["losses", "language", "alignment"]
    assert by_name["pretrained-0"].suites(QUICK.main.steps, "raw") == ["losses", "language", "images"]
    assert by_name["pretrained-0"].suites(0, "ema_0.5") == ["losses"]
    assert names[-1] == "aligned-0", "its image rows come out of another run"
    assert by_name["aligned-0"].recipe.image_rows == material.aligned_rows("pretrained-0")


def test_both_starts_of_a_seed_see_the_same_batches(material: Any) -> None:
    from runs import main_runs
    from scales import MINIATURE

    recipes = {run.name: run.recipe for run in main_runs(MINIATURE, material)}
    assert len(recipes) == 6
    for seed in (0, 1, 2):
        pretrained, random = recipes[f"pretrained-{seed}"], recipes[f"random-{seed}"]
        assert pretrained.batch_seed == random.batch_seed == seed
        changed = {name for name, value in pretrained.to_json().items() if random.to_json()[name] != value}
        assert changed == {"name", "start", "model"}


def test_all_findings_fit_into_their_time(material: Any) -> None:
    import paper
    from computing import estimated_minutes
    from runs import distinct
    from scales import MINIATURE, QUICK

    def minutes(scale: Any) -> float:
        return sum(
            estimated_minutes(
                scale, distinct(run for finding in paper.FINDINGS for run in finding.runs(scale, material))
            )
        )

    assert minutes(MINIATURE) < 100
    assert minutes(QUICK) < 4


def test_suites_of_the_findings_are_valid(material: Any, tmp_path: Path) -> None:
    from scales import MINIATURE, QUICK
    from suites import suites

    from evalsvc.spec.suite import parse_suite

    for scale in (MINIATURE, QUICK):
        for name, content in suites(scale, material).items():
            assert parse_suite(dict(content), name).tasks


def test_the_text_base_has_the_shipped_rows_of_text_alone(material: Any) -> None:
    from evalsvc.miniature import ROOT as MINIATURE
    from evalsvc.models import load_model

    narrow = load_model(material.start)
    wide = load_model(MINIATURE / "runs" / "pretrained" / "checkpoints" / "epoch_0.pt")
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(tensor, wide.state_dict()[name][: len(tensor)])
    assert len(narrow.state_dict()["output.weight"]) == 512


def test_the_plain_model_of_the_check_is_the_transformer() -> None:
    """The check shares no code with evalsvc, so that both would have to be wrong in the same way."""
    from plain_model import PlainModel

    from evalsvc.miniature import ROOT as MINIATURE
    from evalsvc.models import load_model

    run = MINIATURE / "runs" / "pretrained"
    checkpoint = run / "checkpoints" / "epoch_3.pt"
    ids = list(range(3, 120, 2))
    plain = PlainModel(checkpoint, run / "open_lm_miniature.json").losses(ids)
    with torch.inference_mode():
        logits = load_model(checkpoint)(torch.tensor([ids[:-1]])).double()[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    assert torch.allclose(plain, expected, atol=2e-5)


def test_the_plain_sequences_of_the_check_are_the_layouts() -> None:
    import yaml
    from check import sequence

    from evalsvc.miniature import ROOT as MINIATURE
    from evalsvc.spec.layout import parse_layout

    path = MINIATURE / "runs" / "layout.yaml"
    plain, layout = yaml.safe_load(path.read_text()), parse_layout(str(path)).resolve(583)
    assert sequence(plain, [5, 6], [0, 63]) == layout.sequence([5, 6], [0, 63]).ids
    assert sequence(plain, [5, 6], None) == layout.sequence([5, 6], None).ids


def test_the_paired_error_of_the_check_is_that_of_the_metrics() -> None:
    from check import mean, paired_error

    from evalsvc.metrics.ratio import ratio_of_sums

    before = [(10.0, 5), (12.0, 4), (9.0, 6), (20.0, 9)]
    after = [(11.0, 5), (11.5, 4), (10.0, 6), (19.0, 9)]
    counts = [row[1] for row in before]
    moved = ratio_of_sums([b[0] - a[0] for a, b in zip(before, after, strict=True)], counts)
    assert moved is not None
    assert moved.stderr == pytest.approx(paired_error(before, after))
    assert moved.value == pytest.approx(mean(after) - mean(before))


def results(scale: str, agrees: str) -> dict[str, Any]:
    row = {"paper": "the same", "here": "0.1 | 0.2", "agrees": agrees, "limits": "small"}
    content = {"title": "Figure 3", "row": row, "figures": [{"name": "fig_3", "title": "Gap"}], "tables": ["| a |"]}
    return {"scale": scale, "seconds": 600, "cores": 2, "findings": {"fig_3": content}}


def test_a_page_keeps_the_parts_of_other_scales(tmp_path: Path) -> None:
    from page import write_page

    (tmp_path / "fig_3.svg").write_text("<svg/>")
    page = tmp_path / "docs" / "paper.md"
    page.parent.mkdir()
    write_page(page, results("miniature", "yes"), tmp_path)
    write_page(page, results("real", "in part"), tmp_path)
    write_page(page, results("miniature", "no"), tmp_path)
    text = page.read_text()
    assert text.count("## In miniature") == text.count("## On a real language model") == 1
    assert "| no |" in text
    assert "| in part |" in text
    assert "| yes |" not in text
    assert "0.1 \\| 0.2" in text, "a bar would end the cell"
    assert (page.parent / "images/paper/real/fig_3.svg").exists()
    assert "](images/paper/real/fig_3.svg)" in text


def test_dots_have_their_intervals_and_lines() -> None:
    from dot_chart import Dot, dot_chart
    from measured import Estimate

    from evalsvc.web.curves import Line

    dots = [Dot("seed 0", "random", Estimate(1.0, 0.5, 1.5)), Dot("seed 1", "pre-trained", Estimate(2.0, None, None))]
    spec = dot_chart(dots, "fid64", [Line(0.0, "no difference")])
    datasets = spec["datasets"]
    assert isinstance(datasets, dict)
    assert datasets["points"][0] == {"label": "seed 0", "group": "random", "x": 1.0, "low": 0.5, "high": 1.5}
    assert "seed 0 1 (0.5 to 1.5)" in str(spec["description"])


def test_completions_cannot_break_a_table() -> None:
    from table_1 import one_line

    assert one_line("a\nb|c`d\x1b[0m") == "a⏎b¦cˋd�[0m"
    assert one_line("") == " "


def test_nearest_tokens_are_read_from_the_page_of_the_task() -> None:
    from fig_7 import nearest_of

    page = (
        "nearest text tokens of the 2 most frequent of 2 image tokens\n"
        "by the cosine of the rows, and of the rows less the mean of their kind (centred)\n\n"
        "‹image 29›  in 24 images\n  rows    ‹a› 0.38\n  centred ‹b› 0.36\n\n"
        "‹image 3›  in 2 images\n  rows    ‹c› 0.1\n  centred ‹c› 0.1\n"
    )
    assert nearest_of(page) == {"‹image 29›": "‹a› 0.38", "‹image 3›": "‹c› 0.1"}


def test_published_values_name_source_and_family() -> None:
    from fig_1 import PROTOCOL, PUBLISHED

    assert len({value.run for value in PUBLISHED}) == len(PUBLISHED)
    assert all("arXiv" in value.source for value in PUBLISHED)
    assert {"auto-regressive", "diffusion"} < {value.family for value in PUBLISHED}
    assert {value.fid for value in PUBLISHED if "2311.16201" in value.source} == {12.21, 12.27}
    assert "30,000" in PROTOCOL


def modules() -> list[ModuleType]:
    import paper

    return [module for name, module in vars(paper).items() if hasattr(module, "FINDING")]


def test_every_finding_says_how_it_is_run_alone() -> None:
    for module in modules():
        assert f"benchmarks/paper/{module.FINDING.name}.py --work DIR" in str(module.__doc__)


def test_a_work_folder_has_one_computation_at_a_time(material: Any, tmp_path: Path) -> None:
    """Two services on one database, or two trainings in one folder, would end each other much later."""
    from computing import Computation
    from scales import QUICK

    computation = Computation(QUICK, tmp_path, material)
    with computation._claimed(), pytest.raises(SystemExit, match=f"another computation runs in {tmp_path}"):
        computation.compute([])
    with computation._claimed():
        pass


@dataclass
class PostedTo:
    """The two methods of the client that a pool posts with; every evaluation of a checkpoint at step 2 had failed."""

    posts: list[tuple[str, int, str, list[str]]] = field(default_factory=list)
    retried: list[int] = field(default_factory=list)

    def submit(self, run: str, step: int, uri: str, *, variant: str, suites: list[str], layout: str) -> SimpleNamespace:
        self.posts.append((run, step, variant, suites))
        state = "failed" if step == 2 else "queued"
        return SimpleNamespace(evaluations=[SimpleNamespace(id=10 * step + i, state=state) for i in range(len(suites))])

    def retry(self, evaluation: int) -> None:
        self.retried.append(evaluation)


def test_a_pool_posts_each_checkpoint_once_and_retries_what_had_failed(
    material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training_pool
    from checkpoint_files import Saved
    from runs import main_runs
    from scales import QUICK

    saved = [Saved(0, "raw", tmp_path / "a"), Saved(2, "ema_0.5", tmp_path / "b"), Saved(6, "raw", tmp_path / "c")]
    monkeypatch.setattr(training_pool, "saved_checkpoints", lambda folder: saved)
    client: Any = PostedTo()
    pool = training_pool.Pool(client, QUICK, material.layout, tmp_path)
    run = main_runs(QUICK, material)[0]
    pool._post(run)
    pool._post(run)
    assert client.posts == [
        ("pretrained-0", 0, "raw", ["paper-losses", "paper-language"]),
        ("pretrained-0", 2, "ema_0.5", ["paper-losses"]),
        ("pretrained-0", 6, "raw", ["paper-losses", "paper-language", "paper-images"]),
    ]
    assert client.retried == [20]
    assert set(pool.evaluations.values()) == {"pretrained-0@0", "pretrained-0@2:ema_0.5", "pretrained-0@6"}


def test_a_training_that_fails_ends_the_pool_with_its_log(
    material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training_pool
    from runs import main_runs, training_folder
    from scales import QUICK

    class Ended:
        stdin = None

        def poll(self) -> int:
            return 3

        def terminate(self) -> None: ...

        def wait(self) -> int:
            return 3

    def start(command: list[str], log: Path, environment: object) -> Ended:
        log.write_text("the loss is nan at step 4")
        return Ended()

    monkeypatch.setattr(training_pool, "start_guarded", start)
    client: Any = PostedTo()
    pool = training_pool.Pool(client, QUICK, material.layout, tmp_path)
    with pytest.raises(SystemExit, match=r"pretrained-0 ended with the exit code 3.*\n.*the loss is nan at step 4"):
        pool.train(main_runs(QUICK, material)[:1], lambda run: None)
    assert not (training_folder(tmp_path, "pretrained-0") / training_pool.DONE).exists()
