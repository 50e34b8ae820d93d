"""The page that compares two checkpoints or two runs."""

from typing import Any

import pytest
from app_in_process import App
from compared_runs import put
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.protocol import Protocol
from evalsvc.web.formats import number
from evalsvc.web.page import Surroundings, html_of
from evalsvc.web.pages.compare import ComparePage


@pytest.fixture(autouse=True)
def _two_runs(app: App) -> None:
    for seed, step in enumerate((0, 25, 50)):
        put(app.store, "run-a", step, seed, 0.7)
        put(app.store, "run-b", step, seed + 3, 0.3)


def page(client: Client, **query: Any) -> str:
    content = ComparePage(**query).content(client)
    return html_of("compare.html", content, Surroundings(None, "http://evalsvc"))


def test_two_checkpoints_have_the_verdicts_of_rest(client: Client) -> None:
    compared = client.compare("run-a@0", "run-b@0")
    assert ComparePage(a="run-a@0", b="run-b@0").content(client).values["rows"] == compared.contrasts
    shown = page(client, a="run-a@0", b="run-b@0")
    worse = sum(row.verdict == "worse" for row in compared.contrasts)
    assert worse
    assert f'<strong class="worse">{worse} worse</strong>' in shown
    for row in compared.contrasts:
        assert " … ".join(number(end, row.stderr) for end in (row.interval.low, row.interval.high)) in shown
    (accuracy,) = [row for row in compared.contrasts if row.metric == "arc/acc"]
    assert f">{accuracy.answers.only_a} / {accuracy.answers.only_b}</td>" in shown
    assert "by chance alone" in shown
    holm = page(client, a="run-a@0", b="run-b@0", family="holm")
    assert 'href="/compare?a=run-b%400&amp;b=run-a%400&amp;family=holm"' in holm, "sides are swapped by a link"
    assert "judged together by Holm" in holm


def test_the_sentence_counts_the_rows_of_the_table(app: App, client: Client) -> None:
    """A perplexity has the verdict of its loss: counted as well, it made two verdicts out of one."""
    for step, loss in ((0, 1.0), (25, 2.0)):
        enter(app.store, submission(step, run="run-c"), suite())
        evaluate_whole(app.store, metric(loss), metric(loss, "loss/text_perplexity"))
    content = ComparePage(a="run-c@0", b="run-c@25").content(client)
    assert [row.metric for row in content.values["rows"]] == ["loss/text"]
    assert content.values["counts"] == [("worse", 1)]
    assert client.compare("run-c@0", "run-c@25").judged == 1, "as the note below the sentence counts"


def test_other_protocols_are_told_field_by_field(app: App, client: Client) -> None:
    for step, limit in ((0, 1), (25, 2)):
        enter(app.store, submission(step, run="run-c"), suite())
        image = Protocol({"limit": limit, "data": f"{limit}" * 64})
        evaluate_whole(app.store, metric(1.0), metric(2.0, "loss/image", protocol=image))
    content = ComparePage(a="run-c@0", b="run-c@25").content(client)
    ((metrics, fields),) = content.values["other_protocols"]
    assert metrics == ["loss/image"]
    values = [(name, a, b) for name, a, _, b, _ in fields]
    assert values == [("limit", "1", "2"), ("data", f'"{"1" * 15}…', f'"{"2" * 15}…')]
    assert [file for _, _, file, _, _ in fields] == ["", "/data.jsonl"], "the digest is of a file of the suite"
    assert "Not compared: loss/image" in page(client, a="run-c@0", b="run-c@25")


def test_two_runs_say_where_they_enter_and_leave_the_noise(client: Client) -> None:
    compared = client.compare_runs("run-a", "run-b", ["arc/acc"])
    (curve,) = compared.curves
    content = ComparePage(a="run-a", b="run-b", metric=("arc/acc",)).content(client)
    assert content.values["curves"] == compared
    shown = page(client, a="run-a", b="run-b", metric=("arc/acc",))
    if curve.apart_from is not None:
        assert f">step {curve.apart_from}</td>" in shown
    if curve.indistinguishable_from is not None:
        assert f"{curve.largest_not_excluded:.5g} not excluded" in shown
    assert "piqa/acc</option>" in shown, "other metrics can be chosen"
    assert len(ComparePage(a="run-a", b="run-b").content(client).values["panels"]) == 4


def test_the_best_checkpoint_is_said_to_be_the_best_of_so_many(client: Client) -> None:
    """The verdicts took the luckiest of all steps for a checkpoint that somebody had named beforehand."""
    with pytest.raises(InvalidRequest, match="best_of"):
        ComparePage.parse([("best_of", "-1")])
    shown = page(client, a="run-a@0", b="run-b@0", best_of=21)
    assert "One of the two is the best of 21 steps" in shown
    assert "best_of=21" in shown.split("Swap sides")[0].rpartition("<a")[2]
    assert "99.75 % interval" in shown, "1 − 0.05 / 20"
    assert "--level 0.9975" in shown
    content = ComparePage(a="run-a@0", b="run-b@0", best_of=21).content(client)
    assert content.values["rows"] == client.compare("run-a@0", "run-b@0", level=0.9975).contrasts
    for run in ("run-a", "run-b"):
        content = ComparePage(b=run, to="best").content(client)
        assert "the best of 3 by Arc accuracy (arc/acc); within its noise: " in content.values["note"]
        best = client.summary(run, [client.headline(run).metrics[0]])[0].best
        if best.step == 50:
            assert content.title == f"{run}@50 against {run}@0", "the newest is the best: it is compared with the base"
            assert ", and the newest; " in content.values["note"]
        else:
            assert content.values["query"].best_of == 3, "the address of the comparison keeps the number"
            assert content.title == f"{run}@50 against {run}@{best.step}"
    assert ComparePage(a="run-a", b="run-b", to="best").content(client).title.endswith("against run-a@50"), "of a"


def test_a_run_is_compared_with_its_base_and_what_cannot_be_compared_is_told(app: App, client: Client) -> None:
    assert ComparePage(b="run-b", to="base").content(client).title == "run-b@50 against run-b@0"
    put(app.store, "run-e", 0, 1, 0.5)
    assert "run-e@base is step 0 of run-e; run-e@newest is step 0 of run-e" in page(client, b="run-e", to="base")
    with pytest.raises(UnknownName, match="run is named 'run-x'"):
        ComparePage(b="run-x", to="base").content(client)
    with pytest.raises(InvalidRequest, match="one side of 'run-a@0' and 'run-b' is a checkpoint"):
        ComparePage(a="run-a@0", b="run-b").content(client)
    with pytest.raises(InvalidRequest, match="is not a run"):
        ComparePage(b="run-a@0", to="base").content(client)
    assert "<table" not in page(client)
