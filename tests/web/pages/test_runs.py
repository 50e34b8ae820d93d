"""The pages of all runs, of one and of its checkpoints, as a browser without JavaScript gets them."""

import math
import re
from html import unescape
from typing import Any

import httpx2
import pytest
from app_in_process import App
from compared_runs import put
from dashboard_history import Dashboard
from history_reference import Point, imported, write
from queue_steps import act, enter, evaluate_whole, measure, metric, submission, suite
from told_run import OTHER, RUN, losses

from evalsvc.api.own_reader import OwnReader
from evalsvc.client import Client
from evalsvc.client.reader import ServiceReader
from evalsvc.spec.documents import RunSummary
from evalsvc.store.history.imports import import_values
from evalsvc.web.pages import run as pages
from evalsvc.web.pages.run import SHOWN_ROWS, CheckpointsPage
from evalsvc.web.pages.runs import Group, grouped, groups_of


@pytest.fixture(autouse=True)
def _pages_wait_for_comparisons_also_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.web.pages.runs.QUICK_SECONDS", 5.0)


def page(app: App, query: str = "") -> str:
    response = app.http.get(f"/{query}")
    assert response.status_code == 200, response.text
    return response.text


def names(text: str) -> list[str]:
    return re.findall(r'<th scope="rowgroup".*?<a href="/runs/[^"]*">([^<]*)</a>', text, re.DOTALL)


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def rows_of(text: str, run: str) -> str:
    return next(rows for rows in re.findall(r"<tbody.*?</tbody>", text, re.DOTALL) if f">{run}</a>" in rows)


def cells(text: str, run: str) -> list[str]:
    return [words(cell) for cell in re.findall(r"<td.*?>(.*?)</td>", rows_of(text, run), re.DOTALL)]


def says(text: str, run: str) -> str:
    found = re.search(r'<span class="says">(.*?)</span></div>', rows_of(text, run), re.DOTALL)
    assert found
    return words(found[1]).replace(" :", ":")


def points(*values: float, **fields: Any) -> list[Point]:
    rest = {"stderr": 0.01, "n": 400, **fields}
    return [Point(10 * place, value, **rest) for place, value in enumerate(values)]


def test_a_row_says_how_far_a_run_is_and_how_good(app: App) -> None:
    put(app.store, "run-a", 0, 1, 0.3, tags={"seed": "1"})
    put(app.store, "run-a", 10, 2, 0.7)
    put(app.store, "run-a", 20, 3, 0.68)
    enter(app.store, submission(30, run="run-a", tags={"seed": "1"}), suite("waits"))
    text = page(app)
    step, *metrics = cells(text, "run-a")
    assert step == "30 values to 20 1 waiting base step 0"
    accuracy = metrics[0]
    assert re.fullmatch(r"0\.\d+ ± 0\.\d+ ▲ better: \+0\.\d+ against the base, run-a@0", accuracy), accuracy
    assert "fraction, higher is better" in unescape(text)
    assert text.count("<polyline") == text.count('r="2.5"') == len(metrics)
    assert "seed=1" in text


def test_a_newest_value_that_is_the_best_or_no_number_and_no_error_that_is_invented(app: App) -> None:
    write(app.store, {"lower/x": points(3, 1, 2, stderr=None)}, "bare")
    write(app.store, {"higher/x": points(1, 2, 3)}, "best")
    write(app.store, {"lower/x": points(1, float("nan"))}, "none")
    text = page(app)
    assert "2 ? no error known: −1 against the base, bare@0" in cells(text, "bare")
    assert "3.000 ± 0.010 ▲ better: +2 against the base, best@0" in cells(text, "best")
    assert any(cell.startswith("NaN ± 0.010 ? no error known: –") for cell in cells(text, "none"))
    expected = ["Best step by lower/x: 10; the newest is not compared.", "Only one step has values."]
    assert [says(text, run) for run in ("bare", "none")] == expected


def test_a_sentence_says_what_is_better_what_is_lost_and_which_step_is_best(app: App) -> None:
    series = {"pairs/image": (9.0, 2.0, 1.0), "digits/fid64": (1.0, 1.2, 0.9), "text/text": (3.0, 8.0, 9.0)}
    entries = [imported(metric, points(*values, stderr=0.1)) for metric, values in series.items()]
    chance: dict[str, Any] = {"unit": "fraction", "direction": "higher", "baseline": 0.25}
    entries += [imported("cloze/acc", points(0.8, 0.25, 0.26, stderr=0.02), **chance)]
    act(app.store, import_values, "run", "test", entries, False)
    assert says(page(app), "run") == (
        "Better than the base: Image loss 1.00. Worse: Text loss 9.00. At chance since step 10: Cloze accuracy. "
        "Within noise of the base: Image distance (FID-64). Best step by Image loss: 20 (newest)."
    )
    entry = imported("cloze/acc", [Point(30, 0.4, 0.02, 400)], **chance)
    act(app.store, import_values, "run", "test", [entry], False)
    assert "Worse: Cloze accuracy 0.400, Text loss" not in says(page(app), "run")
    assert "At chance" not in says(page(app), "run"), "the newest value is not"


@pytest.fixture
def several(app: App) -> App:
    for name, low, high, seed in (("c", 2.0, 0.2, "1"), ("a", 3.0, 0.3, "1"), ("b", 1.0, 0.1, "2")):
        enter(app.store, submission(ord(name), run=name, tags={"seed": seed}))
        write(app.store, {"lower/x": points(low), "higher/y": points(high)}, name)
    enter(app.store, submission(1, run="d"))
    return app


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "abcd"),
        ("?reverse=true", "dcba"),
        ("?sort=steps", "cbad"),
        ("?sort=evaluated", "abcd"),
        ("?sort=metric:lower/x", "bcad"),
        ("?sort=metric:higher/y", "acbd"),
        ("?sort=metric:lower/x&reverse=true", "acbd"),
        ("?sort=metric:unknown", "abcd"),
        ("?tag=seed", "abc"),
        ("?tag=seed%3D1", "ac"),
        ("?tag=seed%3D1&tag=lr", ""),
        ("?find=B", "b"),
        ("?only=d&only=a", "ad"),
        ("?page=2", ""),
    ],
)
def test_order_and_filters(several: App, query: str, expected: str) -> None:
    assert "".join(names(page(several, query))) == expected


def test_columns_may_be_chosen_and_the_one_that_orders_says_so(several: App) -> None:
    assert [cell.split()[0] for cell in cells(page(several, "?metric=lower/x"), "a")[1:]] == ["3.000"]
    seven = "&".join(f"metric={name}" for name in ("lower/x", *"bcdef", "higher/y"))
    assert [cell[:5] for cell in cells(page(several, f"?{seven}"), "a")[1:]] == ["", "", "", "", "", "0.300"]
    assert several.http.get(f"/?{seven}&metric=g").status_code == 422
    queries = ("", "?sort=steps", "?sort=metric:higher/y&reverse=true")
    ways = [re.findall(r'aria-sort="(\w+)"', page(several, query)) for query in queries]
    assert ways == [[], ["descending"], ["ascending"]]


def test_pinned_runs_stay_on_top(several: App) -> None:
    text = page(several, "?find=b&pin=d")
    assert names(text) == ["d", "b"]
    assert 'href="/?find=b" aria-label="Unpin d"' in text
    assert 'href="/?find=b&amp;pin=d&amp;pin=b" aria-label="Pin b"' in text


def actions(text: str) -> dict[str, str]:
    found = re.findall(r'<a class="act-on" href="([^"]*)" data-act="(\w+)">', text)
    return {name: unescape(address) for address, name in found}


def test_chosen_runs_have_a_link_to_their_curves_over_each_other(several: App) -> None:
    text = page(several, "?only=c&only=a")
    assert re.findall(r'name="only" value="(.)"[^>]* checked', text) == ["a", "c"]
    expected = {"Overlay": "/runs/c?with=a", "Compare": "/compare?a=c&b=a"}
    assert actions(text) == expected | {"Export": "/v1/table?run=c&run=a&format=csv"}
    assert [*actions(page(several, "?only=c"))] == ["Export"]
    assert [*actions(page(several, "?only=a&only=b&only=c"))] == ["Overlay", "Export"]
    assert 'href="/?only=a&amp;only=b&amp;only=c&amp;only=d">Select all</a>' in page(several)
    lines = several.http.get(actions(text)["Export"]).text.splitlines()
    assert (len(lines), "Overlay takes 2 to 8 runs" in text) == (5, True)


def test_groups(several: App) -> None:
    text = page(several, "?group=by:seed")
    rows = [words(row) for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)]
    expected = "seed=1 2 runs ▾ a c Overlay"
    expected += " 0.250 ± 0.071 0.200 to 0.300, 2 runs step 0 2.50 ± 0.71 2.00 to 3.00, 2 runs step 0"
    assert rows[1] == expected
    assert rows[3] == "without the tag seed 1 run ▾ d"
    assert "<polygon" not in text, "one step is no curve"


def test_the_mean_of_a_group_is_drawn_along_the_steps_that_all_have(app: App, client: Client) -> None:
    for run, values in {"a": (5.0, 3.0, 1.0), "b": (7.0, 4.0)}.items():
        enter(app.store, submission(0, run=run, tags={"seed": run}))
        write(app.store, {"lower/x": points(*values)}, run)
    [group] = groups(client)
    assert group.spreads["lower/x"].curve == {0: (6.0, math.sqrt(2)), 10: (3.5, math.sqrt(0.5))}
    assert page(app, "?group=across:seed").count("<polygon") == 1


def groups(client: Client, *metrics: str) -> list[Group]:
    return list(groups_of(client, grouped(client.runs(), "across", "seed"), metrics))


def test_groups_by_the_value_of_a_tag_and_across_its_values() -> None:
    tags = {
        "a": {"seed": "1", "lr": "high"},
        "b": {"seed": "2", "lr": "high"},
        "c": {"seed": "1", "lr": "low"},
        "d": {},
    }
    counts: dict[str, Any] = {"checkpoints": 1, "last_step": 1, "values": 1, "created_at": ""}
    runs = [RunSummary(name=name, tags=of_run, **counts) for name, of_run in tags.items()]
    by, across, one = (
        {title: "".join(run.name for run in group) for title, group in found.items()}
        for found in (grouped(runs, "by", "seed"), grouped(runs, "across", "seed"), grouped(runs[:1], "across", "lr"))
    )
    assert by == {"seed=1": "ac", "seed=2": "b", "without the tag seed": "d"}
    assert across == {"lr=high": "ab", "lr=low": "c", "without the tag seed": "d"}
    assert one == {"seed=1": "a"}
    runs = [RunSummary(name="a", tags={"seed": "1"}, **counts)]
    assert list(grouped(runs, "across", "seed")) == ["no tag but seed"]


def test_values_of_a_group_are_those_at_the_highest_step_that_all_have_reached(app: App, client: Client) -> None:
    """A seed that has trained longer would make its group look better than it is."""
    for seed, last in (("1", 40), ("2", 20), ("3", 30)):
        enter(app.store, submission(0, run=f"run-{seed}", tags={"seed": seed, "lr": "high"}))
        points = [Point(step, float(seed) - step / 10, None, None) for step in range(0, last + 1, 10)]
        write(app.store, {"lower/x": points}, f"run-{seed}")
    [group] = groups(client)
    spread = group.spreads["lower/x"]
    assert (group.title, spread.n, spread.first_step, spread.last_step) == ("lr=high", 3, 20, 20)
    assert (spread.mean, spread.deviation, spread.low, spread.high) == (0.0, 1.0, -1.0, 1.0)


def test_values_of_another_protocol_are_left_out_of_a_group_and_counted(app: App, client: Client) -> None:
    """One run has no spread."""
    for seed, limit, value in (("1", 1, 1.0), ("2", 2, 9.0), ("3", 1, 2.0)):
        measure(app.store, 10, value, limit=limit, run=f"run-{seed}", tags={"seed": seed})
        [group] = groups(client, "loss/text", "loss/unknown")
        assert list(group.spreads) == ["loss/text"]
        if seed == "1":
            assert (group.spreads["loss/text"].mean, group.spreads["loss/text"].deviation) == (1.0, None)
    spread = group.spreads["loss/text"]
    assert (spread.mean, spread.n, spread.other_protocols) == (1.5, 2, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_have_no_mean(app: App, client: Client, value: float) -> None:
    measure(app.store, 10, value, tags={"seed": "1"})
    [group] = groups(client)
    assert group.spreads == {}


@pytest.mark.parametrize(
    "query",
    ["?sort=value", "?group=seed", "?page=0", "?limit=3", "?find=a&find=b", "?verdicts=some", "?sort=", "?tag="],
)
def test_wrong_and_empty_parameters(several: App, query: str) -> None:
    response = several.http.get(f"/{query}")
    assert response.status_code == (200 if query.endswith("=") else 422)


def test_fifty_runs_of_many_cost_three_questions(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once asked for its run, its headline, its curves and its summary."""
    assert "evalsvc submit RUN STEP FILE" in page(app)
    assert "No run fits" in page(app, "?find=x")
    for number in range(60):
        write(app.store, {"lower/x": points(3, 2, 1)}, f"run-{number:02d}")
    asked: list[str] = []

    class Counted(OwnReader):
        def __getattribute__(self, name: str) -> Any:
            if name in vars(ServiceReader) and not name.startswith("_"):
                asked.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr("evalsvc.api.routes.pages.OwnReader", Counted)
    first = names(page(app))
    assert (len(first), asked) == (50, ["runs", "headlines", "headline"])
    assert len(names(page(app, "?page=2"))) == 10
    assert 'href="/?page=2"' in page(app)
    assert names(page(app, "?sort=metric:loss/text")) == first, "of more runs than a request may name"
    asked.clear()
    page(app, "?sort=metric:lower/x")
    assert asked == ["runs", "headlines", "headlines", "headline"]


def test_the_two_best_runs_are_compared(app: App) -> None:
    """Whether one run is better than the other one took two ticks and a page."""

    def leading(query: str = "") -> tuple[str, str]:
        found = re.search(r'<p class="leading".*?>(.*?)<a href="(.*?)"', page(app, query), re.DOTALL)
        return (words(found[1]), unescape(found[2])) if found else ("", "")

    put(app.store, "a", 10, 1, 0.3)
    for name in ("told", "told-2"):
        write(app.store, {"higher/x": points(1, 2)}, name)
    put(app.store, "other-protocol", 10, 2, 0.9, limit=2)
    put(app.store, "more", 10, 1, 0.36)
    columns = "?metric=higher/x&metric=arc/acc&metric=arc/bits_per_byte"
    for runs, best, second in ((2, "more", "a"), (3, "most", "more")):
        if best == "most":
            put(app.store, best, 20, 3, 0.9)
        text, link = leading(columns)
        step = 20 if best == "most" else 10
        assert text.startswith(f"Best by Arc accuracy: {best}@{step} , then {second}@10 . The first against the second")
        assert ("corrected for the best of 3" in text) == (runs == 3)
        query = {"a": f"{second}@10", "b": f"{best}@{step}", "level": 1 - 0.05 / (runs - 1), "metric": "arc/acc"}
        [row] = app.http.get("/v1/compare", params=query).json()["contrasts"]
        assert row["verdict"] == ("better" if best == "most" else "indistinguishable")
        shown = f"better by {row['difference']:.3f} [{row['interval']['low']:.3f}, {row['interval']['high']:.3f}]"
        assert (shown in text) == (best == "most"), text
        assert app.http.get(link).status_code == 200
        assert f"best_of={runs}" in link
    assert leading(f"{columns}&sort=metric:arc/bits_per_byte")[0].startswith("Best by Arc bits per byte: ")
    assert leading("?only=a") == leading("?metric=higher/x") == ("", ""), "fewer than two measured runs"


def test_runs_that_are_not_compared_yet_have_a_link(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("a", "b"):
        measure(app.store, 0, 2.0, run=run)
        measure(app.store, 10, 1.0, run=run)
    monkeypatch.setattr("evalsvc.web.pages.runs.QUICK_SECONDS", 1e-9)
    assert 'id="all-verdicts" href="/?verdicts=all"' in page(app)
    assert "all-verdicts" not in page(app, "?verdicts=all")
    assert "all-verdicts" not in page(app), "the service kept them"


# The pages of a run and of its checkpoints


def run_page(app: App, query: str = "", run: str = RUN) -> str:
    return page(app, f"runs/{run}{query}")


def headline(text: str) -> list[str]:
    return re.findall(r'data-metric="([^"]*)"', text)


def rest(text: str) -> dict[str, bool]:
    """Return the metrics below the headline, and whether each is shown before anybody looks for it."""
    below = text[text.index('id="rest"') :]
    found = re.findall(r'<figure class="panel" data-name="([^"]*)"( data-companion hidden)?>', below)
    return {name: not hidden for name, hidden in found}


def test_a_companion_is_shown_with_its_metric(told: App) -> None:
    text = run_page(told)
    assert headline(text) == ["loss/image", "loss/text"] or headline(text) == ["loss/text", "loss/image"]
    assert rest(text) == {"loss/text_perplexity": False, "loss/text_unigram": False}
    assert rest(run_page(told, "?find=perp")) == {"loss/text_perplexity": True}
    assert "No metric has “nothing” in its name." in run_page(told, "?find=nothing")


def test_the_state_of_the_page_is_in_the_addresses_of_its_charts(told: App) -> None:
    text = run_page(told, f"?with={OTHER}&scale=log&along=log&smooth=0.6&from=100&to=300")
    addresses = re.findall(r'data-spec="([^"]*)"', text) or re.findall(r'href="(/panels/curve[.]csv[^"]*)"', text)
    assert addresses
    parts = {"scale=log", "along=log", "smooth=0.6", "from=100", "to=300", "base=text-1b%400", f"run={OTHER}"}
    for address in map(unescape, addresses):
        assert parts <= set(re.split("[?&]", address))
        assert told.http.get(address).status_code == 200


def test_a_table_below_a_chart_has_the_newest_rows(told: App) -> None:
    for step in range(1000, 1000 + SHOWN_ROWS):
        enter(told.store, submission(step, run="many"), suite())
        evaluate_whole(told.store, metric(float(step)))
    enter(told.store, submission(1000 + SHOWN_ROWS, run="many"), suite())
    evaluate_whole(told.store, metric(5.0), warnings=[{"code": "few", "metric": "loss/text", "message": "too <few>"}])
    text = run_page(told, run="many")
    assert f"The newest {SHOWN_ROWS} of {SHOWN_ROWS + 1} rows." in text
    assert "<td>1,000</td>" not in text
    assert f'<p class="warning" role="note">many@{1000 + SHOWN_ROWS}, loss/text: too &lt;few&gt;.</p>' in text


def test_a_run_without_tokens_says_so(told: App) -> None:
    enter(told.store, submission(5, run="bare"), suite())
    assert "This run has no values yet." in run_page(told, run="bare")
    evaluate_whole(told.store, *losses(5))
    assert "read the history with x=step" in run_page(told, "?x=tokens", "bare")
    assert headline(run_page(told, "?x=tokens")), "a run with tokens has its panels"


def test_what_the_page_cannot_show_is_refused(told: App) -> None:
    for query in ("?smooth=2", "?x=time", "?from=5&to=3", "?with=" + "&with=".join("abcdefgh")):
        assert told.http.get(f"/runs/{RUN}{query}").status_code in (400, 422), query
    assert told.http.get("/runs/nobody").status_code == 404
    hostile = "<script>alert(1)</script>"
    for field in ("base", "variant", "protocol", "metric", "points", "theme", "from"):
        query = {"run": RUN, "metric": "loss/text", field: hostile}
        answer = told.http.get("/panels/curve.html", params=query)
        assert answer.status_code in (200, 400, 404, 422), field
        assert "<script>alert" not in answer.text, field
    assert told.http.get("/panels/curve.html", params={"run": RUN, "metric": "m" * 10_000}).status_code == 422


def test_the_checkpoints_are_listed_newest_first_with_a_link_to_each_evaluation(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(dashboard.url) as client:
        checkpoints = client.run(RUN).checkpoints
        text = httpx2.get(f"{dashboard.url}/runs/{RUN}/checkpoints").text
        failed = CheckpointsPage(run=RUN, state="failed").content(client).values
        everything: Any = CheckpointsPage(run=RUN, verdicts="all").content(client).values
        metric, contrasts = everything["metric"], everything["contrasts"]
        verdict = client.compare(f"{RUN}@2000", f"{RUN}@3000", [metric]).contrasts[0].verdict
        monkeypatch.setattr(pages, "CHECKPOINTS", 2)
        values: list[Any] = [CheckpointsPage(run=RUN, page=number).content(client).values for number in (1, 2, 99)]
    wanted = {evaluation.id for checkpoint in checkpoints for evaluation in checkpoint.evaluations}
    assert {int(number) for number in re.findall(r'href="/evaluations/(\d+)"', text)} == wanted
    assert '<span class="dot failed" aria-hidden="true"></span>failed' in text
    steps = [checkpoint.step for checkpoint in checkpoints][::-1]
    assert [[row[0].step for row in page["rows"]] for page in values] == [steps[:2], steps[2:4], []]
    assert values[0]["pages"] == -(-len(steps) // 2)
    assert [row[1:] for row in failed["rows"]] == [(f"{RUN}@5000", "failed", None)]
    before = {name: earlier for _, name, _, earlier in everything["rows"]}
    assert before[f"{RUN}@3000"] == f"{RUN}@2000"
    assert before[f"{RUN}@4000:ema"] is None, "another variant"
    assert contrasts[f"{RUN}@3000"].verdict == verdict, "that of the comparison"
    assert f'href="/compare?a={RUN}%402000&amp;b={RUN}%403000"' in text
    assert 'formaction="/evaluations/' in text
