"""The page that compares two checkpoints or two runs."""

from typing import Any

import pytest
from app_in_process import App
from compared_runs import put
from dashboard_history import kept, pictures, png
from forgetting_reports import FLIP, content, flipped
from lxml import html
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.protocol import Protocol
from evalsvc.web.formats import number
from evalsvc.web.page import Content, Surroundings, html_of
from evalsvc.web.pages.compare import ComparePage


@pytest.fixture(autouse=True)
def _two_runs(app: App) -> None:
    for seed, step in enumerate((0, 25, 50)):
        put(app.store, "run-a", step, seed, 0.7)
        put(app.store, "run-b", step, seed + 3, 0.3)


def page(client: Client, **query: Any) -> str:
    content = ComparePage(**query).content(client)
    return html_of("compare.html", content, Surroundings(None, "http://evalsvc"))


def rows_of(content: Content) -> list[Any]:
    """Return the differences with a row of their own, in the order of the service."""
    return [row for group in content.values["groups"] for row, _ in group]


def test_two_checkpoints_have_the_verdicts_of_rest(client: Client) -> None:
    compared = client.compare("run-a@0", "run-b@0")
    assert rows_of(ComparePage(a="run-a@0", b="run-b@0").content(client)) == compared.contrasts
    shown = page(client, a="run-a@0", b="run-b@0")
    worse = sum(row.verdict == "worse" for row in compared.contrasts)
    assert worse
    assert f"against A, run-a@0: {worse} worse" in shown
    for row in compared.contrasts:
        assert f"[{', '.join(number(end, row.stderr) for end in (row.interval.low, row.interval.high))}]" in shown
    (accuracy,) = [row for row in compared.contrasts if row.metric == "arc/acc"]
    assert f"right only in B: {accuracy.answers.only_b}, only in A: {accuracy.answers.only_a}<" in shown
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
    assert [row.metric for row in rows_of(content)] == ["loss/text"]
    shown = page(client, a="run-c@0", b="run-c@25")
    assert "against A, run-c@0: 1 worse." in shown
    assert "text perplexity: 2.00" in shown, "the perplexity is folded under its loss"
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
    assert values == [("limit", "1", "2"), ("data", f'"{"1" * 15}…"', f'"{"2" * 15}…"')]
    assert [file for _, _, file, _, _ in fields] == ["", "/data.jsonl"], "the digest is of a file of the suite"
    assert "Protocol differences (1)" in page(client, a="run-c@0", b="run-c@25")
    assert "Not compared: loss/image" in page(client, a="run-c@0", b="run-c@25", tab="protocols")


def test_two_runs_say_where_they_enter_and_leave_the_noise(client: Client) -> None:
    compared = client.compare_runs("run-a", "run-b", ["arc/acc"])
    (curve,) = compared.curves
    content = ComparePage(a="run-a", b="run-b", metric=("arc/acc",)).content(client)
    assert content.values["curves"] == compared
    scales = [
        ComparePage(a="run-a", b="run-b", along=along).content(client).values["panels"][0].spec["layer"][0]
        for along in ("auto", "log")
    ]
    assert [layer["encoding"]["x"]["scale"]["type"] for layer in scales] == ["linear", "symlog"]
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
    assert "The two are the best of 20 pairs of checkpoints" in shown
    assert "best_of=21" in shown.split("Swap sides")[0].rpartition("<a")[2]
    assert "99.75 % interval" in shown, "1 − 0.05 / 20"
    assert "--level 0.9975" in shown
    content = ComparePage(a="run-a@0", b="run-b@0", best_of=21).content(client)
    assert rows_of(content) == client.compare("run-a@0", "run-b@0", level=0.9975).contrasts
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
    shown = page(client)
    assert "<table" not in shown
    for end in ("base", "best"):
        assert f'href="/compare?b=run-b&amp;to={end}"' in shown, "an empty page offers comparisons"


def test_the_headline_is_a_sentence_with_whiskers(app: App, client: Client) -> None:
    for step, image, text, total in ((0, 2.0, 1.0, 9.0), (25, 1.5, 3.105, 9.01)):
        enter(app.store, submission(step, run="run-c"), suite())
        named = {"loss/image": image, "loss/text": text, "pairs/general_text": text, "loss/total": total}
        evaluate_whole(app.store, *(metric(value, name, stderr=0.02, n=400) for name, value in named.items()))
    shown = page(client, a="run-c@0", b="run-c@25")
    tree = html.fromstring(shown)
    sentence = tree.xpath("string(//p[@class='answer'])")
    parts = [
        "image loss better by 0.500 [0.444, 0.556] nats/token",
        "text loss worse by 2.105 [2.049, 2.161] nats/token",
    ]
    assert all(part in sentence[:1].lower() + sentence[1:] for part in parts), sentence
    assert sentence.endswith("total loss within noise.")
    [first, *_] = tree.xpath("//table")
    places = {
        row.xpath("string(th/small)"): float(row.xpath("string(.//circle/@cx)")) for row in first.xpath("tbody/tr")
    }
    assert places["loss/image"] > 50, "better is to the right"
    assert places["loss/text"] < -50
    lines = {row.xpath("string(th)"): row for row in tree.xpath("//details//tbody/tr")}
    assert [name for name in lines if "general_text" in name] == [name for name in lines if "loss/text" in name]


def test_a_side_is_picked_by_run_and_step(client: Client) -> None:
    picked = ComparePage.parse([("b", "run-b"), ("b_step", "newest"), ("a", "run-a@25"), ("a_step", "0")])
    content = picked.content(client)
    assert content.title == "run-b@50 against run-a@25", "a step of the name has precedence"
    tree = html.fromstring(html_of("compare.html", content, Surroundings(None, "http://evalsvc")))
    assert [field.value for field in tree.xpath("//input[@list]")] == ["run-b", "50", "run-a", "25"]
    assert tree.xpath("//datalist[@id='steps-b']/option/@value") == ["best", "newest", "base", "50", "25", "0"]
    assert "run-a@best" in tree.xpath("//datalist[@id='runs']/option/@value")
    assert ComparePage(a="run-a", b="run-b", a_step="0:ema")._resolved(client)[0].a == "run-a@0:ema"


def test_images_are_sorted_by_change(app: App, client: Client) -> None:
    settings = app.settings
    for step, colours in ((0, (0, 0)), (25, (10, 200))):
        enter(app.store, submission(step, run="run-c"), suite("images", kind="text_to_image"))
        grid, *samples = pictures(settings, "run-c", step)[:3]
        samples = [
            kept(settings, "sample", each.name, each.media_type, png((colour, 0, 0)), each.details)
            for each, colour in zip(samples, colours, strict=True)
        ]
        evaluate_whole(app.store, metric(1.0, "coco/fid64"), artifacts=[grid, *samples])
    tree = html.fromstring(page(client, a="run-c@0", b="run-c@25", tab="images"))
    assert [note.strip() for note in tree.xpath("//figcaption/small/text()")] == ["26.1 % changed", "1.3 % changed"]
    assert len(tree.xpath("//figure//img")) == 4
    assert "no images of the same prompts" in page(client, a="run-a@0", b="run-b@0", tab="images")


def test_questions_that_flipped_have_their_text(app: App, client: Client) -> None:
    compared = client.compare("run-a@0", "run-b@0", flipped=3)
    (accuracy,) = [row for row in compared.contrasts if row.metric == "arc/acc"]
    [index, other, *_] = accuracy.answers.flipped.only_a
    named = {"base": "run 'run-a' step 0", "checkpoint": "run 'run-b' step 0"}
    report = content(flipped=[{**flipped({**FLIP, "index": index}), "benchmark": "arc"}], **named)
    enter(app.store, submission(0, run="run-b", uri="/run-b/epoch_0.pt", path="/run-b/epoch_0.pt"), suite("memory"))
    artifact = kept(app.settings, "forgetting", "forgetting.json", "application/json", report, named)
    evaluate_whole(app.store, metric(0.9, "retained/acc", unit="fraction"), artifacts=[artifact])
    tree = html.fromstring(page(client, a="run-a@0", b="run-b@0", tab="questions"))
    [row] = tree.xpath("//div[@class='flips']//tbody/tr")
    assert [cell.text_content() for cell in row] == ["is it so?", "yes | aye", "wrongno", "rightyes"]
    folded = tree.xpath("//details[starts-with(summary, 'Items whose text no report')]/p")
    assert any(each.text_content().startswith(f"{other}, ") for each in folded)


def test_external_images_are_compared_across_sampling(app: App, client: Client) -> None:
    for step, sampling in ((0, "external"), (25, {"seed": 0})):
        enter(app.store, submission(step, run="run-c"), suite())
        evaluate_whole(app.store, metric(float(step), "coco/fid", protocol=Protocol({"sampling": sampling})))
    shown = page(client, a="run-c@0", b="run-c@25")
    assert "--across-sampling" in shown, "the refusal names the option"
    assert 'href="/compare?a=run-c%400&amp;b=run-c%4025&amp;across=sampling"' in shown, "and the page offers it"
    shown = page(client, a="run-c@0", b="run-c@25", across=("sampling",))
    assert "compare run-c@0 run-c@25 --across-sampling<" in shown
    assert "against A, run-c@0: 1 worse." in shown
    assert "across=sampling" in page(
        client, a="run-c", b="run-c", metric=("coco/fid",), across=("sampling",), along="log"
    )
